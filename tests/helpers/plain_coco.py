"""pycocotools called plainly, as anybody gets numbers from it: what our own scoring must equal.

Its three traps (see maskrcnn_lit/evaluation/coco/scores.py) are stepped around, and nothing else is
done.
"""

import contextlib
import copy
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
NAMES += ["ar_small", "ar_medium", "ar_large"]


def api(ground_truth: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        made = COCO()
        made.dataset = copy.deepcopy(ground_truth)
        made.createIndex()
    return made


def plain(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    *,
    folder: Path | None = None,
    drop_boxes: bool = True,
    max_detections: Sequence[int] = (1, 10, 100),
) -> tuple[list[float], dict[str, float]]:
    """The twelve numbers in the order of NAMES and AP by class name; -1 where there is no such
    ground truth.

    folder: pass the data through files there. drop_boxes: leave boxes out of results for masks,
    since pycocotools would take their area for that of the masks. The first number is taken from
    the precision: `summarize` looks for it under a limit of 100, and there may be none.
    """
    evaluation = evaluated(ground_truth, results, iou_type, folder, drop_boxes, max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    per_class = {}
    stats = evaluation.stats.tolist()
    precision = evaluation.eval["precision"][..., 0, -1]
    stats[0] = float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0
    for k, category in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, k, 0, 2]
        known = precision[precision > -1]
        per_class[evaluation.cocoGt.cats[category]["name"]] = (
            float(known.mean()) if known.size else -1.0
        )
    return stats, per_class


def evaluated(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    folder: Path | None = None,
    drop_boxes: bool = True,
    max_detections: Sequence[int] = (1, 10, 100),
) -> COCOeval:
    left_out = {"bbox"} if drop_boxes and iou_type == "segm" else set()
    given = [{key: value for key, value in r.items() if key not in left_out} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        if folder:
            (folder / "truth.json").write_text(json.dumps(ground_truth))
            (folder / "results.json").write_text(json.dumps(given))
            truth = COCO(str(folder / "truth.json"))
            found = truth.loadRes(str(folder / "results.json"))
        else:
            truth = api(ground_truth)
            found = (
                truth.loadRes(copy.deepcopy(given))
                if given
                else api(ground_truth | {"annotations": []})
            )
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def largest_difference(ours: dict[str, Any], theirs: tuple[list[float], dict[str, float]]) -> float:
    """Of the twelve numbers and the AP of every class; infinite where only one of the two has a
    number.
    """
    names = [name for name in ours if name != "ap_per_class"]
    stats, per_class = theirs
    pairs = list(zip((ours[name] for name in names), stats, strict=True))
    pairs += [(ours["ap_per_class"][name], value) for name, value in per_class.items()]
    return max(_difference(*pair) for pair in pairs)


def _difference(ours: float, theirs: float) -> float:
    if math.isnan(ours) or theirs == -1:
        return 0.0 if math.isnan(ours) and theirs == -1 else math.inf
    return abs(ours - theirs)
