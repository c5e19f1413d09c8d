"""The error analysis of a detector: all of its numbers for one set of results, as plain data.

`analyze` returns a dict for JSON. Undefined numbers (no such object) are None. Schema:

    kind          "mask" if the results have masks, else "box": the IoU that is used below
    images, objects, detections
                  counts; objects without crowd regions, detections after the limit
    crowded_from  an image with at least so many objects is crowded
    per_class     [{"name", "objects", "detections", "box_ap", "mask_ap", "mask_ap50",
                  "mask_ap_small", "mask_ap_medium", "mask_ap_large", "boundary_ap", "threshold",
                  "precision", "recall", "f1"}]: APs in 0..1, None if the results have no masks, or
                  boxes; threshold: the score with the highest F1 at IoU 0.5, and the precision,
                  recall and F1 there. Confusion and the worst images use detections that reach
                  it, or 0.5 if it is None
    curves        [{"name", "recall": [...], "precision": [...], "thresholds": [...], "f1": [...]}]
                  for each class, and pooled as "all classes" at the end: at most 201 points,
                  thresholds descending; point i counts detections with a score >= thresholds[i]
    confusion     {"iou": 0.5, "labels": [..., "background"], "counts": [[...]]}: rows are the
                  truth, columns the prediction
    errors        {"ap50", "classification", "localisation", "both", "duplicate", "background",
                  "missed", "false_positives", "false_negatives", "counts": {kind: n}}: the rise of
                  AP50, 0..1, from fixing each kind
    occlusion     [{"slice", "objects", "ap", "ap50", "recall"}], with the slices "0 to 0.1",
                  "0.1 to 0.4", "0.4 and more", "crowded images"
    hidden        {"source", "slices", "occluded", "separated", "merged", "split", "count_error",
                  "count_bias"}, see hidden_objects.py
    box_ap, mask_ap, boundary_ap
                  numbers or None
    calibration   {"bins": [{"from", "to", "score", "precision", "count"}], "error"}: ten bins;
                  score is the mean score
    worst         [{"image_id", "missed": [annotation ids], "false": [indices into results],
                  "merged": [indices into results]}]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_lit.data.coco.sizes import SIZES
from maskrcnn_lit.evaluation.analysis.average_precision import (
    Judged,
    average_precision,
    judge,
    judge_size,
    mean,
)
from maskrcnn_lit.evaluation.analysis.calibration import calibration
from maskrcnn_lit.evaluation.analysis.confusion import confusion_matrix
from maskrcnn_lit.evaluation.analysis.curves import Curve, best_point, class_curve, thinned
from maskrcnn_lit.evaluation.analysis.hidden_objects import hidden_objects
from maskrcnn_lit.evaluation.analysis.occlusion import CROWDED_FROM, occlusion_slices
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Kind, Pairs, image_pairs, kind_of
from maskrcnn_lit.evaluation.analysis.tide import error_shares
from maskrcnn_lit.evaluation.analysis.worst_images import worst_images
from maskrcnn_lit.evaluation.coco.scores import MAX_DETECTIONS, Scores, score_results
from maskrcnn_lit.evaluation.thresholds import DEFAULT
from maskrcnn_lit.storage.files import without_nan

IOU = 0.5  # of curves, thresholds, confusion, errors, calibration


def analyze(
    ground_truth: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    scores: Scores | None = None,
    max_detections: int = 100,
) -> dict[str, Any]:
    """The error analysis of `results`, by the schema above.

    Args:
        ground_truth: a COCO instances json as a dict: of the images that are scored, and no others.
        results: entries of a COCO results json.
        scores: the result of `score_results` for both, if already computed.
        max_detections: per image and class, by score.

    Raises: UserError: results with unknown images or classes, or with missing fields.
    """
    names = [category["name"] for category in ground_truth["categories"]]
    if scores is None:
        limits = [min(limit, max_detections) for limit in MAX_DETECTIONS[:-1]]
        scores = score_results(
            dict(ground_truth), results, max_detections=[*limits, max_detections]
        )
    empty: Kind = "mask" if "val/mask_ap" in scores.metrics else "box"
    kind = kind_of(results, ground_truth) if results else empty
    pairs = list(
        image_pairs(
            ground_truth,
            results,
            max_detections=max_detections,
            boundary=kind == "mask",
            empty=empty,
        )
    )
    judged = judge(pairs, len(names))
    boundary = (
        average_precision(judge(pairs, len(names), boundary=True)) if kind == "mask" else None
    )
    curves = {name: class_curve(judged, label) for label, name in enumerate(names)}
    rows = _per_class(judged, scores, _mask_columns(pairs, judged, boundary), curves)
    thresholds = np.array(
        [DEFAULT if row["threshold"] is None else row["threshold"] for row in rows]
    )
    counted = ~judged.ignored[0]
    analysis = {
        "kind": kind,
        "images": len(pairs),
        "objects": int(judged.objects.sum()),
        "detections": len(judged.labels),
        "crowded_from": CROWDED_FROM,
        "per_class": rows,
        "curves": [
            _drawn(*named)
            for named in (*curves.items(), ("all classes", class_curve(judged, None)))
        ],
        "confusion": {
            "iou": IOU,
            "labels": [*names, "background"],
            "counts": confusion_matrix(pairs, thresholds, IOU).tolist(),
        },
        "errors": error_shares(pairs, len(names)),
        "occlusion": occlusion_slices(pairs, len(names), judged),
        "hidden": hidden_objects(ground_truth, pairs, judged, thresholds),
        "box_ap": scores.metrics.get("val/box_ap"),
        "mask_ap": scores.metrics.get("val/mask_ap") if kind == "mask" else None,
        "boundary_ap": mean(boundary) if boundary is not None else None,
        "calibration": calibration(judged.scores[counted], judged.right[0, counted]),
        "worst": worst_images(pairs, ground_truth["annotations"], thresholds),
    }
    return without_nan(analysis)


def _mask_columns(
    pairs: Sequence[Pairs], judged: Judged, boundary: Floats | None
) -> dict[str, Floats]:
    """Column of `per_class` -> K numbers; empty without masks."""
    if boundary is None:
        return {}
    columns = {"mask_ap50": average_precision(judged)[:, 0]}
    for size in SIZES:
        columns[f"mask_ap_{size}"] = average_precision(
            judge_size(pairs, len(judged.objects), size)
        ).mean(1)
    return columns | {"boundary_ap": boundary.mean(1)}


def _per_class(
    judged: Judged, scores: Scores, columns: Mapping[str, Floats], curves: Mapping[str, Curve]
) -> list[dict[str, Any]]:
    """`curves`: class name -> its curve, in the order of the labels."""
    masks = ("mask_ap50", *(f"mask_ap_{size}" for size in SIZES), "boundary_ap")
    detections = np.bincount(judged.labels, minlength=len(curves)).tolist()
    rows = []
    for k, (name, points) in enumerate(curves.items()):
        at_best: dict[str, Any] = {"threshold": None, "precision": None, "recall": None, "f1": None}
        if (index := best_point(points)) is not None:
            values = (points.thresholds, points.precision, points.recall, points.f1)
            at_best = {key: float(value[index]) for key, value in zip(at_best, values, strict=True)}
        aps = {key: scores.per_class[name].get(key) for key in ("box_ap", "mask_ap")}
        aps |= {key: float(columns[key][k]) if key in columns else None for key in masks}
        rows.append(
            {
                "name": name,
                "objects": int(judged.objects[k]),
                "detections": detections[k],
                **aps,
                **at_best,
            }
        )
    return rows


def _drawn(name: str, points: Curve) -> dict[str, Any]:
    selected = thinned(points)
    return {"name": name} | {
        key: getattr(selected, key).tolist() for key in ("recall", "precision", "thresholds", "f1")
    }
