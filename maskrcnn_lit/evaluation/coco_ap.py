"""COCO average precision of boxes and masks, as pycocotools computes it. No Lightning and no files in here.

Matching (coco_matching.py) and precision (coco_tables.py) follow COCOeval to the last bit, a data set at a time;
pycocotools itself computes the IoU of masks. It has three traps, which are not copied:

- It takes a ground-truth annotation with id 0 for "no match": here ids of annotations say nothing.
- A result that has a "bbox" gets the area of the box as its size even when masks are scored, which moves the
  small, medium and large mask AP. COCO's size of an object is the number of pixels of its mask
  (cocodataset.org, "Detection evaluation"): masks are scored with their own area, as in Detectron2 and
  torchvision's references.
- It fails on an empty list of results: without a detection AP is 0.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_lit.data.categories import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco_matching import FIELD, match_results
from maskrcnn_lit.evaluation.coco_tables import Tables, coco_tables

MAX_DETECTIONS = (1, 10, 100)
_SIZES = ("small", "medium", "large")
_IOU_TYPES = {"box": "bbox", "mask": "segm"}


class Scores(NamedTuple):
    """metrics: by logged name (val/box_ap, val/mask_ap50, ...), NaN where there is no ground truth of
    that kind.
    per_class: class name -> {"box_ap": ..., "mask_ap": ...}."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]


class DetectionCollector:
    """The detections of a data set: one entry for an image id, however often and in however many
    processes it was seen. Masks stay compressed: memory grows with the number of detections, not with the
    area of the images."""

    def __init__(self) -> None:
        self.by_image: dict[int, dict[str, Any]] = {}
        self.unreadable: set[int] = set()

    def add(self, detections: Iterable[dict[str, Any]], readable: Iterable[bool]) -> None:
        """Take what `to_original` gives for a batch; an image that could not be read is only counted."""
        for entry, is_readable in zip(detections, readable, strict=True):
            if is_readable:
                self.by_image.setdefault(entry["image_id"], entry)
            else:
                self.unreadable.add(entry["image_id"])

    def merge(self, other: "DetectionCollector") -> None:
        """Take over the images of another process that are not here yet."""
        self.by_image = other.by_image | self.by_image
        self.unreadable |= other.unreadable

    def results(self, categories: Sequence[Category]) -> list[dict[str, Any]]:
        """COCO results in the order of the image ids; label l is `categories[l - 1]`."""
        return to_coco_results([self.by_image[image] for image in sorted(self.by_image)], categories)


def to_coco_results(detections: Iterable[dict[str, Any]], categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Entries of a COCO results json, with the category ids of the annotation file and counts as text.

    detections: a dict an image, as `maskrcnn_lit.model.postprocess.to_original` gives them: image_id,
        boxes (R 4, x1 y1 x2 y2), scores (R), labels (R, 1..K), masks (R COCO RLE), in pixels of the
        original image.
    categories: label l is `categories[l - 1]`.
    """
    results = []
    for image in detections:
        boxes = np.asarray(image["boxes"], dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(image["scores"], dtype=np.float64)
        for (x1, y1, x2, y2), score, label, mask in zip(
            boxes.tolist(), scores.tolist(), np.asarray(image["labels"]).tolist(), image["masks"], strict=True
        ):
            if not 1 <= label <= len(categories):
                raise ValueError(f"label {label} of image {image['image_id']} is not in 1..{len(categories)}")
            counts = mask["counts"].decode("ascii") if isinstance(mask["counts"], bytes) else mask["counts"]
            results.append(
                {
                    "image_id": int(image["image_id"]),
                    "category_id": int(categories[label - 1].id),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                    "segmentation": {"size": [int(side) for side in mask["size"]], "counts": counts},
                }
            )
    return results


def score_results(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> Scores:
    """Box AP and mask AP of `results` under the names that are logged; without masks in them, box AP only.

    image_ids: score these images of the ground truth only (None: all of it).
    """
    if image_ids is not None:
        kept = set(image_ids)
        ground_truth = ground_truth | {
            "images": [image for image in ground_truth["images"] if image["id"] in kept],
            "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in kept],
        }
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {c["name"]: {} for c in ground_truth["categories"]}
    for kind, iou_type in _IOU_TYPES.items():
        if results and not any(isinstance(entry, dict) and FIELD[iou_type] in entry for entry in results):
            continue
        scores = coco_ap(ground_truth, results, iou_type=iou_type, max_detections=max_detections)
        for name, value in scores.pop("ap_per_class").items():
            per_class[name][f"{kind}_ap"] = value
        metrics |= {f"val/{kind}_{name}": value for name, value in scores.items()}
    if not metrics:
        raise UserError("the results have neither 'bbox' nor 'segmentation'; give a COCO results json")
    return Scores(metrics, per_class)


def coco_ap(
    ground_truth: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    iou_type: str,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> dict[str, Any]:
    """The twelve COCO numbers of `results`, equal to pycocotools' on the same results. Changes neither
    argument.

    ground_truth: a COCO json as a dict; all of its images are scored.
    results: entries of a COCO results json: image_id, category_id, score, "bbox" (x y w h) or
        "segmentation" (RLE).
    iou_type: "bbox" or "segm".
    max_detections: three ascending limits on the detections of an image; all numbers but the AR named
        after the others use the last one.

    Returns ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100 (named after `max_detections`),
    ar_small, ar_medium, ar_large and "ap_per_class" (name -> AP): 0..1, or NaN without such ground truth.
    Raises UserError, naming them, for results of images or categories that the ground truth does not have.
    """
    matches = match_results(ground_truth, results, iou_type=iou_type, limit=max_detections[-1])
    names = [category["name"] for category in sorted(ground_truth["categories"], key=lambda c: c["id"])]
    return _summary(coco_tables(matches, max_detections), max_detections, names)


def results_table(metrics: Mapping[str, float | None]) -> str:
    """The box and mask rows of `metrics` (val/box_ap, ...) as an aligned table; "-" where there is no
    number."""
    limits = sorted({int(m[1]) for name in metrics if (m := re.fullmatch(r"val/\w+_ar(\d+)", name))})
    columns = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "small": "ap_small", "medium": "ap_medium"}
    columns |= {"large": "ap_large"} | {f"AR{limit}": f"ar{limit}" for limit in limits}
    lines = ["    " + "".join(f"{title:>8}" for title in columns)]
    for kind in _IOU_TYPES:
        if f"val/{kind}_ap" in metrics:
            values = (metrics.get(f"val/{kind}_{key}") for key in columns.values())
            lines.append(f"{kind:<4}" + "".join(f"{_number(value):>8}" for value in values))
    return "\n".join(lines)


def _summary(tables: Tables, max_detections: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """T is 0.5, 0.55 .. 0.95 and A all, small, medium, large."""
    precision, recall, _ = tables
    summary: dict[str, Any] = {"ap": _mean(precision[..., 0])}
    summary |= {"ap50": _mean(precision[0, ..., 0]), "ap75": _mean(precision[5, ..., 0])}
    summary |= {f"ap_{size}": _mean(precision[..., a]) for a, size in enumerate(_SIZES, start=1)}
    summary |= {f"ar{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(max_detections)}
    summary |= {f"ar_{size}": _mean(recall[..., a, -1]) for a, size in enumerate(_SIZES, start=1)}
    summary["ap_per_class"] = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)}
    return summary


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]  # -1: no ground truth of this class and size
    return float(known.mean()) if known.size else math.nan


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
