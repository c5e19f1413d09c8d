"""Computes precision over recall from matches, like pycocotools' `accumulate`.

Precision only falls between two true positives, so evaluating it at true positives is enough.

Letters: T IoU thresholds, R recall thresholds, K classes, A size ranges, M limits on the detections
of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maskrcnn_lit.evaluation.coco.matching import IGNORED, RIGHT, Floats, Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # R


class Tables(NamedTuple):
    """-1 for a class and size without objects."""

    precision: Floats  # T R K A: the maximum at this recall or more, 0 if not reached
    recall: Floats  # T K A M: with the top 1, 10, ... detections of each image and class


def coco_tables(matches: Matches, max_detections: Sequence[int]) -> Tables:
    """max_detections: the M limits; the last must not exceed that of the matches."""
    _, thresholds, sizes = matches.outcome.shape
    shape = (thresholds, len(RECALLS), matches.classes, sizes)
    precision = np.full(shape, -1.0)
    recall = np.full((thresholds, matches.classes, sizes, len(max_detections)), -1.0)
    starts = np.searchsorted(matches.labels, np.arange(matches.classes + 1))
    for a in range(sizes):
        objects = np.bincount(
            matches.truth_labels[matches.truth_counted[:, a]], minlength=matches.classes
        )
        present = np.flatnonzero(objects).tolist()
        needed = {k: hits_needed(objects[k]) for k in present}
        for t in range(thresholds):
            outcome = matches.outcome[:, t, a]
            hits = np.flatnonzero(outcome == RIGHT)
            for m, limit in enumerate(max_detections):
                true_positives = np.bincount(
                    matches.labels[hits[matches.rank[hits] < limit]], minlength=matches.classes
                )
                recall[t, present, a, m] = true_positives[present] / objects[present]
            counted = np.append(0, np.cumsum(outcome != IGNORED))  # before each detection
            cuts = np.searchsorted(hits, starts)
            for k in present:
                right = hits[cuts[k] : cuts[k + 1]]
                seen = counted[right + 1] - counted[starts[k]]
                best = np.maximum.accumulate(
                    (np.arange(1, len(right) + 1) / (seen + np.spacing(1)))[::-1]
                )[::-1]
                reached = needed[k] <= len(right)
                hit_index = np.maximum(needed[k][reached] - 1, 0)
                precision[t, :, k, a] = 0.0
                if len(right):
                    precision[t, reached, k, a] = best[hit_index]
    return Tables(precision, recall)


def hits_needed(objects: int) -> np.ndarray:
    """R: the number of true positives that reach each recall, for `objects` objects."""
    return np.searchsorted(np.arange(objects + 1) / objects, RECALLS)
