"""Means over seeds with their confidence interval (Student's t), and the difference of two
(Welch, "The generalization of 'Student's' problem when several different population variances are
involved", 1947).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """interval: the `CONFIDENCE` interval of the mean; None for a single value."""

    value: float
    interval: tuple[float, float] | None


class Welch(NamedTuple):
    """value: the mean of the first minus that of the second; p_value: two-sided."""

    value: float
    interval: tuple[float, float]
    p_value: float


def mean(values: Sequence[float]) -> Mean:
    """The mean of one value per seed, at least one."""
    middle = float(np.mean(values))
    if len(values) < 2:
        return Mean(middle, None)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return Mean(middle, (middle - float(half), middle + float(half)))


def welch(first: Sequence[float], second: Sequence[float]) -> Welch:
    """Welch's test of two samples with at least two values each; sizes and variances may differ.

    If both samples are constant, the p-value is 0 for different means and 1 for equal ones.
    """
    value = float(np.mean(first) - np.mean(second))
    if np.ptp(first) == 0 == np.ptp(second):
        return Welch(value, (value, value), float(value == 0))
    test = stats.ttest_ind(first, second, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return Welch(value, (float(low), float(high)), float(test.pvalue))


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Whether each is significant at `level` for all together: the smallest must be below the level
    divided by their number, the next below the level divided by one less, and so on up to the first
    that is not (Holm, "A simple sequentially rejective multiple test procedure", 1979).
    """
    outcomes = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] >= level / (len(p_values) - rank):
            break
        outcomes[i] = True
    return outcomes
