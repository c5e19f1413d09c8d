"""What /metrics shows, in the text form of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The numbers of one server.

    Args:
        waiting: how many pictures wait for the model.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "maskrcnn_requests", "Answered requests", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "maskrcnn_predict_seconds",
            "Time from the first byte of a picture to its answer, of answers with status 200",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "maskrcnn_batch_seconds",
            "Time of a batch: decoding, model, JSON",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "maskrcnn_batch_images", "Pictures of a batch", buckets=IMAGES, registry=registry
        )
        length = Gauge("maskrcnn_waiting", "Pictures that wait for the model", registry=registry)
        length.set_function(waiting)

    def text(self) -> bytes:
        """The content of /metrics."""
        return generate_latest(self.registry)
