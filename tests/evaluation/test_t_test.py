"""Student's t and Welch's test against tables and against a calculation by hand."""

import math

import numpy as np
import pytest

from maskrcnn_lit.evaluation.t_test import Mean, holm, mean, welch


def test_a_mean_has_an_interval_from_two_values_on():
    assert mean([0.25]) == Mean(0.25, None)
    found = mean([0.1, 0.2, 0.3])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)


def test_welch_by_hand():
    first, second = [0.30, 0.34, 0.38], [0.20, 0.21]
    squares = np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 2
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 1)
    t = (0.34 - 0.205) / math.sqrt(sum(squares))
    found = welch(first, second)
    assert found.value == pytest.approx(0.135)
    draws = np.random.default_rng(0).standard_t(freedom, 1_000_000)
    assert found.p_value == pytest.approx((abs(draws) > t).mean(), abs=1e-3)
    half = np.quantile(abs(draws), 0.95) * math.sqrt(sum(squares))
    assert found.interval == pytest.approx((0.135 - half, 0.135 + half), rel=0.01)
    swapped = welch(second, first)
    assert (swapped.value, swapped.p_value) == pytest.approx((-found.value, found.p_value))


@pytest.mark.long
def test_the_test_rejects_equal_means_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = zip(rng.normal(0, 1, (2000, 3)), rng.normal(0, 3, (2000, 3)), strict=True)
    rejected = np.mean([welch(first, second).p_value < 0.05 for first, second in draws])
    assert 0.03 < rejected < 0.07


def test_values_that_do_not_vary_differ_for_sure_or_not_at_all():
    assert welch([0.2, 0.2], [0.2, 0.2]).p_value == 1.0
    assert welch([0.3, 0.3], [0.2, 0.2]).p_value == 0.0


def test_holm_stops_at_the_first_that_is_not_significant():
    assert holm([0.04, 0.001, 0.02], 0.05) == [True, True, True]
    assert holm([0.03, 0.001, 0.03], 0.05) == [False, True, False]
    assert holm([], 0.05) == []
