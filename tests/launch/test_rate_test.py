import math

import numpy as np
import pytest

from maskrcnn_lit.launch.rate_test import smoothed, steepest


def test_the_average_begins_at_the_first_loss():
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])
    assert smoothed([1.0, 2.0]) == pytest.approx([1, (0.09 * 1 + 0.1 * 2) / 0.19])


def test_the_steepest_fall_before_the_least_loss():
    rates = list(np.geomspace(1e-5, 1, 101))
    falls = [3 - 2 / (1 + math.exp(-8 * (math.log10(rate) + 3))) for rate in rates]  # at 1e-3
    assert steepest(rates, falls) == pytest.approx(1e-3, rel=0.15)
    diverges = [
        loss + (0 if rate < 0.05 else 100 * rate) for loss, rate in zip(falls, rates, strict=True)
    ]
    assert steepest(rates, diverges) == pytest.approx(1e-3, rel=0.15)


def test_a_loss_that_never_falls_has_no_steepest_point():
    rates = list(np.geomspace(1e-5, 1, 50))
    assert steepest(rates, [1 + rate for rate in rates]) is None
