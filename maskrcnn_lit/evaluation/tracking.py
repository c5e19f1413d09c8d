"""Scores identities over the frames of a video: IDF1, and identity switches.

IDF1 (Ristani et al. 2016) matches whole trajectories one to one so that most detections have the
right identity. Switches (CLEAR MOT, Bernardin and Stiefelhagen 2008) count how often an object
changes its identity from one frame, where it is found, to the next. Letters: T true objects of a
frame, P predicted ones.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


class TrackedFrame(NamedTuple):
    """One frame.

    Attributes:
        truth: T identities, each once.
        predicted: P identities, each once.
        ious: T P, 0..1.
    """

    truth: Sequence[Hashable]
    predicted: Sequence[Hashable]
    ious: NDArray[np.float64]


class TrackScores(NamedTuple):
    """idf1: 0..1, NaN without any object and prediction. switches: their number. true, predicted:
    the numbers of detections.
    """

    idf1: float
    switches: int
    true: int
    predicted: int


def track_scores(frames: Iterable[TrackedFrame], least_iou: float = 0.5) -> TrackScores:
    """Score a video; a prediction is on an object at an IoU of `least_iou` or more."""
    frames = [frame._replace(ious=_table(frame)) for frame in frames]
    true = sum(len(frame.truth) for frame in frames)
    predicted = sum(len(frame.predicted) for frame in frames)
    right = _identity_matches(frames, least_iou)
    idf1 = 2 * right / (true + predicted) if true + predicted else float("nan")
    return TrackScores(idf1, count_switches(frames, least_iou), true, predicted)


def count_switches(frames: Iterable[TrackedFrame], least_iou: float = 0.5) -> int:
    """How often an object has another identity than when it was found before.

    In each frame the pairs of the frame before stay where they still overlap, and the others are
    matched at the largest sum of IoUs, as TrackEval does.
    """
    last: dict[Hashable, Hashable] = {}  # the identity of each object when it was found last
    before: dict[Hashable, Hashable] = {}  # the same in the frame before
    switches = 0
    for frame in frames:
        if not len(frame.truth) or not len(frame.predicted):
            continue
        ious = _table(frame)
        stays = [[before.get(t, _NOBODY) == p for p in frame.predicted] for t in frame.truth]
        worth = np.where(ious >= least_iou, ious + _STAYS * np.array(stays), 0.0)
        before = {frame.truth[t]: frame.predicted[p] for t, p in _pairs(worth)}
        switches += sum(last.get(t, p) != p for t, p in before.items())
        last |= before
    return switches


_STAYS = 1000  # more than the IoUs of a frame together

_NOBODY = object()


def _identity_matches(frames: Sequence[TrackedFrame], least_iou: float) -> int:
    """IDTP: the largest number of detections with the right identity under a one-to-one match of
    true and predicted trajectories.
    """
    truths = _numbered(identity for frame in frames for identity in frame.truth)
    predictions = _numbered(identity for frame in frames for identity in frame.predicted)
    together = np.zeros((len(truths), len(predictions)))
    for frame in frames:
        for t, p in np.argwhere(frame.ious >= least_iou).tolist():
            together[truths[frame.truth[t]], predictions[frame.predicted[p]]] += 1
    return int(sum(together[t, p] for t, p in _pairs(together)))


def _table(frame: TrackedFrame) -> NDArray[np.float64]:
    """The IoUs as T P, also where one of them is 0."""
    return np.asarray(frame.ious, np.float64).reshape(len(frame.truth), len(frame.predicted))


def _numbered(identities: Iterable[Hashable]) -> dict[Hashable, int]:
    return {identity: number for number, identity in enumerate(dict.fromkeys(identities))}


def _pairs(worth: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Rows and columns of the one-to-one match with the largest sum, without those of no worth."""
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return [
        (int(row), int(column))
        for row, column in zip(rows, columns, strict=True)
        if worth[row, column] > 0
    ]
