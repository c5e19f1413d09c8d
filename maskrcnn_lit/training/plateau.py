"""The schedule that lowers the learning rate when a validation metric no longer gets better."""

import math
from collections.abc import Mapping
from typing import Any

from maskrcnn_lit.errors import UserError, check_choice, check_whole, check_within, plural
from maskrcnn_lit.training.monitor import falls, is_better

# Metrics of a validation that may be watched.
MONITORS = ("val/mask_ap", "val/mask_ap50", "val/box_ap", "val/box_ap50", "val/loss")

DEFAULTS: Mapping[str, Any] = {"monitor": "val/mask_ap", "patience": 3, "factor": 0.1}


class Plateau:
    """Factor on the learning rate: up in a line for `warmup` steps, and times `factor` whenever
    `patience` validations in a row have brought no better `monitor` than the best before them (as
    torch's ReduceLROnPlateau without a threshold). NaN, where there are no objects, does not count.

    LambdaLR saves the attributes of such an object, so a resumed run goes on counting.

    Raises:
        UserError: an unknown metric, a patience below 1, a factor that is not between 0 and 1.
    """

    def __init__(self, *, warmup: int, start: float, settings: Mapping[str, Any]) -> None:
        """start: the factor at step 0; settings: some of DEFAULTS, the others are as there."""
        unknown = sorted(settings.keys() - DEFAULTS.keys())
        if unknown:
            raise UserError(
                f"optimizer.plateau has no {unknown[0]}: it takes {', '.join(DEFAULTS)}"
            )
        values = {**DEFAULTS, **settings}
        check_choice(MONITORS, optimizer__plateau__monitor=values["monitor"])
        check_whole(1, optimizer__plateau__patience=values["patience"])
        check_within(0, 1, optimizer__plateau__factor=values["factor"])
        self.warmup, self.start = warmup, start
        self.monitor: str = values["monitor"]
        self.patience: int = values["patience"]
        self.factor: float = values["factor"]
        self.scale = 1.0
        self.best: float | None = None
        self.validations = 0  # since the best one, or since the rate was lowered

    def __call__(self, step: int) -> float:
        rising = self.start + (1 - self.start) * step / self.warmup if step < self.warmup else 1.0
        return self.scale * rising

    def observe(self, metrics: Mapping[str, Any]) -> bool:
        """Take the metrics of a validation; returns whether the rate is lower from now on."""
        score = float(metrics.get(self.monitor, math.nan))
        if math.isnan(score):
            return False
        if is_better(score, self.best, self.monitor):
            self.best, self.validations = score, 0
            return False
        self.validations += 1
        if self.validations < self.patience:
            return False
        self.scale, self.validations = self.scale * self.factor, 0
        return True

    @property
    def text(self) -> str:
        """The schedule in words."""
        better = "lower" if falls(self.monitor) else "higher"
        return (
            f"then times {self.factor:g} after {plural(self.patience, 'validation')} without a "
            f"{better} {self.monitor}"
        )
