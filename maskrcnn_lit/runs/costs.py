"""The one table of costs: title and unit of each, in text, tables and plots."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """title: with the unit, the head of a column and the label of an axis.
    factor: from the unit of result.json to that of the title; digits: after the point.
    phrase, least: the cost and its lowest value in a sentence; only those of a model alone, which
        AP is weighed against.
    """

    title: str
    factor: float
    digits: int
    phrase: str = ""
    least: str = ""


# By their keys in the `cost` of result.json.
COSTS = {
    "parameters": Cost("parameters, M", 1e-6, 2, "parameters", "fewest parameters"),
    "flops": Cost("GFLOP", 1e-9, 2, "FLOPs", "fewest FLOPs"),
    "images_per_second": Cost("images/s in training", 1, 1),
    "inference_images_per_second": Cost("images/s in inference", 1, 1),
    "latency_seconds": Cost("latency, ms", 1e3, 1, "latency", "lowest latency"),
    "peak_memory_bytes": Cost("peak memory, GB", 1e-9, 2),
    "seconds": Cost("training, s", 1, 0),
    "energy_joules": Cost("energy, kJ", 1e-3, 1),
}

# Those that a model has whatever trains it.
MODEL_COSTS = tuple(name for name, cost in COSTS.items() if cost.phrase)
