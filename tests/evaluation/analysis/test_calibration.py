"""Reliability bins against counting one by one."""

import math

import numpy as np
import pytest

from maskrcnn_lit.evaluation.analysis.calibration import calibration


def test_bins_by_hand() -> None:
    found = calibration(
        np.array([0.0, 0.1, 0.15, 0.2, 0.95, 1.0]), np.array([0, 1, 0, 1, 1, 1], bool)
    )
    first, second, *middle, last = found["bins"]
    assert first == {"from": 0.0, "to": 0.1, "score": 0.05, "precision": 0.5, "count": 2}
    assert second == {
        "from": 0.1,
        "to": 0.2,
        "score": pytest.approx(0.175),
        "precision": 0.5,
        "count": 2,
    }
    assert last == {
        "from": 0.9,
        "to": 1.0,
        "score": pytest.approx(0.975),
        "precision": 1.0,
        "count": 2,
    }
    assert len(middle) == 7
    assert all(row["count"] == 0 and math.isnan(row["precision"]) for row in middle)
    assert found["error"] == pytest.approx((2 * 0.45 + 2 * 0.325 + 2 * 0.025) / 6)


def test_the_error_against_counting() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(500)
    right = rng.random(500) < scores**2
    expected = 0.0
    for n in range(10):
        inside = (scores > n / 10) & (scores <= (n + 1) / 10)
        expected += inside.mean() * abs(right[inside].mean() - scores[inside].mean())
    assert calibration(scores, right)["error"] == pytest.approx(expected)
    assert expected > 0.1


def test_scores_that_mean_what_they_say() -> None:
    scores = np.repeat([0.25, 0.75], 400)
    right = np.r_[np.arange(400) % 4 == 0, np.arange(400) % 4 > 0]
    assert calibration(scores, right)["error"] == pytest.approx(0)


def test_nothing_and_scores_of_another_scale() -> None:
    assert math.isnan(calibration(np.zeros(0), np.zeros(0, bool))["error"])
    counts = [row["count"] for row in calibration(np.array([-3.0, 7.0]), np.ones(2, bool))["bins"]]
    assert counts == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
