"""Average precision from given IoU, by COCO's rules (cocodataset.org, "Detection evaluation";
pycocotools).

Detections of a class are taken best first. Each takes the object of its class and image with the
highest IoU, of at least the threshold, that none has taken yet. An *ignored* object is taken only
where no other will do, and makes its detection neither right nor wrong; a crowd region is ignored
and may be taken any number of times. Precision at a recall is the highest at that recall or beyond;
AP is its mean over 101 recalls, 0, 0.01 .. 1, and 10 IoU thresholds.

Letters: D detections, N objects and crowd regions of an image; T IoU thresholds, K classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.evaluation.analysis.pairs import Floats, Ints, Pairs
from maskrcnn_lit.evaluation.coco.matching import IGNORED, RIGHT, THRESHOLDS, Matches
from maskrcnn_lit.evaluation.coco.precision import RECALLS

Bools = NDArray[np.bool_]

SIZES = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}  # pixels, both ends included


class Judged(NamedTuple):
    """The detections of all images, in the order of the images, with what each is at T thresholds."""

    labels: Ints  # D
    scores: Floats  # D
    right: Bools  # T D
    ignored: Bools  # T D: neither right nor wrong
    objects: Ints  # K: how many count


def match(iou: Floats, thresholds: Floats, ignore: Bools, reusable: Bools) -> Ints:
    """T D: which of the N each detection takes, or -1.

    iou: D N, best detection first; 0 where a pair may not match.
    ignore, reusable: N: objects that are ignored, and those that may be taken any number of times.
    """
    taken = np.full((len(thresholds), len(iou)), -1, dtype=np.int64)
    if not iou.size:
        return taken
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]
    free = np.ones((len(thresholds), iou.shape[1]), dtype=bool)
    rows = np.arange(len(thresholds))
    for d in np.flatnonzero(iou.max(1) >= limits.min()).tolist():
        fits = (iou[d] >= limits) & free
        sound = fits & ~ignore
        fits = np.where(sound.any(1, keepdims=True), sound, fits)
        # of equal ones the last, as pycocotools does
        best = iou.shape[1] - 1 - np.where(fits, iou[d], -1.0)[:, ::-1].argmax(1)
        hit = fits[rows, best]
        taken[hit, d] = best[hit]
        free[rows[hit], best[hit]] = reusable[best[hit]]
    return taken


def judge(
    pairs: Sequence[Pairs],
    classes: int,
    thresholds: Floats = THRESHOLDS,
    *,
    boundary: bool = False,
    counted: Callable[[Pairs], Bools] | None = None,
    false: Callable[[Pairs], Bools] | None = None,
    ignored_reusable: bool = False,
) -> Judged:
    """What each detection is.

    Args: pairs: the images. classes: K. boundary: match by `Pairs.boundary_iou`. counted: which of
        the G objects of an image count; the others are ignored. None: all. false: which of the D
        detections of an image are wrong if they take nothing; the others are ignored. None: all.
        ignored_reusable: an ignored object may be taken any number of times.
    """
    right, ignored, objects = [], [], np.zeros(classes, dtype=np.int64)
    for image in pairs:
        sound = counted(image) if counted else np.ones(len(image.objects), dtype=bool)
        objects += np.bincount(image.object_labels[sound], minlength=classes)
        crowd = np.ones(len(image.crowd_labels), dtype=bool)
        ignore = np.concatenate([~sound, crowd])
        reusable = ignore if ignored_reusable else np.concatenate([np.zeros_like(sound), crowd])
        taken = match(
            image.of_one_class(image.boundary_iou if boundary else None),
            thresholds,
            ignore,
            reusable,
        )
        passed = np.zeros(taken.shape, dtype=bool) if false is None else (taken < 0) & ~false(image)
        if len(ignore):
            passed |= (taken >= 0) & ignore[taken]
        right.append((taken >= 0) & ~passed)
        ignored.append(passed)
    empty = np.zeros((len(thresholds), 0), dtype=bool)
    return Judged(
        labels=np.concatenate([np.zeros(0, dtype=np.int64), *(image.labels for image in pairs)]),
        scores=np.concatenate([np.zeros(0), *(image.scores for image in pairs)]),
        right=np.hstack([empty, *right]),
        ignored=np.hstack([empty, *ignored]),
        objects=objects,
    )


def judged_at_50(matches: Matches) -> Judged:
    """What `match_results` found, at IoU 0.5 (T = 1) and of objects of all sizes."""
    outcome = matches.outcome[None, :, 0, 0]
    objects = np.bincount(
        matches.truth_labels[matches.truth_counted[:, 0]], minlength=matches.classes
    )
    return Judged(matches.labels, matches.scores, outcome == RIGHT, outcome == IGNORED, objects)


def judge_size(pairs: Sequence[Pairs], classes: int, size: str) -> Judged:
    """COCO's area ranges: objects of another size are ignored, and so is a detection of another
    size that takes nothing. `size` is one of SIZES.
    """
    low, high = SIZES[size]
    return judge(
        pairs,
        classes,
        counted=lambda image: (image.object_areas >= low) & (image.object_areas <= high),
        false=lambda image: (image.areas >= low) & (image.areas <= high),
    )


def average_precision(judged: Judged) -> Floats:
    """K T: AP of each class at each IoU threshold, NaN for a class without objects."""
    result = np.full((len(judged.objects), len(judged.right)), np.nan)
    for k in np.flatnonzero(judged.objects).tolist():
        own = np.flatnonzero(judged.labels == k)
        own = own[np.argsort(-judged.scores[own], kind="stable")]
        for t, (right, ignored) in enumerate(zip(judged.right, judged.ignored, strict=True)):
            kept = own[~ignored[own]]
            result[k, t] = interpolated(right[kept], int(judged.objects[k])).mean()
    return result


def interpolated(right: Bools, objects: int) -> Floats:
    """101: precision at RECALLS. `right`: of the detections of a class, best first; `objects`: at
    least 1.
    """
    precision = np.zeros(len(RECALLS))
    if len(right):
        hits = right.cumsum()
        highest = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
        places = np.searchsorted(hits / objects, RECALLS, side="left")
        reached = places < len(right)
        precision[reached] = highest[places[reached]]
    return precision


def mean(values: Floats) -> float | None:
    """Of those that are defined; None where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
