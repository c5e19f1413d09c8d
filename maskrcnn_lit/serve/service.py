"""Models by name behind one queue: bytes of pictures in, COCO json out."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn_lit.predictor import Detections, Predictor
from maskrcnn_lit.serve.metrics import Metrics
from maskrcnn_lit.serve.pictures import Refused, read_picture
from maskrcnn_lit.serve.queue import BatchQueue
from maskrcnn_lit.storage.image_inputs import ImageInput


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a server.

    Attributes:
        batch_size: the most pictures of a forward pass.
        queue: the most requests that are read, wait or run; further ones get 503.
        seconds: for the body of a request, and again for its answer.
        max_bytes: of a body.
        max_pixels: of a picture.
    """

    batch_size: int = 8
    queue: int = 64
    seconds: float = 30.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000


class Task(NamedTuple):
    """One picture, as it came."""

    data: bytes
    name: str
    image_id: int


class Service:
    """Answers pictures with one of `models`, several at a time. Close it at the end.

    Args:
        models: by name; the first one answers who names none.
        limits: see there.
    """

    def __init__(self, models: Mapping[str, Predictor], limits: Limits) -> None:
        self.models, self.limits = dict(models), limits
        self.queue = BatchQueue[Task, bytes](self._work, batch_size=limits.batch_size)
        self.metrics = Metrics(lambda: len(self.queue))
        self._inside = 0

    @property
    def works(self) -> bool:
        """Whether the thread of the models runs."""
        return self.queue.works

    def close(self) -> None:
        """Stop the thread of the queue."""
        self.queue.close()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One of the places for requests, so that bodies in memory have a bound.

        Raises:
            Refused: 503: all are taken.
        """
        if self._inside >= self.limits.queue:
            raise Refused(
                503,
                f"{self.limits.queue} requests are being answered: send this one again later",
                {"Retry-After": "1"},
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def predict(self, model: str, score_threshold: float | None, task: Task) -> bytes:
        """The COCO json of a picture, see `coco_json`; score_threshold: None: the model's own.

        Raises:
            Refused: 413, 415: see `read_picture`; 504: it took longer than `limits.seconds`.
        """
        future = self.queue.submit((model, score_threshold), task)
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Refused(
                504,
                f"the picture waited {self.limits.seconds:g} seconds for the model: send it again "
                "later",
            ) from None

    def _work(self, kind: Any, tasks: list[Task]) -> list[bytes | Exception]:
        """The answers to tasks of one (model, threshold): in the thread of the queue."""
        started = time.perf_counter()
        name, threshold = kind
        answers: list[bytes | Exception] = []
        pictures: list[NDArray[np.uint8]] = []
        for task in tasks:
            try:
                bits = self.models[name].bits
                pictures.append(read_picture(task.data, self.limits.max_pixels, bits))
                answers.append(b"")
            except Refused as refused:
                answers.append(refused)
        inputs = [ImageInput("picture", partial(_same, pixels)) for pixels in pictures]
        found = self.models[name].predict(
            inputs, batch_size=max(1, len(inputs)), score_threshold=threshold
        )
        readable = [n for n, answer in enumerate(answers) if isinstance(answer, bytes)]
        for n, detections in zip(readable, found, strict=True):
            info = {"model": name}
            answers[n] = json.dumps(coco_json(detections, tasks[n], info)).encode()
        self.metrics.batch_images.observe(len(tasks))
        self.metrics.batch_seconds.observe(time.perf_counter() - started)
        return answers


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def coco_json(detections: Detections, task: Task, info: Mapping[str, Any]) -> dict[str, Any]:
    """Detections as a COCO json: info, images (one), annotations with `score`, categories.
    `annotations` alone is a COCO results json.
    """
    height, width = detections.image.shape[:2]
    areas: Sequence[float]
    if detections.masks:
        areas = coco_mask.area(detections.masks).tolist()
    else:
        sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
        areas = sides.prod(axis=1).tolist()
    entries = detections.to_coco(task.image_id)
    return {
        "info": dict(info),
        "images": [{"id": task.image_id, "file_name": task.name, "height": height, "width": width}],
        "annotations": [
            {"id": n, **entry, "area": area, "iscrowd": 0}
            for n, (entry, area) in enumerate(zip(entries, areas, strict=True), start=1)
        ],
        "categories": [
            {"id": category.id, "name": category.name} for category in detections.categories
        ],
    }
