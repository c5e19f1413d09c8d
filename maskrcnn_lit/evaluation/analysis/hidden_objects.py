"""How a detector does on objects that others hide, and where it merges, splits and miscounts.

*Hidden share*: 1 - visible pixels / all pixels of the object. A json with amodal masks has both
("amodal_segmentation", or its "amodal_area"). Else the share is estimated from the other objects of
the image: of the pixels in the object's box that belong to any object, the share that is not its
own. The estimate does not know which object lies in front. Without masks it is the share of the box
that other boxes cover.

*Occluded* objects have one part and a hidden share of OCCLUDED_FROM or more; *separated* ones have
a visible mask of several parts that do not touch, also not at a corner. Recall of both as in Zhan
et al. 2022, "A Tri-Layer Plugin to Improve Occluded Detection": the share of objects with a
detection of their class, of score 0.3 or more, at mask IoU 0.75 or more (of boxes, for results
without masks). The sets are derived here and are not the lists of that paper.

*Merged*: detections that cover more than half of each of several objects of their class. *Split*:
objects with several detections of their class of which each lies in it by more than half. *Count
error*: the difference between the number of detections and of objects of an image, its absolute
value averaged over images. These three count detections that reach the threshold of their class,
outside of crowd regions.

Letters: D detections, G objects of an image, K classes.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.annotations import AMODAL, AMODAL_AREA
from maskrcnn_lit.data.coco.rasterize import expand_counts
from maskrcnn_lit.data.inspection.crowding import covered_shares
from maskrcnn_lit.evaluation.analysis.average_precision import Judged, judge
from maskrcnn_lit.evaluation.analysis.confusion import confusion_matrix
from maskrcnn_lit.evaluation.analysis.curves import best_point, class_curve
from maskrcnn_lit.evaluation.analysis.occlusion import look_up, occlusion_slices, slice_row
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Ints, Pairs, image_pairs
from maskrcnn_lit.evaluation.coco.matching import mask_areas
from maskrcnn_lit.evaluation.coco.results import compressed_rle
from maskrcnn_lit.evaluation.coco.void import has_mask, truth_mask
from maskrcnn_lit.evaluation.thresholds import DEFAULT

Bools = NDArray[np.bool_]

EDGES = (0.0, 0.1, 0.4, 0.6, 0.85, np.inf)  # of the slices by hidden share, the lower end included
SLICES = ("0 to 0.1", "0.1 to 0.4", "0.4 to 0.6", "0.6 to 0.85", "0.85 and more")

OCCLUDED_FROM = 0.1
RECALL_IOU, RECALL_SCORE = 0.75, 0.3

_MORE = 0.5 * (1 + 1e-9)  # more than half, whatever is rounded


def hidden_objects(
    ground_truth: Mapping[str, Any],
    pairs: Sequence[Pairs],
    overall: Judged,
    thresholds: Floats,
) -> dict[str, Any]:
    """{"source", "slices", "occluded", "separated", "merged", "split", "count_error",
    "count_bias"}.

    slices: [{"slice", "objects", "ap", "ap50", "recall"}] by hidden share, as in occlusion.py.
    occluded, separated: {"objects", "recall"}; None for both without masks. merged, split: counts.
    count_error: a mean over images; count_bias: likewise, of detections less objects. source: what
    the hidden shares come from: "amodal masks", "visible masks" (the estimate), "both" or "boxes".

    Args:
        pairs: of `image_pairs` for all images of `ground_truth`.
        overall: the result of `judge` for them.
        thresholds: K.
    """
    classes = len(overall.objects)
    images = {image["id"]: image for image in ground_truth["images"]}
    annotations = ground_truth["annotations"]
    shares: dict[int, Floats] = {}
    parts: dict[int, Ints] = {}
    known: list[Bools] = []
    masks = all(has_mask(annotations[n]) for image in pairs for n in image.objects.tolist())
    for image in pairs:
        objects = [annotations[n] for n in image.objects.tolist()]
        entry = images[image.image_id]
        shares[image.image_id], own = hidden_shares(objects, entry, masks)
        if masks:
            parts[image.image_id] = _part_counts(objects, entry)
        known.append(own)
    rows = []
    for name, low, high in zip(SLICES, EDGES[:-1], EDGES[1:], strict=True):
        within = {number: (share >= low) & (share < high) for number, share in shares.items()}
        judged = judge(pairs, classes, counted=look_up(within), ignored_reusable=True)
        rows.append(slice_row(name, judged))
    occluded = separated = None
    if masks:
        occluded = _recall(
            pairs,
            {i: (parts[i] <= 1) & (share >= OCCLUDED_FROM) for i, share in shares.items()},
        )
        separated = _recall(pairs, {i: parts[i] > 1 for i in shares})
    return {
        "source": _source(np.concatenate([np.zeros(0, dtype=bool), *known]), masks),
        "slices": rows,
        "occluded": occluded,
        "separated": separated,
        **_counts(pairs, thresholds),
    }


def hidden_shares(
    objects: Sequence[Mapping[str, Any]], image: Mapping[str, Any], masks: bool = True
) -> tuple[Floats, Bools]:
    """G: the hidden share of each object of an image, and whether it comes from an amodal mask.

    objects: annotations; masks: whether all have masks.
    """
    boxes = np.array([o["bbox"] for o in objects], dtype=np.float64).reshape(-1, 4)
    if not masks:
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        return covered_shares(corners), np.zeros(len(objects), dtype=bool)
    visible = [truth_mask(o, image) for o in objects]
    areas = mask_areas(visible)
    whole = np.array([_amodal_area(o, image) for o in objects], dtype=np.float64)
    known = whole > 0
    shares = np.zeros(len(objects))
    shares[known] = 1 - np.minimum(areas[known] / whole[known], 1)
    if not known.all():
        shares[~known] = _estimated_shares(visible, boxes, image)[~known]
    return shares, known


def _amodal_area(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """The pixels of the whole object; 0: not known."""
    if annotation.get(AMODAL):
        return float(rle_tools.area(compressed_rle(annotation[AMODAL], image)))
    return float(annotation.get(AMODAL_AREA) or 0)


def _estimated_shares(masks: Sequence[Any], boxes: Floats, image: Mapping[str, Any]) -> Floats:
    """G: of the pixels of all objects in each object's box, the share that is not its own."""
    frames = rle_tools.frPyObjects(boxes, image["height"], image["width"])
    every = rle_tools.merge(list(masks))
    both = [
        rle_tools.merge([mask, frame], intersect=True)
        for mask, frame in zip(masks, frames, strict=True)
    ]
    seen = [rle_tools.merge([every, frame], intersect=True) for frame in frames]
    own, total = mask_areas(both), mask_areas(seen)
    return 1 - np.divide(own, total, out=np.ones(len(masks)), where=total > 0)


def _part_counts(objects: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> Ints:
    return np.array(
        [
            1 if _one_polygon(o["segmentation"]) else part_count(truth_mask(o, image))
            for o in objects
        ],
        dtype=np.int64,
    )


def _one_polygon(segmentation: Any) -> bool:
    return isinstance(segmentation, list) and len(segmentation) == 1


def part_count(mask: Mapping[str, Any]) -> int:
    """The number of parts of a compressed RLE; pixels that touch at a corner are in one."""
    counts, height = mask["counts"], mask["size"][0]
    ends = np.cumsum(expand_counts(counts if isinstance(counts, bytes) else counts.encode()))
    begins, ends = ends[:-1:2], ends[1::2]
    begins, ends = begins[begins < ends], ends[begins < ends]
    # the runs of each column: column, first row, row after the last
    spans = (ends - 1) // height - begins // height + 1
    owner = np.repeat(np.arange(len(begins)), spans)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(spans) - spans, spans)
    column = begins[owner] // height + step
    top = np.where(step == 0, begins[owner] % height, 0)
    bottom = np.where(step == spans[owner] - 1, (ends[owner] - 1) % height + 1, height)
    keys = column * (height + 2)
    first = np.searchsorted(keys + bottom, keys + height + 2 + top)
    last = np.searchsorted(keys + top, keys + height + 2 + bottom, side="right")
    links = [  # to those of the next column that touch
        (n, other)
        for n, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True))
        for other in range(low, high)
    ]
    return _joined(len(column), links)


def _joined(count: int, links: Sequence[tuple[int, int]]) -> int:
    """The number of groups of `count` things that links join."""
    parent = list(range(count))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    for a, b in links:
        parent[root(a)] = root(b)
    return sum(parent[n] == n for n in range(count))


def _recall(pairs: Sequence[Pairs], chosen: Mapping[int, Bools]) -> dict[str, Any]:
    objects = hits = 0
    for image in pairs:
        own = chosen[image.image_id]
        same = image.labels[:, None] == image.object_labels
        near = same & (image.iou >= RECALL_IOU) & (image.scores >= RECALL_SCORE)[:, None]
        objects += int(own.sum())
        hits += int((near.any(0) & own).sum())
    return {"objects": objects, "recall": hits / objects if objects else None}


def _counts(pairs: Sequence[Pairs], thresholds: Floats) -> dict[str, Any]:
    totals: dict[str, int] = defaultdict(int)
    differences = []
    for image in pairs:
        selected = np.flatnonzero(image.scores >= thresholds[image.labels])
        labels = image.labels[selected]
        crowd = (image.crowd_iou[selected] >= 0.5) & (labels[:, None] == image.crowd_labels)
        selected, labels = selected[~crowd.any(1)], labels[~crowd.any(1)]
        differences.append(len(selected) - len(image.objects))
        if not len(selected) or not len(image.objects):
            continue
        iou, areas = image.iou[selected], image.areas[selected][:, None]
        common = iou * (areas + image.object_pixels) / (1 + iou)
        common = common * (labels[:, None] == image.object_labels)
        totals["merged"] += int(((common > _MORE * image.object_pixels).sum(1) > 1).sum())
        totals["split"] += int(((common > _MORE * areas).sum(0) > 1).sum())
    numbers = np.array(differences, dtype=np.float64)
    return {
        "merged": totals["merged"],
        "split": totals["split"],
        "count_error": float(np.abs(numbers).mean()) if len(numbers) else None,
        "count_bias": float(numbers.mean()) if len(numbers) else None,
    }


def _source(known: Bools, masks: bool) -> str:
    if not masks:
        return "boxes"
    if known.all() and known.size:
        return "amodal masks"
    return "both" if known.any() else "visible masks"


def hidden_object_metrics(
    ground_truth: Mapping[str, Any], results: Sequence[dict[str, Any]], max_detections: int
) -> dict[str, float]:
    """The numbers of `hidden_objects` by logged name, NaN for unknown ones: of all results, with
    the best threshold of each class.
    """
    return metrics_and_confusion(ground_truth, results, max_detections)[0]


def metrics_and_confusion(
    ground_truth: Mapping[str, Any], results: Sequence[dict[str, Any]], max_detections: int
) -> tuple[dict[str, float], Ints]:
    """`hidden_object_metrics`, and `confusion_matrix` with the same thresholds: both compare all
    detections of an image with all of its objects.
    """
    pairs = list(image_pairs(ground_truth, results, max_detections=max_detections))
    classes = len(ground_truth["categories"])
    overall = judge(pairs, classes)
    curves = [class_curve(overall, label) for label in range(classes)]
    best = [best_point(curve) for curve in curves]
    thresholds = np.array(
        [
            DEFAULT if n is None else curve.thresholds[n]
            for n, curve in zip(best, curves, strict=True)
        ]
    )
    measures = hidden_objects(ground_truth, pairs, overall, thresholds)
    crowded = occlusion_slices(pairs, classes, overall)[-1]
    metrics = {
        name: math.nan if value is None else float(value)
        for name, value in hidden_metrics(measures, crowded["ap"]).items()
    }
    return metrics, confusion_matrix(pairs, thresholds)


def hidden_metrics(
    measures: Mapping[str, Any], crowded_ap: float | None
) -> dict[str, float | None]:
    """The numbers of `hidden_objects` by logged name."""
    metrics = {
        f"val/recall_hidden_{low * 100:.0f}": row["recall"]
        for low, row in zip(EDGES, measures["slices"], strict=False)
    }
    for name in ("occluded", "separated"):
        metrics[f"val/recall_{name}"] = (measures[name] or {}).get("recall")
    metrics |= {f"val/{name}": measures[name] for name in ("merged", "split", "count_error")}
    return metrics | {"val/ap_crowded": crowded_ap}
