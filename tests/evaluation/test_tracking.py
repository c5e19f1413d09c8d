"""IDF1 and switches against values computed by hand, and against the package trackers."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from maskrcnn_lit.evaluation.tracking import TrackedFrame, count_switches, track_scores


def frame(pairs: dict[str, int | None], extra: Sequence[int] = (), iou: float = 1.0):
    """Each object with the identity of the prediction on it, or None; `extra` lie on nothing."""
    truth = list(pairs)
    predicted = [number for number in pairs.values() if number is not None] + list(extra)
    ious = np.zeros((len(truth), len(predicted)))
    for t, name in enumerate(truth):
        if pairs[name] is not None:
            ious[t, predicted.index(pairs[name])] = iou
    return TrackedFrame(truth, predicted, ious)


@pytest.mark.parametrize(
    ("frames", "idf1", "switches"),
    [
        # all right
        ([frame({"a": 1, "b": 2})] * 4, 1.0, 0),
        # object a: 1 1 2 2. Half of its detections have the right identity: 2 * 2 / (4 + 4).
        ([frame({"a": 1})] * 2 + [frame({"a": 2})] * 2, 0.5, 1),
        # a: 1 1 1 2, 2 * 3 / (4 + 4)
        ([frame({"a": 1})] * 3 + [frame({"a": 2})], 0.75, 1),
        # two objects exchange their identities after 3 of 4: 6 of 8 are right, two switches
        ([frame({"a": 1, "b": 2})] * 3 + [frame({"a": 2, "b": 1})], 0.75, 2),
        # a is missed in one of 4 frames, and comes back as itself: 2 * 3 / (4 + 3)
        ([frame({"a": 1})] * 2 + [frame({"a": None}), frame({"a": 1})], 6 / 7, 0),
        # and comes back as another: 2 * 2 / (4 + 3)
        ([frame({"a": 1})] * 2 + [frame({"a": None}), frame({"a": 2})], 4 / 7, 1),
        # a false detection in each frame: 2 * 4 / (4 + 8)
        ([frame({"a": 1}, [7])] * 4, 2 / 3, 0),
        # 1 follows a and then b: it is right for one of them, 2 * 2 / (4 + 4); no object switches
        ([frame({"a": 1})] * 2 + [frame({"b": 1})] * 2, 0.5, 0),
        # below the threshold: nothing is found
        ([frame({"a": 1}, iou=0.49)] * 4, 0.0, 0),
        ([frame({"a": 1}, iou=0.5)] * 4, 1.0, 0),
        ([frame({"a": None})] * 3, 0.0, 0),
        ([frame({}, [1])] * 3, 0.0, 0),
    ],
)
def test_values_by_hand(frames: list[TrackedFrame], idf1: float, switches: int):
    scores = track_scores(frames)
    assert scores.idf1 == pytest.approx(idf1)
    assert scores.switches == switches
    assert scores.true == sum(len(one.truth) for one in frames)
    assert scores.predicted == sum(len(one.predicted) for one in frames)


def test_an_object_stays_with_its_identity_where_another_overlaps_more():
    before = frame({"a": 1})
    close = TrackedFrame(["a"], [1, 2], np.array([[0.6, 0.9]]))
    assert count_switches([before, close, close]) == 0
    assert count_switches([close, close]) == 0
    gone = TrackedFrame(["a"], [1, 2], np.array([[0.4, 0.9]]))
    assert count_switches([before, gone]) == 1


def test_the_sum_of_ious_decides_between_new_pairs():
    """The pairs (a, 1) and (b, 2) have 1.4 together, the others 1.2."""
    crowded = TrackedFrame(["a", "b"], [1, 2], np.array([[0.9, 0.6], [0.6, 0.5]]))
    assert count_switches([crowded, frame({"a": 1, "b": 2})]) == 0
    assert count_switches([crowded, frame({"a": 2, "b": 1})]) == 2


def test_nothing_has_no_score():
    assert math.isnan(track_scores([]).idf1)
    assert math.isnan(track_scores([frame({})] * 3).idf1)


def test_the_package_trackers_computes_the_same():
    # Here, not above: they import OpenCV, which sets variables of the process.
    from trackers.eval.clear import compute_clear_metrics
    from trackers.eval.identity import compute_identity_metrics

    rng = np.random.default_rng(0)
    for _ in range(20):
        frames = []
        for _ in range(12):
            t, p = rng.integers(0, 5, 2)
            truth = rng.permutation(5)[:t]
            predicted = rng.permutation(6)[:p]
            same = truth[:, None] == predicted[None]
            ious = np.where(same, rng.uniform(0.3, 1, (t, p)), rng.uniform(0, 0.6, (t, p)))
            frames.append(TrackedFrame(truth.tolist(), predicted.tolist(), ious))
        ids = [[np.array(one.truth) for one in frames], [np.array(one.predicted) for one in frames]]
        theirs = compute_identity_metrics(*ids, [one.ious for one in frames])
        assert track_scores(frames).idf1 == pytest.approx(theirs["IDF1"])
        clear = compute_clear_metrics(*ids, [one.ious for one in frames])
        assert track_scores(frames).switches == clear["IDSW"]
