"""COCO average precision of boxes and masks, as pycocotools computes it, without Lightning or
files.

Matching (matching.py) and precision (precision.py) are bit-identical to COCOeval, for a whole data
set at a time; pycocotools itself computes the IoU of masks. Three flaws of it are not copied:

- It treats a match to a ground-truth annotation with id 0 as "no match": here ids have no effect.
- A result that has a "bbox" gets the area of the box as its size even when masks are scored, which
    moves the small, medium and large mask AP. COCO's size of an object is the number of pixels of
    its mask (cocodataset.org, "Detection evaluation"): masks are scored with their own area, as in
    Detectron2 and torchvision's references.
- It fails on an empty list of results: here AP is 0 without detections.
"""

import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.sizes import SIZES
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.federated import FREQUENCIES
from maskrcnn_lit.evaluation.coco.matching import FIELD, Matches, match_results
from maskrcnn_lit.evaluation.coco.precision import coco_tables
from maskrcnn_lit.evaluation.titles import coco_columns, metric_title
from maskrcnn_lit.terminal.table import text_table

MAX_DETECTIONS = (1, 10, 100)

# Maximum number of classes in a table; with more, the numbers of best and worst classes shown.
MOST_CLASSES, END_CLASSES = 20, 5

# Box and mask AP50 under which a training has learnt next to nothing.
NEAR_ZERO = 0.05

_IOU_TYPES = {"box": "bbox", "mask": "segm"}


class Scores(NamedTuple):
    """metrics: by logged name (val/box_ap, val/mask_ap50, ...), NaN without ground truth of that
    kind. per_class: class name -> {"box_ap": ..., "mask_ap": ...}.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]


class DetectionCollector:
    """Collects the detections of a data set: one entry per image id, even if several processes saw
    it. Masks stay compressed: memory grows with the number of detections, not with the image area.
    """

    def __init__(self) -> None:
        self.by_image: dict[int, bytes] = {}  # pickled: a third of the memory, and ready to send
        self.unreadable: set[int] = set()

    def add(self, detections: Iterable[dict[str, Any]], readable: Iterable[bool]) -> None:
        """Add the result of `to_original` for a batch; an unreadable image is only counted."""
        for entry, is_readable in zip(detections, readable, strict=True):
            if is_readable:
                self.by_image.setdefault(entry["image_id"], pickle.dumps(entry))
            else:
                self.unreadable.add(entry["image_id"])

    def merge(self, other: "DetectionCollector") -> None:
        """Add the images of another process that are missing here."""
        self.by_image = other.by_image | self.by_image
        self.unreadable |= other.unreadable

    @property
    def has_masks(self) -> bool:
        """Whether the detections have masks, even if there are none; True without an image."""
        return all("masks" in pickle.loads(entry) for entry in islice(self.by_image.values(), 1))

    def results(self, categories: Sequence[Category]) -> list[dict[str, Any]]:
        """COCO results in the order of the image ids; label l is `categories[l - 1]`."""
        return to_coco_results(
            (pickle.loads(self.by_image[image]) for image in sorted(self.by_image)), categories
        )


def to_coco_results(
    detections: Iterable[dict[str, Any]], categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """Entries of a COCO results json, with the category ids of the annotation file and counts as
    text.

    detections: one dict per image, from `maskrcnn_lit.model.postprocess.to_original`:
        image_id, boxes (R 4, x1 y1 x2 y2), scores (R), labels (R, 1..K), perhaps masks (R COCO
        RLE), in pixels of the original image.
    categories: label l is `categories[l - 1]`.
    """
    results = []
    for image in detections:
        boxes = np.asarray(image["boxes"], dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(image["scores"], dtype=np.float64)
        labels = np.asarray(image["labels"]).tolist()
        masks = image.get("masks")
        for r, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            if not 1 <= labels[r] <= len(categories):
                raise ValueError(
                    f"label {labels[r]} of image {image['image_id']} is not in 1..{len(categories)}"
                )
            entry = {
                "image_id": int(image["image_id"]),
                "category_id": int(categories[labels[r] - 1].id),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(scores[r]),
            }
            results.append(entry if masks is None else entry | {"segmentation": _plain(masks[r])})
    return results


def _plain(mask: Mapping[str, Any]) -> dict[str, Any]:
    """A COCO RLE as JSON has it."""
    counts = mask["counts"]
    return {
        "size": [int(side) for side in mask["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def score_results(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> Scores:
    """Box AP and mask AP of `results`, by logged name; without masks only box AP.

    Equal to pycocotools' numbers for the same results. Does not change its arguments.

    ground_truth: a COCO json as a dict; all of its images are scored.
    results: entries of a COCO results json: image_id, category_id, score, and "bbox" (x y w h) or
        "segmentation".
    max_detections: three ascending limits on the detections per image and class; all metrics use
    the last, except the ARs named after the others.

    Raises UserError for invalid results and for results of other ground truth, with their ids.
    """
    matches = match_all(ground_truth, results, max_detections[-1])
    return score_matches(matches, ground_truth["categories"], max_detections)


def of_images(ground_truth: dict[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """The part of a COCO json with these images."""
    selected = set(image_ids)
    return ground_truth | {
        "images": [image for image in ground_truth["images"] if image["id"] in selected],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in selected],
    }


def match_all(
    ground_truth: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    limit: int = MAX_DETECTIONS[-1],
    masks: bool = True,
) -> dict[str, Matches]:
    """ "box" and "mask", if the results have them, -> their matches, to score and resample. masks:
    whether an empty list of results is one of masks, too.
    """
    kinds = {
        kind: iou_type
        for kind, iou_type in _IOU_TYPES.items()
        if (not results and (masks or kind == "box"))
        or any(isinstance(entry, dict) and FIELD[iou_type] in entry for entry in results)
    }
    if not kinds:
        raise UserError(
            "the results have neither 'bbox' nor 'segmentation': give a COCO results json"
        )
    return {
        kind: match_results(ground_truth, results, iou_type=of, limit=limit)
        for kind, of in kinds.items()
    }


def score_matches(
    matches: Mapping[str, Matches],
    categories: Sequence[Mapping[str, Any]],
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> Scores:
    """categories: of the ground truth, with id and name."""
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {category["name"]: {} for category in categories}
    for kind, kind_matches in matches.items():
        scores = _summary(kind_matches, max_detections, categories)
        for name, value in scores.pop("ap_per_class").items():
            per_class[name][f"{kind}_ap"] = value
        metrics |= {f"val/{kind}_{name}": value for name, value in scores.items()}
    return Scores(metrics, per_class)


def check_limits(max_detections: Any) -> tuple[int, ...]:
    """The three limits as plain numbers; UserError unless they are positive, ascending integers."""
    several = isinstance(max_detections, Sequence) and not isinstance(max_detections, str)
    limits = tuple(max_detections) if several else ()
    valid = all(isinstance(limit, int) and limit >= 1 for limit in limits)
    if len(limits) != 3 or not valid or list(limits) != sorted(set(limits)):
        given = list(limits) if several else max_detections
        raise UserError(
            f"metrics.max_detections={given} must be three ascending whole numbers, as in "
            "'[1,10,100]'"
        )
    return limits


def limit_warning(
    matches: Matches,
    max_detections: Sequence[int],
    model_limit: int | None = None,
    *,
    raises_model: bool = False,
) -> str | None:
    """A warning, with the options to set, if an image has more objects than detections count or
    than the model returns (`model_limit`); else None.

    raises_model: whether metrics.max_detections raises the model's limit, too, as in `evaluate`.
    """
    counted = matches.truth_counted[:, 0]
    image, labels = matches.truth_image[counted], matches.truth_labels[counted]
    of_image = int(np.bincount(image, minlength=1).max())
    of_class = int(np.bincount(image * matches.classes + labels, minlength=1).max())
    more_counted, more_given = (
        of_class > max_detections[-1],
        model_limit is not None and of_image > model_limit,
    )
    last = max(max_detections[-1], of_image if more_given and raises_model else of_class)
    typed = []
    if more_counted or (more_given and raises_model):
        typed.append(
            f"metrics.max_detections='[{','.join(map(str, [*max_detections[:-1], last]))}]'"
        )
    if more_given and not raises_model:
        typed.append(f"model.box_head.max_detections={of_image}")
    if more_counted:
        problem = f"{of_class} objects of a class, but only {max_detections[-1]} detections count"
    else:
        problem = f"{of_image} objects, but the model returns at most {model_limit} detections"
    return f"an image has {problem}: add {' '.join(typed)}" if typed else None


def results_table(metrics: Mapping[str, float | None]) -> str:
    """The box and mask rows of `metrics` (val/box_ap, ...) as an aligned table, and a line with an
    official AP if there is one; "-" for missing numbers.
    """
    columns = coco_columns(metrics)
    rows = [
        [kind, *(_number(metrics.get(f"val/{kind}_{key}")) for key in columns)]
        for kind in _IOU_TYPES
        if f"val/{kind}_ap" in metrics
    ]
    lines = text_table(["", *columns.values()], rows)
    if "val/cityscapes_ap" in metrics:
        ap, ap50 = (_number(metrics[f"val/cityscapes_{key}"]) for key in ("ap", "ap50"))
        lines.append(
            f"Cityscapes AP {ap}, AP50 {ap50}: of masks, by the official rules; the table is COCO's"
        )
    return "\n".join(lines)


def class_table(per_class: Mapping[str, Mapping[str, float | None]]) -> str:
    """AP by class as a table within 80 columns: sorted by mask AP (box AP without masks), classes
    without objects last, with "-". With more than MOST_CLASSES classes, only the best and the worst
    are shown.

    per_class: class name -> {"box_ap", "mask_ap", "cityscapes_ap", "roi_accuracy"}, missing entries
    are allowed.
    """
    names = ("box_ap", "mask_ap", "cityscapes_ap", "roi_accuracy")
    keys = {k: metric_title(k) for k in names if any(k in v for v in per_class.values())}
    by = "mask_ap" if "mask_ap" in keys else "box_ap"
    order = sorted(per_class, key=lambda name: _rank(per_class[name].get(by)))
    rows = [[_short(name), *(_number(per_class[name].get(k)) for k in keys)] for name in order]
    lines = text_table(["class", *keys.values()], rows)
    scored = sum(not math.isnan(_rank(per_class[name].get(by))[1]) for name in order)
    if len(order) <= MOST_CLASSES or scored <= 2 * END_CLASSES:
        return "\n".join(lines[: MOST_CLASSES + 1])
    between, without = scored - 2 * END_CLASSES, len(order) - scored
    best, worst = lines[: END_CLASSES + 1], lines[scored - END_CLASSES + 1 : scored + 1]
    more = (
        f"... {between} more, and {without} without objects" if without else f"... {between} more"
    )
    return "\n".join([*best, f"{more}: all are in evaluation.json", *worst])


def _rank(value: float | None) -> tuple[bool, float]:
    """A sort key: high scores first, missing scores last."""
    missing = value is None or math.isnan(value)
    return missing, math.nan if value is None else -value


def _short(name: str) -> str:
    """A class name, shortened to fit with the numbers into 80 columns."""
    return name if len(name) <= 36 else f"{name[:33]}..."


def _summary(
    matches: Matches, max_detections: Sequence[int], categories: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    precision, recall = coco_tables(matches, max_detections)
    names = [
        category["name"] for category in sorted(categories, key=lambda category: category["id"])
    ]
    summary: dict[str, Any] = {"ap": _mean(precision[..., 0])}
    summary |= {"ap50": _mean(precision[0, ..., 0]), "ap75": _mean(precision[5, ..., 0])}
    summary |= {f"ap_{size}": _mean(precision[..., a]) for a, size in enumerate(SIZES, start=1)}
    summary |= {f"ar{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(max_detections)}
    summary |= {f"ar_{size}": _mean(recall[..., a, -1]) for a, size in enumerate(SIZES, start=1)}
    for name, frequency in FREQUENCIES.items() if _has_frequencies(categories) else ():
        ordered = sorted(categories, key=lambda category: category["id"])
        own = [k for k, category in enumerate(ordered) if category.get("frequency") == frequency]
        summary[f"ap_{name}"] = _mean(precision[:, :, own, 0])
    summary["ap_per_class"] = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)}
    return summary


def _has_frequencies(categories: Sequence[Mapping[str, Any]]) -> bool:
    """Whether they say how frequent each class is, as in LVIS."""
    return any("frequency" in category for category in categories)


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]  # -1: no ground truth of this class and size
    return float(known.mean()) if known.size else math.nan


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
