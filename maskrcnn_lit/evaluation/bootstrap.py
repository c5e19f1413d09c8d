"""Confidence of an AP: bootstrap over images (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapters 13 and 16), for one set of matches or for two on the same images.

A resample draws as many images as there are, with replacement: image i counts w_i times, and so do
its objects and detections. Matches are not recomputed. Copies of a detection are adjacent in the
ranking. If each image is drawn once, the AP equals COCO's AP.

AP uses the best precision at a recall or more, so it is biased upwards: resamples, in which images
repeat, score about half a point higher than the data. The percentiles are shifted to the value of
the data. The interval covers the AP of other sets of as many images.

Letters: B resamples, I images, K classes, T IoU thresholds, N detections and H right ones of a
class.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.evaluation.coco.matching import IGNORED, RIGHT, Floats, Ints, Matches
from maskrcnn_lit.evaluation.coco.precision import RECALLS

RESAMPLES = 1000

_AT_ONCE = 500  # resamples per block, to amortize NumPy's overhead

_BYTES = (
    64 * 2**20
)  # limit for an array of a class: classes with many rows use fewer resamples per block


class Interval(NamedTuple):
    """value: of the original data; interval: its 95 % interval."""

    value: float
    interval: tuple[float, float]


class Difference(NamedTuple):
    """value: the first minus the second; interval: its 95 % interval; p_value: two-sided."""

    value: float
    interval: tuple[float, float]
    p_value: float


class Resampled(NamedTuple):
    """value: the AP of the original data; drawn: B, the AP of each resample; objects: N 2, image
    and class of each object.
    """

    value: float
    drawn: Floats
    objects: Ints


def resample(matches: Matches, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """AP on each resample. The resamples depend only on the number of images and the seed."""
    drawn = weighted_ap(matches, draw_weights(matches.images, resamples, seed))
    return Resampled(_value(matches), drawn, _objects(matches))


def mean_resampled(several: Sequence[Resampled]) -> Resampled:
    """The mean AP of several runs on the same images. ValueError: their objects differ."""
    _check_same(several)
    value = float(np.mean([one.value for one in several]))
    return Resampled(value, np.mean([one.drawn for one in several], axis=0), several[0].objects)


def bootstrap_ap(matches: Matches, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """AP with its interval; NaN if no image has an object."""
    drawn = resample(matches, resamples=resamples, seed=seed)
    low, high = np.clip(_interval(drawn.value, _deviations(drawn.drawn)), 0, 1).tolist()
    return Interval(drawn.value, (low, high))


def paired_bootstrap(
    first: Matches, second: Matches, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """AP of `first` minus AP of `second`, both on every resample of the same images; see
    `difference`.
    """
    return difference(*(resample(one, resamples=resamples, seed=seed) for one in (first, second)))


def difference(first: Resampled, second: Resampled) -> Difference:
    """AP of `first` minus AP of `second`.

    p_value: the share of resamples, the data itself among them, that deviate from their mean by the
    difference or more (chapter 16.2: resampled under no difference). ValueError: their objects
    differ.
    """
    _check_same([first, second])
    value = first.value - second.value
    deviations = _deviations(first.drawn - second.drawn)
    beyond = np.count_nonzero(np.abs(deviations) >= abs(value))
    return Difference(value, _interval(value, deviations), (beyond + 1) / (len(deviations) + 1))


def intervals(
    matches: Mapping[str, Matches], *, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """ "val/box_ap" and "val/mask_ap" -> the 95 % interval; None if no image has an object."""
    bootstrapped = {
        f"val/{kind}_ap": bootstrap_ap(of_kind, seed=seed) for kind, of_kind in matches.items()
    }
    return {
        name: None if math.isnan(ap.value) else ap.interval for name, ap in bootstrapped.items()
    }


def differences(
    first: Mapping[str, Matches], second: Mapping[str, Matches], *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """ "val/box_ap" and "val/mask_ap", if both have them -> the fields of their `Difference`."""
    both = [kind for kind in first if kind in second]
    return {
        f"val/{kind}_ap": paired_bootstrap(first[kind], second[kind], seed=seed)._asdict()
        for kind in both
    }


def draw_weights(images: int, resamples: int, seed: int) -> NDArray[np.int32]:
    """I B: how often each resample draws each image."""
    rng = np.random.default_rng(seed)
    drawn = (
        rng.multinomial(images, np.full(images, 1 / images), resamples)
        if images
        else np.zeros((resamples, 0))
    )
    return np.ascontiguousarray(drawn.T, dtype=np.int32)


def weighted_ap(matches: Matches, weights: NDArray[np.int32]) -> Floats:
    """B: AP over classes and thresholds if image i counts weights[i] times (I B); NaN without an
    object.
    """
    at_once = min(_AT_ONCE, max(1, _BYTES // (8 * _most_rows(matches))))
    parts = [weights[:, b : b + at_once] for b in range(0, weights.shape[1], at_once)]
    with ThreadPoolExecutor(2) as pool:  # NumPy releases the GIL while it computes
        return np.concatenate([np.zeros(0), *pool.map(lambda part: _mean_ap(matches, part), parts)])


def _most_rows(matches: Matches) -> int:
    """The maximum number of rows of an array with B columns: images, or objects, true positives or
    detections between them of a class.
    """
    most = max(1, matches.images, int(np.bincount(matches.truth_labels, minlength=1).max()))
    right = (matches.outcome[:, :, 0] == RIGHT).any(1)
    for k in np.unique(matches.labels[right]).tolist():
        at = np.flatnonzero(right[matches.labels == k])
        most = max(most, len(at), int(np.diff(at, prepend=-1).max()))
    return most


def _mean_ap(matches: Matches, weights: NDArray[np.int32]) -> Floats:
    weights = np.ascontiguousarray(weights)
    starts = np.searchsorted(matches.labels, np.arange(matches.classes + 1))
    counted = matches.truth_counted[:, 0]
    total, present = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for k in np.unique(matches.truth_labels[counted]).tolist():
        objects = weights[matches.truth_image[counted & (matches.truth_labels == k)]].sum(0)
        own = slice(starts[k], starts[k + 1])
        total += np.where(
            objects > 0,
            _class_ap(matches.image[own], matches.outcome[own, :, 0], weights, objects),
            0,
        )
        present += objects > 0
    return np.divide(total, present, out=np.full(len(total), np.nan), where=present > 0)


def _class_ap(
    image: Ints, outcome: NDArray[np.int8], weights: NDArray[np.int32], objects: Ints
) -> Floats:
    """B: mean AP over T of a class. image: N, outcome: N T, by descending score; objects: B."""
    rights = outcome == RIGHT
    at = np.flatnonzero(
        rights.any(1)
    )  # true positives at some threshold: precision is needed only there
    always = ~(outcome == IGNORED).any(1)
    seen = _sums_at(image, np.flatnonzero(always), at, weights)
    total = np.zeros(weights.shape[1])
    for t in range(outcome.shape[1]):
        hits = np.flatnonzero(rights[at, t])
        if len(hits):
            sometimes = np.flatnonzero(~always & (outcome[:, t] != IGNORED))
            shown = seen[hits] + _sums_at(image, sometimes, at[hits], weights)
            total += _average_precision(_running_sum(weights[image[at[hits]]]), shown, objects)
    return total / outcome.shape[1]


def _average_precision(right: Any, shown: Any, objects: Ints) -> Floats:
    """B: the mean over the recalls of the maximum precision at that recall or more.

    right, shown: H B, the numbers of true positives and of all detections up to and including each
    true positive.
    """
    precision = right / (shown + np.spacing(1))
    for row in range(len(precision) - 2, -1, -1):
        np.maximum(precision[row], precision[row + 1], out=precision[row])
    reached = recalls_reached(right, objects)
    reached[1:] -= reached[:-1].copy()
    return np.einsum("hb,hb->b", precision, reached) / len(RECALLS)


def recalls_reached(right: Any, objects: Any) -> NDArray[np.int32]:
    """H B: the number of RECALLS that `right` (H B) of `objects` (B) reach, with COCO's float
    comparison.
    """
    recall = right / np.maximum(objects, 1)
    low = (recall * (len(RECALLS) - 1)).astype(np.int32)  # rounding may be off by one
    edges = np.append(RECALLS, np.inf)
    return low + (edges[low] <= recall) + (edges[np.minimum(low + 1, len(RECALLS))] <= recall)


def _sums_at(image: Ints, counted: Ints, at: Ints, weights: NDArray[np.int32]) -> NDArray[np.int32]:
    """len(at) B: the summed weights of the detections `counted` up to and including each of `at`;
    both ascend.
    """
    if not len(counted):
        return np.broadcast_to(np.int32(0), (len(at), weights.shape[1]))
    upto = np.searchsorted(counted, at, side="right")
    sums = np.zeros((len(at), weights.shape[1]), dtype=np.int32)
    begin = 0
    for row, end in enumerate(upto.tolist()):
        if row:
            sums[row] = sums[row - 1]
        if end > begin:
            sums[row] += weights[image[counted[begin:end]]].sum(0, dtype=np.int32)
        begin = end
    return sums


def _running_sum(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    for row in range(1, len(rows)):
        rows[row] += rows[row - 1]
    return rows


def _value(matches: Matches) -> float:
    return float(weighted_ap(matches, np.ones((matches.images, 1), dtype=np.int32))[0])


def _check_same(several: Sequence[Resampled]) -> None:
    if not all(np.array_equal(several[0].objects, one.objects) for one in several):
        raise ValueError("a paired bootstrap needs matches with the same ground truth")


def _objects(matches: Matches) -> Ints:
    """One row for each object that counts: image and class."""
    counted = matches.truth_counted[:, 0]
    rows = np.stack([matches.truth_image[counted], matches.truth_labels[counted]], 1)
    return np.concatenate([[[matches.images, matches.classes]], rows[np.lexsort(rows.T)]])


def _deviations(drawn: Floats) -> Floats:
    """The deviations from their mean of the resamples that are not NaN."""
    known = drawn[~np.isnan(drawn)]
    return known - known.mean() if len(known) else known


def _interval(value: float, deviations: Floats) -> tuple[float, float]:
    if not len(deviations):
        return math.nan, math.nan
    low, high = np.percentile(deviations, [2.5, 97.5]).tolist()
    return value + low, value + high
