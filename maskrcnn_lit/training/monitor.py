"""Whether a metric of a validation has got better."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maskrcnn_lit.errors import UserError

if TYPE_CHECKING:  # it loads torch
    from lightning.pytorch import Trainer

DEFAULT_METRICS = ("val/mask_ap", "val/box_ap")  # of a model with and without masks

# Beginnings of the names of metrics that only a model with masks has.
OF_MASKS = ("val/mask", "val/boundary", "val/cityscapes")

# All others should rise.
FALLING = ("val/loss", "val/merged", "val/split", "val/count_error")


def has_masks(config: Mapping[str, Any]) -> bool:
    """Whether the model of this config, of a run or of a command, makes masks."""
    return (config.get("model") or {}).get("mask_head", True) is not None


def default_metric(masks: bool) -> str:
    """The metric that decides where none is named, of models with masks or without."""
    return DEFAULT_METRICS[0 if masks else 1]


def check_metric(option: str, metric: str, masks: bool) -> None:
    """Raise UserError if `option` names a metric of masks, and there are none."""
    if not masks and metric.startswith(OF_MASKS):
        raise UserError(
            f"{option}={metric} does not exist with model.mask_head=null: use {option}=val/box_ap"
        )


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
