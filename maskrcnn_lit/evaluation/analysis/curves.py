"""Precision, recall and F1 against the score threshold, at one IoU; the best threshold of a class.

At a threshold s, detections with a score of s or more count: precision is the share of right ones,
recall the share of detected objects, F1 their harmonic mean, 2 right / (detections + objects).
Detections that COCO ignores (on crowd regions) are excluded. Letters: D detections, P points of a
curve.
"""

from typing import NamedTuple

import numpy as np

from maskrcnn_lit.evaluation.analysis.average_precision import Bools, Floats, Judged

POINTS = 201  # maximum number of points of a drawn curve


class Curve(NamedTuple):
    """P points each, by descending score."""

    thresholds: Floats
    recall: Floats  # NaN without objects
    precision: Floats
    f1: Floats  # NaN without objects


def curve(scores: Floats, right: Bools, objects: int) -> Curve:
    """The curve of D detections, in any order: one point for each distinct score."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], right[order].cumsum()
    last = np.flatnonzero(
        np.r_[scores[1:] != scores[:-1], True][: len(scores)]
    )  # the last detection of each distinct score
    count, hits = last + 1.0, hits[last]
    if not objects:
        undefined = np.full(len(last), np.nan)
        return Curve(scores[last], undefined, hits / count, undefined)
    return Curve(scores[last], hits / objects, hits / count, 2 * hits / (count + objects))


def class_curve(judged: Judged, label: int | None, row: int = 0) -> Curve:
    """The curve of class `label`, or of all classes pooled (None), at IoU threshold number `row` of
    `judged`.
    """
    selected = ~judged.ignored[row]
    if label is not None:
        selected &= judged.labels == label
    objects = judged.objects.sum() if label is None else judged.objects[label]
    return curve(judged.scores[selected], judged.right[row, selected], int(objects))


def best_point(points: Curve) -> int | None:
    """The index of the point with the highest F1, for a tie the one with the highest score. None if
    no F1 is above 0: there are no objects or no true positives.
    """
    if not len(points.f1) or not np.nanmax(points.f1, initial=0.0) > 0:
        return None
    return int(np.nanargmax(points.f1))


def thinned(points: Curve, count: int = POINTS) -> Curve:
    """At most `count` evenly spaced points, including the first, the last and the best."""
    total, best = len(points.f1), best_point(points)
    if total <= count:
        return points
    places = np.linspace(0, total - 1, count - 1).round().astype(np.int64)
    if best is not None:
        places = np.unique(np.r_[places, best])
    return Curve(*(values[places] for values in points))
