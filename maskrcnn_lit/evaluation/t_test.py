"""How sure a mean over seeds is, and the difference of two: Student's t, and Welch's test (Welch,
"The generalization of 'Student's' problem when several different population variances are
involved", 1947).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


class Mean(NamedTuple):
    """interval: of `CONFIDENCE`, around the mean; None for a single value, which does not tell how
    far others lie.
    """

    value: float
    interval: tuple[float, float] | None


class Welch(NamedTuple):
    """The mean of the first minus that of the second; p_value: two-sided, of no difference."""

    value: float
    interval: tuple[float, float]
    p_value: float


def mean(values: Sequence[float]) -> Mean:
    """Of one value a seed, at least one."""
    middle = float(np.mean(values))
    if len(values) < 2:
        return Mean(middle, None)
    half = (
        t_quantile(CONFIDENCE, len(values) - 1)
        * float(np.std(values, ddof=1))
        / math.sqrt(len(values))
    )
    return Mean(middle, (middle - half, middle + half))


def welch(first: Sequence[float], second: Sequence[float]) -> Welch:
    """Of two values a side, or more; their numbers and variances may differ. Where none varies,
    what differs at all differs for sure.
    """
    value = float(np.mean(first) - np.mean(second))
    squares = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    error = math.sqrt(sum(squares))
    if error == 0:
        return Welch(value, (value, value), float(value == 0))
    shares = [square / sum(squares) for square in squares]
    freedom = 1 / sum(
        share**2 / (len(side) - 1) for share, side in zip(shares, (first, second), strict=True)
    )
    half = t_quantile(CONFIDENCE, freedom) * error
    return Welch(value, (value - half, value + half), t_beyond(abs(value) / error, freedom))


def t_beyond(t: float, freedom: float) -> float:
    """The probability that Student's t of so many degrees of freedom (1 or more) is further from 0
    than `t`.

    With t = sqrt(freedom) tan(angle) the density is cos(angle) ** (freedom - 1), up to a factor.
    """
    begin, end = math.atan(t / math.sqrt(freedom)), math.pi / 2
    angles = begin + (end - begin) * (_NODES + 1) / 2
    tail = float((end - begin) / 2 * (_WEIGHTS * np.cos(angles) ** (freedom - 1)).sum())
    whole = (
        math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) * math.sqrt(math.pi) / 2
    )
    return min(1.0, tail / whole)


def t_quantile(confidence: float, freedom: float) -> float:
    """How far from 0 Student's t lies at most, with this probability."""
    low, high = 0.0, 1.0
    while t_beyond(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(60):  # halves the bracket each time
        middle = (low + high) / 2
        low, high = (middle, high) if t_beyond(middle, freedom) > 1 - confidence else (low, middle)
    return high
