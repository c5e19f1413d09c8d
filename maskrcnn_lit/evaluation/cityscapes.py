"""The AP of the Cityscapes benchmark (Cordts et al. 2016, section 4.2), as its official scripts
compute it.

It differs from COCO's AP. For each class and each IoU threshold, 0.5 to 0.95:

- A detection matches every object with an IoU *above* the threshold; masks of the truth do not
  overlap, so there is at most one. Of several on one object the best counts, the others are false.
- Objects under LEAST_PIXELS do not count. A detection that matches one of them, or a group, is
  neither right nor wrong.
- Another detection is false unless the share of it in void pixels, groups of its class and objects
  under LEAST_PIXELS is above the threshold.
- Precision over recall is integrated as it is, at each score that occurs, without the maximum over
  higher recalls and without COCO's 101 recalls.

AP is the mean over classes with objects and thresholds. All detections count, if an image has no
more than the model gives.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.evaluation.coco.matching import Floats, mask_areas
from maskrcnn_lit.evaluation.coco.results import mask_rle
from maskrcnn_lit.evaluation.coco.scores import Scores

THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # T; the official ones, to the last bit

LEAST_PIXELS = 100


class CityscapesScores(NamedTuple):
    """0..1; NaN without an object."""

    ap: float
    ap50: float
    per_class: dict[str, float]  # class name -> AP


def with_official_ap(
    official_ap: str | None,
    scores: Scores,
    index: AnnotationIndex,
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> Scores:
    """`scores` with val/cityscapes_ap and val/cityscapes_ap50, and cityscapes_ap of each class, if
    `data.official_ap` asks for it and the results have masks.

    Args:
        index: of the images of `ground_truth`, and possibly more.
    """
    if official_ap is None or any("segmentation" not in entry for entry in results):
        return scores
    rows = zip(index.image_ids.tolist(), range(len(index)), strict=True)
    void = {image: region for image, i in rows if (region := index.void_rle(i)) is not None}
    official = cityscapes_scores(ground_truth, results, void)
    metrics = {"val/cityscapes_ap": official.ap, "val/cityscapes_ap50": official.ap50}
    per_class = {
        name: values | {"cityscapes_ap": official.per_class.get(name, math.nan)}
        for name, values in scores.per_class.items()
    }
    return Scores(scores.metrics | metrics, per_class)


class _Outcomes(NamedTuple):
    """The detections of a class that are right or false, for one threshold."""

    scores: Floats
    right: NDArray[np.bool_]
    missed: int  # objects without a detection


def cityscapes_scores(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    void: Mapping[Any, Mapping[str, Any]],
) -> CityscapesScores:
    """The official AP of masks.

    Args:
        ground_truth: a COCO instances json as a dict; groups are its crowd regions.
        results: entries of a COCO results json with masks.
        void: image id -> RLE of its void pixels; images without any may be missing.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    detected, annotated = (_grouped(some) for some in (results, ground_truth["annotations"]))
    ap: dict[str, Floats] = {}
    for category in ground_truth["categories"]:
        pooled: list[list[_Outcomes]] = []
        objects = 0
        for number, image in images.items():
            key = (number, category["id"])
            scene = _Scene(image, annotated[key], detected[key], void.get(number))
            objects += int(scene.counted.sum())
            pooled.append([scene.outcomes(threshold) for threshold in THRESHOLDS])
        ap[category["name"]] = np.array(
            [average_precision(several) for several in zip(*pooled, strict=True)]
            if objects
            else np.full(len(THRESHOLDS), np.nan)
        )
    every = np.array(list(ap.values())).reshape(-1, len(THRESHOLDS))
    every = every[~np.isnan(every).any(1)]
    if not len(every):
        return CityscapesScores(np.nan, np.nan, dict.fromkeys(ap, np.nan))
    per_class = {name: float(values.mean()) for name, values in ap.items()}
    return CityscapesScores(float(every.mean()), float(every[:, 0].mean()), per_class)


class _Scene:
    """The G objects and groups and the D detections of one class in one image."""

    def __init__(
        self,
        image: Mapping[str, Any],
        annotations: Sequence[Mapping[str, Any]],
        results: Sequence[Mapping[str, Any]],
        void: Mapping[str, Any] | None,
    ) -> None:
        truth = [mask_rle(entry, image) for entry in annotations]
        masks = [mask_rle(entry, image) for entry in results]
        pixels, own = mask_areas(truth), mask_areas(masks)
        real = own > 0  # an empty mask is no detection
        masks = [mask for mask, is_real in zip(masks, real, strict=True) if is_real]
        self.scores = np.array([entry["score"] for entry in results], np.float64)[real]
        own = own[real]
        shared = _shared(masks, truth, own)
        groups = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], bool)
        small = pixels < LEAST_PIXELS
        self.counted = ~groups & ~small
        self.iou = shared / np.maximum(pixels + own[:, None] - shared, 1)
        hidden = _shared(masks, [void], own)[:, 0] if void is not None else np.zeros(len(own))
        # a group that is small is counted twice, as in the official scripts
        hidden = hidden + shared @ (groups.astype(float) + small)
        self.ignored = hidden / np.maximum(own, 1)  # D

    def outcomes(self, threshold: float) -> _Outcomes:
        matched = self.iou > threshold  # D G
        of_objects = matched & self.counted
        best = np.where(of_objects, self.scores[:, None], -np.inf)
        right = np.zeros(len(self.scores), bool)
        if len(right) and of_objects.any():
            right[best.argmax(0)[of_objects.any(0)]] = True
        false = of_objects.any(1) & ~right
        false |= ~matched.any(1) & (self.ignored <= threshold)
        missed = int(self.counted.sum() - of_objects.any(0).sum())
        judged = right | false
        return _Outcomes(self.scores[judged], right[judged], missed)


def average_precision(images: Sequence[_Outcomes]) -> float:
    """The area under precision over recall of a class with objects."""
    scores = np.concatenate([one.scores for one in images])
    right = np.concatenate([one.right for one in images])
    objects = int(right.sum()) + sum(one.missed for one in images)
    if not right.any():
        return 0.0
    _, first = np.unique(np.sort(scores), return_index=True)
    order = np.argsort(scores, kind="stable")
    above = np.cumsum(right[order][::-1])[::-1][first]  # right ones from each score on
    precision = np.append(above / (len(scores) - first), 1.0)
    recall = np.append(above / objects, 0.0)
    around = np.r_[recall[0], recall, 0.0]
    return float(precision @ (around[:-2] - around[2:])) / 2


def _shared(
    masks: Sequence[Any], others: Sequence[Any], own: NDArray[np.float64]
) -> NDArray[np.float64]:
    """D G: the pixels that masks have in common; own: the D areas."""
    if not len(masks) or not len(others):
        return np.zeros((len(masks), len(others)))
    shares = rle_tools.iou(list(masks), list(others), [1] * len(others))  # of the first
    return np.rint(np.asarray(shares, np.float64) * own[:, None])


def _grouped(entries: Sequence[Mapping[str, Any]]) -> Mapping[Any, list[Mapping[str, Any]]]:
    """By image and class."""
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"], entry["category_id"]].append(entry)
    return groups
