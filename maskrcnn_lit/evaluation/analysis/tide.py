"""The AP lost to each kind of error: TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for
Identifying Object Detection Errors", arXiv:2008.08115, sections 2.2 and 2.3).

A detection is a false positive if COCO's rules match it to no object at IoU t_f = 0.5 (on a crowd
region it is ignored). Each has one kind (section 2.2), the first that applies in the order of the
authors' code; `own` is its highest IoU with an object of its class, `other` with one of another
class, t_b = 0.1:

localisation    t_b <= own < t_f: the right class in the wrong place
classification  other >= t_f: in the right place, of the wrong class
duplicate       own >= t_f: the object is taken by a detection with a higher score
background      own and other <= t_b: there is nothing
both            the rest: t_b < other < t_f, of the wrong class and in the wrong place

An object is *missed* if no detection is matched to it and no localization or classification error
targets it.

The weight of a kind is the rise of AP50 if only this kind is fixed (section 2.3). A localization or
classification error becomes right, with its own score, if its object is unmatched, but only the
best of several on one object; the others are removed. Errors of kind both, duplicate and background
are removed. Missed objects are removed from the denominator of recall. In addition: AP50 without
false positives, and AP50 with recall over the detected objects only. A rise is at least 0, since
the 101 points of AP may turn a gain into a tiny loss. Means are over classes with objects; a class
that loses all of its objects is left out if it has no detections, else has AP 0.

In the authors' code localization and classification errors compete for an object, so a better error
of one kind blocks the other; here, as in the paper, each kind is fixed separately.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.evaluation.analysis.average_precision import Bools, Floats, interpolated, match
from maskrcnn_lit.evaluation.analysis.pairs import Ints, Pairs

FOREGROUND, BACKGROUND = 0.5, 0.1

RIGHT = "right"

KINDS = ("classification", "localisation", "both", "duplicate", "background")


class Verdicts(NamedTuple):
    """All detections that are not ignored, in image order, and all objects."""

    labels: Ints  # D
    scores: Floats  # D
    kinds: NDArray[np.str_]  # D: RIGHT or one of KINDS
    targets: Ints  # D: the object of a localization or classification error, else -1
    object_labels: Ints  # G
    found: Bools  # G: matched by a detection
    missed: Bools  # G


def error_shares(pairs: Sequence[Pairs], classes: int) -> dict[str, Any]:
    """{"ap50", each of KINDS, "missed", "false_positives", "false_negatives", "counts": {kind or
    "missed": n}}, with the rises of AP50, 0..1; NaN without objects.
    """
    verdicts = judge_errors(pairs)
    labels, right = verdicts.labels, verdicts.kinds == RIGHT
    objects = _count(verdicts.object_labels, classes)
    everything = np.ones(len(labels), dtype=bool)
    ap50 = _ap50(labels, verdicts.scores, right, everything, objects, objects)

    def rise(labels: Ints, right: Bools, selected: Bools, objects_left: Ints) -> float:
        fixed = _ap50(labels, verdicts.scores, right, selected, objects, objects_left)
        return max(fixed - ap50, 0.0) if not np.isnan(ap50) else np.nan

    shares: dict[str, Any] = {"ap50": ap50}
    for kind in KINDS:
        fixed = _corrected(verdicts, kind)
        corrected = labels.copy()
        corrected[fixed] = verdicts.object_labels[verdicts.targets[fixed]]
        shares[kind] = rise(corrected, right | fixed, (verdicts.kinds != kind) | fixed, objects)
    unreachable = _count(verdicts.object_labels[verdicts.missed], classes)
    shares["missed"] = rise(labels, right, everything, objects - unreachable)
    shares["false_positives"] = rise(labels, right, right, objects)
    shares["false_negatives"] = rise(
        labels, right, everything, _count(verdicts.object_labels[verdicts.found], classes)
    )
    counts = {kind: int((verdicts.kinds == kind).sum()) for kind in KINDS}
    return shares | {"counts": counts | {"missed": int(verdicts.missed.sum())}}


def judge_errors(pairs: Sequence[Pairs]) -> Verdicts:
    """The kind of each detection, and whether each object was detected or missed."""
    parts, begin = [], 0
    for image in pairs:
        parts.append(_image_verdicts(image, begin))
        begin += len(image.objects)
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Verdicts(none, np.zeros(0), none.astype(str), none, none, none > 0, none > 0)
    return Verdicts(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _image_verdicts(image: Pairs, begin: int) -> Verdicts:
    """The verdicts of one image; its objects are numbered from `begin`."""
    count = len(image.objects)
    crowd = np.arange(count + len(image.crowd_labels)) >= count
    (taken,) = match(image.of_one_class(), np.array([FOREGROUND]), crowd, crowd)
    same = image.labels[:, None] == image.object_labels
    first = np.zeros((len(image.labels), 1))  # gives a maximum without objects, too
    own_ious, other_ious = (
        np.hstack([first, np.where(chosen, image.iou, 0.0)]) for chosen in (same, ~same)
    )
    own, other = own_ious.max(1), other_ious.max(1)
    placed = [
        (taken >= 0, RIGHT),
        ((own >= BACKGROUND) & (own < FOREGROUND), "localisation"),
        (other >= FOREGROUND, "classification"),
        (own >= FOREGROUND, "duplicate"),
        (other <= BACKGROUND, "background"),
    ]
    kinds = np.select([where for where, _ in placed], [name for _, name in placed], "both")
    targets = np.select(
        [kinds == "localisation", kinds == "classification"],
        [own_ious.argmax(1) - 1, other_ious.argmax(1) - 1],
        -1,
    )
    found = np.isin(np.arange(count), taken)
    missed = ~found & ~np.isin(np.arange(count), targets)
    on_crowd = taken >= count
    targets = np.where(targets >= 0, targets + begin, -1)
    labels, scores, kinds, targets = (
        values[~on_crowd] for values in (image.labels, image.scores, kinds, targets)
    )
    return Verdicts(labels, scores, kinds, targets, image.object_labels, found, missed)


def _corrected(verdicts: Verdicts, kind: str) -> Bools:
    """D: the errors of `kind` that become right: the best on each undetected object."""
    fixed = np.zeros(len(verdicts.labels), dtype=bool)
    errors = np.flatnonzero((verdicts.kinds == kind) & (verdicts.targets >= 0))
    errors = errors[~verdicts.found[verdicts.targets[errors]]]
    errors = errors[np.argsort(-verdicts.scores[errors], kind="stable")]
    _, best = np.unique(verdicts.targets[errors], return_index=True)
    fixed[errors[best]] = True
    return fixed


def _count(labels: Ints, classes: int) -> Ints:
    return np.bincount(labels, minlength=classes)


def _ap50(
    labels: Ints, scores: Floats, right: Bools, selected: Bools, objects: Ints, objects_left: Ints
) -> float:
    """Mean AP of the detections in `kept`, over the classes with `objects`, the remaining numbers
    of objects.
    """
    values = []
    for k in np.flatnonzero(objects).tolist():
        own = np.flatnonzero((labels == k) & selected)
        own = own[np.argsort(-scores[own], kind="stable")]
        if objects_left[k]:
            values.append(interpolated(right[own], int(objects_left[k])).mean())
        elif len(own):
            values.append(0.0)
    return float(np.mean(values)) if values else float("nan")
