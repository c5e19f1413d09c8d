"""Precision, recall and F1 against counting at each threshold anew."""

import math

import numpy as np
import pytest
from box_scenes import random_scene

from maskrcnn_lit.evaluation.analysis.average_precision import judge
from maskrcnn_lit.evaluation.analysis.curves import best_point, class_curve, curve, thinned
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs


@pytest.mark.parametrize("seed", range(5))
def test_each_point_is_counted_from_its_threshold_on(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, right = rng.random(80).round(1), rng.random(80) < 0.4
    points = curve(scores, right, 50)
    assert points.thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
    for threshold, recall, precision, f1 in zip(*points, strict=True):
        kept = scores >= threshold
        hits = (right & kept).sum()
        assert recall == hits / 50
        assert precision == hits / kept.sum()
        assert f1 == pytest.approx(0 if not hits else 2 * precision * recall / (precision + recall))


def test_the_best_point_is_the_highest_f1_and_of_equal_ones_the_higher_score() -> None:
    # F1: 2/3, 2/4, 4/5 = right at 0.9 and 0.7 of two objects
    assert best_point(curve(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)) == 2
    # one of one object; then F1 falls and comes back to 2/3 = 4/6
    points = curve(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, False, True]), 2)
    assert points.f1[0] == points.f1[3] == 2 / 3
    assert best_point(points) == 0


def test_no_best_point_without_objects_or_anything_right() -> None:
    points = curve(np.array([0.9]), np.array([False]), 0)
    assert best_point(points) is None
    assert math.isnan(points.recall[0])
    assert points.precision.tolist() == [0]
    assert best_point(curve(np.array([0.9]), np.array([False]), 3)) is None
    assert best_point(curve(np.zeros(0), np.zeros(0, bool), 3)) is None
    assert best_point(curve(np.zeros(0), np.zeros(0, bool), 0)) is None


def test_thinned_keeps_first_last_and_best() -> None:
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.linspace(0, 1, 1000))
    points = curve(scores, rng.random(1000) < scores, 600)
    few = thinned(points)
    assert 190 < len(few.f1) <= 201
    assert (np.diff(few.thresholds) < 0).all()
    assert few.f1.max() == points.f1.max()
    assert few.thresholds[[0, -1]].tolist() == points.thresholds[[0, -1]].tolist()
    assert thinned(few) is few


def test_a_class_and_all_of_them() -> None:
    truth, results = random_scene(3)
    judged = judge(list(image_pairs(truth, results)), 3)
    for label in range(3):
        kept = (judged.labels == label) & ~judged.ignored[0]
        points = class_curve(judged, label)
        assert points.recall[-1] == judged.right[0, kept].sum() / judged.objects[label]
        assert points.precision[-1] == judged.right[0, kept].mean()
    assert judged.ignored[0].any()
    pooled = class_curve(judged, None)
    assert pooled.recall[-1] == judged.right[0].sum() / judged.objects.sum()
    strict = class_curve(judged, None, row=9)
    assert strict.recall[-1] < pooled.recall[-1]
