"""The goals of a search: metrics and costs, each as large or as small as possible, and how runs
compare by them.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.titles import TITLES
from maskrcnn_lit.training.monitor import falls

METRIC, COST = "val/", "cost/"  # beginnings of the names of goals

# Costs of result.json. Those with True should rise.
COST_GOALS = {
    "parameters": False,
    "flops": False,
    "latency_seconds": False,
    "inference_images_per_second": True,
    "images_per_second": True,
    "peak_memory_bytes": False,
    "seconds": False,
    "energy_joules": False,
}

# Those known during training, by which a run can be pruned.
EARLY_COSTS = ("parameters", "flops", "latency_seconds", "inference_images_per_second")

_ALIKE = 0.85  # similarity of an unknown name to a known one: a typing mistake


class Goal(NamedTuple):
    """name: of a metric (val/mask_ap) or a cost (cost/latency_seconds); rises: whether more of it
    is better.
    """

    name: str
    rises: bool

    def __str__(self) -> str:
        return f"{self.name}:{'max' if self.rises else 'min'}"

    @property
    def early(self) -> bool:
        """Whether it is known at every validation."""
        return self.name.startswith(METRIC) or self.name.removeprefix(COST) in EARLY_COSTS


def read_goals(texts: Sequence[str]) -> list[Goal]:
    """Goals such as "val/mask_ap:max". Without max or min, the direction is that of the metric.

    Raises:
        UserError: an unknown metric, cost or direction, or the same goal twice.
    """
    goals = [_read(str(text)) for text in texts]
    names = [goal.name for goal in goals]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"sweep.goals has {name} twice: name each goal once")
    return goals


def _read(text: str) -> Goal:
    name, _, direction = text.partition(":")
    known = [f"{METRIC}{metric}" for metric in TITLES] + [f"{COST}{cost}" for cost in COST_GOALS]
    wrong = name not in known and not re.fullmatch(r"val/[\w/]+", name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if wrong else _ALIKE)
    measured = name in known or re.fullmatch(r"val/\w+_ar\d+", name)
    if wrong or (near and not measured):
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"sweep.goals has {name}, which is not a metric (val/mask_ap) or one of "
            f"{', '.join(COST + cost for cost in COST_GOALS)}{hint}"
        )
    if direction not in ("", "max", "min"):
        raise UserError(f"sweep.goals has {text}; expected {name}:max or {name}:min")
    rises = COST_GOALS[name.removeprefix(COST)] if name.startswith(COST) else not falls(name)
    return Goal(name, direction == "max" if direction else rises)


def goal_values(
    goals: Sequence[Goal], metrics: Mapping[str, float], cost: Mapping[str, float | None]
) -> list[float]:
    """The value of each goal in a run's metrics and costs; NaN for a missing one."""
    values = [
        cost.get(goal.name.removeprefix(COST))
        if goal.name.startswith(COST)
        else metrics.get(goal.name)
        for goal in goals
    ]
    return [math.nan if value is None else float(value) for value in values]


def dominates(one: Sequence[float], other: Sequence[float], goals: Sequence[Goal]) -> bool:
    """Whether the values `one` are as good as `other` in every goal and better in one. NaN is the
    worst value.
    """
    pairs = [
        (_height(a, goal), _height(b, goal)) for a, b, goal in zip(one, other, goals, strict=True)
    ]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front(points: Sequence[Sequence[float]], goals: Sequence[Goal]) -> list[int]:
    """Positions of the points that no other dominates, best in the first goal first. With one goal:
    the best point, or several equal ones.
    """
    best = [
        i
        for i, point in enumerate(points)
        if not any(dominates(other, point, goals) for other in points)
    ]
    return sorted(best, key=lambda i: (-_height(points[i][0], goals[0]), i))


def _height(value: float, goal: Goal) -> float:
    if math.isnan(value):
        return -math.inf
    return value if goal.rises else -value
