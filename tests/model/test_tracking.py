"""Identities over frames: on shapes that cross, with noise, and in small cases by hand."""

import sys
from typing import NamedTuple

import numpy as np
import pytest
from moving_shapes import MovingFrame, moving_frames
from pycocotools import mask as coco_mask

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.tracking import TrackedFrame, TrackScores, track_scores
from maskrcnn_lit.model.tracking import TRACKERS, MaskIoUTracker, Tracker, build_tracker


def square(x: int, y: int, side: int = 10, size: int = 64) -> dict:
    mask = np.zeros((size, size), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return coco_mask.encode(np.asfortranarray(mask))


def update(tracker: Tracker, masks: list[dict], labels: list[int] | None = None) -> list[int]:
    boxes = np.array([coco_mask.toBbox(mask) for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.full(len(masks), 0.9, np.float32)
    given = np.array(labels or [1] * len(masks), np.int64)
    return tracker.update(boxes, scores, given, masks).tolist()


# Ours, by hand


def test_objects_are_born_followed_and_gone():
    tracker = MaskIoUTracker(lost=2)
    assert update(tracker, []) == []
    assert update(tracker, [square(0, 0), square(30, 30)]) == [1, 2]
    assert update(tracker, [square(33, 30), square(2, 0)]) == [2, 1]  # in another order
    assert update(tracker, [square(3, 0), square(0, 40)]) == [1, 3]  # one missing, one new
    assert update(tracker, [square(33, 30)]) == [2]  # back after one frame
    for _ in range(3):
        assert update(tracker, []) == []
    assert update(tracker, [square(33, 30)]) == [4]  # missing for more than two frames: new


def test_the_best_sum_of_ious_decides_not_the_order():
    """A greedy match would give the first object the second's place."""
    tracker = MaskIoUTracker(least_iou=0.1)
    assert update(tracker, [square(0, 0), square(4, 0)]) == [1, 2]
    assert update(tracker, [square(3, 0), square(7, 0)]) == [1, 2]


def test_below_the_least_iou_it_is_another_object():
    tracker = MaskIoUTracker(least_iou=0.5)
    assert update(tracker, [square(0, 0)]) == [1]
    assert update(tracker, [square(3, 0)]) == [1]  # 70 / 130
    assert update(tracker, [square(7, 0)]) == [2]  # 60 / 140


def test_the_class_decides_between_equals():
    tracker = MaskIoUTracker()
    assert update(tracker, [square(0, 0), square(0, 0)], [1, 2]) == [1, 2]
    assert update(tracker, [square(0, 0), square(0, 0)], [2, 1]) == [2, 1]
    assert update(tracker, [square(1, 0)], [3]) in ([1], [2])  # an uncertain class is no new object


def test_boxes_serve_where_there_are_no_masks():
    tracker = MaskIoUTracker()
    boxes = np.array([[0, 0, 10, 10], [30, 30, 40, 40]], np.float32)
    scores, labels = np.ones(2, np.float32), np.ones(2, np.int64)
    assert tracker.update(boxes, scores, labels, []).tolist() == [1, 2]
    assert tracker.update(boxes[::-1] + 2, scores, labels, []).tolist() == [2, 1]


def test_another_size_of_frames_begins_again():
    tracker = MaskIoUTracker()
    assert update(tracker, [square(0, 0, size=64)]) == [1]
    assert update(tracker, [square(0, 0, size=32)]) == [2]


# All of them, on crossing shapes


class Seen(NamedTuple):
    boxes: np.ndarray
    scores: np.ndarray
    masks: list[dict]
    labels: np.ndarray


def noisy(frame: MovingFrame, rng: np.random.Generator) -> Seen:
    """The true objects as a good detector sees them: in another order, masks and boxes a pixel off,
    scores of 0.75 and more, one in a hundred missed.
    """
    rows = rng.permutation(np.flatnonzero(rng.random(len(frame.ids)) > 0.01))
    masks = [
        np.roll(coco_mask.decode(frame.masks[r]), rng.integers(-1, 2, 2), (0, 1)) for r in rows
    ]
    return Seen(
        (frame.boxes[rows] + rng.normal(0, 0.7, (len(rows), 4))).astype(np.float32),
        rng.uniform(0.75, 1, len(rows)).astype(np.float32),
        [coco_mask.encode(np.asfortranarray(mask)) for mask in masks],
        frame.labels[rows],
    )


def score(name: str, seed: int, occlude: bool) -> TrackScores:
    tracker, rng, tracked = build_tracker(name), np.random.default_rng(seed), []
    for frame in moving_frames(seed, occlude=occlude):
        seen = noisy(frame, rng)
        ids = tracker.update(seen.boxes, seen.scores, seen.labels, seen.masks)
        known = ids > 0
        masks = [mask for mask, is_known in zip(seen.masks, known, strict=True) if is_known]
        ious = np.asarray(coco_mask.iou(frame.masks, masks, [0] * len(masks)))
        tracked.append(TrackedFrame(frame.ids.tolist(), ids[known].tolist(), ious))
    return track_scores(tracked)


@pytest.mark.long
@pytest.mark.parametrize("name", TRACKERS)
def test_crossing_shapes_keep_their_identities(name: str):
    """IDF1 of 0.95 and more without occlusion, and no switch."""
    scores = [score(name, seed, occlude=False) for seed in (1, 2, 3)]
    assert min(one.idf1 for one in scores) >= 0.95, scores
    assert [one.switches for one in scores] == [0, 0, 0]
    assert all(one.true == 300 for one in scores)


@pytest.mark.long
@pytest.mark.parametrize("name", TRACKERS)
def test_shapes_that_hide_one_another_cost_some_identities(name: str):
    scores = [score(name, seed, occlude=True) for seed in (1, 2, 3)]
    assert min(one.idf1 for one in scores) >= 0.6, scores
    assert max(one.switches for one in scores) <= 6, scores


@pytest.mark.parametrize("name", TRACKERS)
def test_frames_without_objects(name: str):
    tracker = build_tracker(name)
    assert update(tracker, []) == []
    for _ in range(4):
        ids = update(tracker, [square(5, 5, 20)])
    assert ids == [1]
    assert update(tracker, []) == []
    for _ in range(4):  # OC-SORT waits again
        ids = update(tracker, [square(5, 5, 20)])
    assert ids == [1]


# Mistakes


def test_an_unknown_tracker_and_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="track=sort must be one of mask_iou, bytetrack, ocsort"):
        build_tracker("sort")
    monkeypatch.setitem(sys.modules, "trackers", None)
    for name in ("bytetrack", "ocsort"):
        with pytest.raises(
            UserError, match=rf"track={name} needs the package trackers, .*maskrcnn_lit\[track\]"
        ):
            build_tracker(name)
    assert isinstance(build_tracker("mask_iou"), MaskIoUTracker)
