"""Whether a metric of a validation has got better."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads torch
    from lightning.pytorch import Trainer

DEFAULT_METRICS = ("val/mask_ap", "val/box_ap")  # of a model with and without masks

# All others should rise.
FALLING = ("val/loss", "val/merged", "val/split", "val/count_error")


def monitored(trainer: "Trainer", metric: str) -> float:
    """The value of the last validation, NaN without one; that of the main process in all of them: a
    metric of the user's own may differ, and all have to save and stop together. Every process calls
    it.
    """
    value = float(trainer.callback_metrics.get(metric, math.nan))
    return value if trainer.world_size == 1 else float(trainer.strategy.broadcast(value))


def falls(metric: str) -> bool:
    """Whether less of this metric is better: of losses (val/loss, val/loss_...) and errors."""
    return metric in FALLING or metric.startswith("val/loss")


def is_better(score: float, best: float | None, metric: str) -> bool:
    """Whether `score` of `metric` is better than `best`; None: than none. NaN never is."""
    if math.isnan(score):
        return False
    if best is None:
        return True
    return score < best if falls(metric) else score > best
