"""Average precision from given IoU, by COCO's rules (cocodataset.org, "Detection evaluation";
pycocotools).

Detections of a class are matched by descending score. Each is matched to the unmatched object of
its class and image with the highest IoU, at least the threshold. An *ignored* object is matched
only if no other qualifies, and its detection is neither a true nor a false positive; a crowd region
is ignored and may be matched any number of times. Precision at a recall is the maximum at that
recall or beyond; AP is its mean over 101 recalls, 0, 0.01 .. 1, and 10 IoU thresholds.

Letters: D detections, N objects and crowd regions of an image; T IoU thresholds, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.sizes import AREAS
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Ints, Pairs
from maskrcnn_lit.evaluation.coco.matching import (
    IGNORED,
    RIGHT,
    THRESHOLDS,
    Candidates,
    Matches,
    assign,
)
from maskrcnn_lit.evaluation.coco.precision import RECALLS

Bools = NDArray[np.bool_]


class Judged(NamedTuple):
    """The detections of all images, in image order, and their outcome at T IoU thresholds."""

    labels: Ints  # D
    scores: Floats  # D
    right: Bools  # T D
    ignored: Bools  # T D: neither true nor false positive
    objects: Ints  # K: number of objects that count


def match(iou: Floats, thresholds: Floats, ignore: Bools, reusable: Bools) -> Ints:
    """T D: the object that each detection of an image is matched to, or -1.

    Args:
        iou: D N, by descending score; 0 where a pair must not match.
        thresholds: T minimum IoUs, ascending.
        ignore: N, whether an object is ignored.
        reusable: N, whether an object may be matched any number of times.
    """
    taken = np.full((len(thresholds), len(iou)), -1, dtype=np.int64)
    detections, objects = np.nonzero(iou >= min(thresholds[0], 1 - 1e-10))
    pairs = Candidates(detections, objects, iou[detections, objects])
    one_group = np.zeros(len(iou), dtype=np.int64)
    counted = ~ignore[:, None]
    for d, chosen in assign(pairs, one_group, thresholds, counted=counted, reusable=reusable):
        taken[:, d] = chosen[..., 0].T
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
    """The outcome of every detection.

    Args:
        pairs: the images.
        classes: K.
        thresholds: T minimum IoUs, ascending.
        boundary: match by `Pairs.boundary_iou`.
        counted: image -> G, the objects that count; the others are ignored. None: all.
        false: image -> D, the detections that are false positives if unmatched; the others are
        ignored. None: all.
        ignored_reusable: an ignored object may be matched any number of times.
    """
    counts = [
        counted(image) if counted else np.ones(len(image.objects), dtype=bool) for image in pairs
    ]
    crowds = [np.ones(len(image.crowd_labels), dtype=bool) for image in pairs]
    ignore = _joined([np.r_[~sound, crowd] for sound, crowd in zip(counts, crowds, strict=True)])
    crowd = _joined(
        [np.r_[np.zeros_like(sound), c] for sound, c in zip(counts, crowds, strict=True)]
    )
    labels = _joined([image.labels for image in pairs], np.int64)
    group = np.repeat(np.arange(len(pairs)), [len(image.labels) for image in pairs]) * classes
    order = np.argsort(
        group + labels, kind="stable"
    )  # the detections of a class by descending score
    near = _candidates(pairs, thresholds, boundary)
    near = near._replace(detection=np.argsort(order)[near.detection])

    object_index = np.full((len(thresholds), len(labels)), -1, dtype=np.int64)
    reusable = ignore if ignored_reusable else crowd
    for d, chosen in assign(
        near, (group + labels)[order], thresholds, counted=~ignore[:, None], reusable=reusable
    ):
        object_index[:, order[d]] = chosen[..., 0].T
    matched = object_index >= 0
    if false is None:
        ignored = np.zeros(object_index.shape, dtype=bool)
    else:
        ignored = ~matched & ~_joined([false(image) for image in pairs])
    if len(ignore):
        ignored |= matched & ignore[object_index]
    objects = _joined(
        [image.object_labels[sound] for image, sound in zip(pairs, counts, strict=True)], np.int64
    )
    return Judged(
        labels=labels,
        scores=_joined([image.scores for image in pairs], np.float64),
        right=matched & ~ignored,
        ignored=ignored,
        objects=np.bincount(objects, minlength=classes),
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any = bool) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def _candidates(pairs: Sequence[Pairs], thresholds: Floats, boundary: bool) -> Candidates:
    """The candidate pairs of all images. Detections and objects (crowd regions after the objects of
    their image) are numbered consecutively.
    """
    least = min(thresholds[0], 1 - 1e-10)
    detections, objects, overlaps = [], [], []
    first_detection = first_object = 0
    for image in pairs:
        iou = image.of_one_class(image.boundary_iou if boundary else None)
        d, g = np.nonzero(iou >= least)
        detections.append(d + first_detection)
        objects.append(g + first_object)
        overlaps.append(iou[d, g])
        first_detection += iou.shape[0]
        first_object += iou.shape[1]
    return Candidates(
        _joined(detections, np.int64), _joined(objects, np.int64), _joined(overlaps, np.float64)
    )


def judged_at_50(matches: Matches) -> Judged:
    """The matches of `match_results` at IoU 0.5 (T = 1), for objects of all sizes."""
    outcome = matches.outcome[None, :, 0, 0]
    objects = np.bincount(
        matches.truth_labels[matches.truth_counted[:, 0]], minlength=matches.classes
    )
    return Judged(matches.labels, matches.scores, outcome == RIGHT, outcome == IGNORED, objects)


def judge_size(pairs: Sequence[Pairs], classes: int, size: str) -> Judged:
    """COCO's area ranges: objects of another size are ignored, and so are unmatched detections of
    another size. `size` is a key of AREAS.
    """
    low, high = AREAS[size]
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
            selected = own[~ignored[own]]
            result[k, t] = interpolated(right[selected], int(judged.objects[k])).mean()
    return result


def interpolated(right: Bools, objects: int) -> Floats:
    """101: precision at RECALLS. `right`: of the detections of a class, by descending score;
    `objects`: at least 1.
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
    """The mean of the values that are not NaN; None if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
