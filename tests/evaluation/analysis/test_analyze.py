"""The whole analysis: its schema, and that its parts agree with one another and with
`score_results`.
"""

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from box_scenes import CLASSES, random_scene, rle, scene, slow_boundary
from coco_cases import coco_ap
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.evaluation.analysis.boundary import boundary_distance
from maskrcnn_lit.evaluation.analysis.tide import KINDS
from maskrcnn_lit.evaluation.coco.scores import score_results

TOP = (
    *(
        "kind",
        "images",
        "objects",
        "detections",
        "crowded_from",
        "per_class",
        "curves",
        "confusion",
        "errors",
    ),
    *("occlusion", "hidden", "box_ap", "mask_ap", "boundary_ap", "calibration", "worst"),
)
PER_CLASS = (
    *(
        "name",
        "objects",
        "detections",
        "box_ap",
        "mask_ap",
        "mask_ap50",
        "mask_ap_small",
        "mask_ap_medium",
    ),
    *("mask_ap_large", "boundary_ap", "threshold", "precision", "recall", "f1"),
)


@pytest.fixture(scope="module")
def real(test_data: Path) -> tuple[dict, list[dict]]:
    """Real ground truth, found with moved masks, some twice, some not, some as another class."""
    truth = json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())
    truth["images"] = truth["images"][:40]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in sizes]
    rng, results = np.random.default_rng(0), []
    for a in truth["annotations"]:
        if a["iscrowd"] or rng.random() < 0.2:
            continue
        mask = rle_tools.decode(
            rle_tools.merge(rle_tools.frPyObjects(a["segmentation"], *sizes[a["image_id"]]))
        )
        for _ in range(rng.integers(1, 3)):
            moved = rle(np.roll(mask, rng.normal(0, 2, 2).round().astype(int), axis=(0, 1)))
            x, y, w, h = (float(value) for value in rle_tools.toBbox(moved))
            wrong = rng.random() < 0.1
            number = (
                int(rng.choice([c["id"] for c in truth["categories"]]))
                if wrong
                else a["category_id"]
            )
            entry = {"image_id": a["image_id"], "category_id": number, "bbox": [x, y, w, h]}
            results.append(entry | {"score": float(rng.random()), "segmentation": moved})
    return truth, results


@pytest.fixture(scope="module")
def analysis(real: tuple[dict, list[dict]]) -> dict:
    return analyze(*real)


def test_the_schema(analysis: dict) -> None:
    assert tuple(analysis) == TOP
    json.dumps(analysis, allow_nan=False)
    assert analysis["kind"] == "mask"
    assert analysis["images"] == 40
    assert len(analysis["per_class"]) == 80
    assert all(tuple(row) == PER_CLASS for row in analysis["per_class"])
    assert [row["name"] for row in analysis["curves"]][-2:] == ["toothbrush", "all classes"]
    for row in analysis["curves"]:
        assert (
            len(row["recall"])
            == len(row["precision"])
            == len(row["thresholds"])
            == len(row["f1"])
            <= 201
        )
    assert analysis["confusion"]["labels"][-1] == "background"
    assert len(analysis["confusion"]["counts"]) == 81
    assert set(analysis["errors"]) == {
        *KINDS,
        "ap50",
        "missed",
        "false_positives",
        "false_negatives",
        "counts",
    }
    assert [row["slice"] for row in analysis["occlusion"]] == [
        "0 to 0.1",
        "0.1 to 0.4",
        "0.4 and more",
        "crowded images",
    ]
    assert len(analysis["calibration"]["bins"]) == 10
    assert all(tuple(row) == ("image_id", "missed", "false", "merged") for row in analysis["worst"])


def test_the_parts_agree(real: tuple[dict, list[dict]], analysis: dict) -> None:
    metrics, per_class = score_results(*real)
    assert analysis["mask_ap"] == metrics["val/mask_ap"]
    assert analysis["box_ap"] == metrics["val/box_ap"]
    assert analysis["errors"]["ap50"] == pytest.approx(metrics["val/mask_ap50"])
    rows = analysis["per_class"]
    for key in ("mask_ap50", "mask_ap_small", "mask_ap_medium", "mask_ap_large"):
        known = [row[key] for row in rows if row[key] is not None]
        assert np.mean(known) == pytest.approx(metrics[f"val/{key}"])
    for row in rows:
        assert (
            row["mask_ap"] == pytest.approx(per_class[row["name"]]["mask_ap"], nan_ok=True)
            or not row["objects"]
        )
        assert (row["boundary_ap"] is None) == (not row["objects"])
        assert row["boundary_ap"] is None or row["boundary_ap"] <= row["mask_ap"] + 0.02
    assert 0 < analysis["boundary_ap"] < analysis["mask_ap"]
    assert sum(row["objects"] for row in rows) == analysis["objects"]
    assert sum(row["objects"] for row in analysis["occlusion"][:3]) == analysis["objects"]
    counts = analysis["confusion"]["counts"]
    assert sum(map(sum, counts[:-1])) == analysis["objects"]
    for row, points in zip(rows, analysis["curves"], strict=False):
        if row["threshold"] is not None:
            assert row["f1"] == max(points["f1"])
            assert row["threshold"] in points["thresholds"]
            assert row["f1"] == pytest.approx(2 / (1 / row["precision"] + 1 / row["recall"]))


def test_scores_that_are_known_are_used() -> None:
    truth, results = random_scene(2)
    scores = score_results(truth, results)
    assert analyze(truth, results, scores=scores) == analyze(truth, results)
    marked = scores._replace(metrics=scores.metrics | {"val/box_ap": 0.125})
    assert analyze(truth, results, scores=marked)["box_ap"] == 0.125


def test_the_arguments_are_not_changed() -> None:
    truth, results = random_scene(2)
    before = json.dumps([truth, results])
    analyze(truth, results)
    assert json.dumps([truth, results]) == before


@pytest.mark.parametrize("seed", range(4))
def test_boundary_ap_is_that_of_pycocotools_with_the_iou_of_the_paper(seed: int) -> None:
    truth, results = random_scene(seed)
    expected = boundary_ap_of_pycocotools(truth, results)
    assert analyze(truth, results)["boundary_ap"] == pytest.approx(expected, abs=1e-9)
    assert 0 < expected < coco_ap(truth, results, iou_type="segm")["ap"]


def boundary_ap_of_pycocotools(truth: dict, results: list[dict]) -> float:
    """COCOeval as the paper's authors changed it: the smaller IoU, and that of masks with crowd
    regions.
    """

    class BoundaryEval(COCOeval):
        def computeIoU(self, imgId, catId):
            ious = super().computeIoU(imgId, catId)
            found = self._dts[imgId, catId]
            found = [found[n] for n in np.argsort([-d["score"] for d in found], kind="mergesort")]
            for (d, g), iou in np.ndenumerate(ious):
                if not self._gts[imgId, catId][g]["iscrowd"]:
                    masks = [
                        rle_tools.decode(e["segmentation"])
                        for e in (found[d], self._gts[imgId, catId][g])
                    ]
                    a, b = (slow_boundary(mask, boundary_distance(*mask.shape)) for mask in masks)
                    ious[d, g] = min(iou, (a & b).sum() / (a | b).sum())
            return ious

    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        found = api.loadRes(
            [{k: v for k, v in r.items() if k != "bbox"} for r in copy.deepcopy(results)]
        )
        evaluation = BoundaryEval(api, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_the_best_detections_of_each_image_and_class_count() -> None:
    truth, results = random_scene(1)
    found = analyze(truth, results, max_detections=2)
    groups = [(entry["image_id"], entry["category_id"]) for entry in results]
    assert (
        found["detections"]
        == sum(min(groups.count(group), 2) for group in set(groups))
        < len(results)
    )
    assert sum(row["detections"] for row in found["per_class"]) == found["detections"]


def test_a_class_does_not_push_another_out_of_its_image() -> None:
    boxes = [(x, y, 8, 8) for x in range(0, 120, 10) for y in range(0, 120, 10)]
    objects = [(1, "ant" if n < 72 else "bee", box) for n, box in enumerate(boxes)]
    found = analyze(
        *scene(objects, [(*entry, 0.9 if entry[1] == "ant" else 0.6) for entry in objects])
    )
    assert found["detections"] == 144
    for row in found["per_class"][:2]:
        assert row["objects"] == row["detections"] == 72
        assert (
            row["mask_ap"]
            == row["mask_ap50"]
            == row["mask_ap_small"]
            == row["boundary_ap"]
            == row["recall"]
            == 1
        )


def test_boxes_alone() -> None:
    truth, results = random_scene(4)
    found = analyze(
        truth, [{key: value for key, value in r.items() if key != "segmentation"} for r in results]
    )
    assert found["kind"] == "box"
    assert found["mask_ap"] is None
    assert found["boundary_ap"] is None
    assert found["errors"]["ap50"] == pytest.approx(
        score_results(truth, results).metrics["val/box_ap50"]
    )
    for row in found["per_class"]:
        assert row["box_ap"] is not None
        assert {row[key] for key in PER_CLASS if key.startswith(("mask", "boundary"))} == {None}


def test_nothing_found() -> None:
    found = analyze(random_scene(0)[0], [])
    json.dumps(found, allow_nan=False)
    assert found["mask_ap"] == found["errors"]["ap50"] == 0
    assert found["detections"] == 0
    assert found["errors"]["counts"]["missed"] == found["objects"]
    assert all(row["threshold"] is None and row["mask_ap"] == 0 for row in found["per_class"])
    assert found["calibration"]["error"] is None
    assert len(found["worst"]) == 3


def test_no_objects() -> None:
    found = analyze(*scene([], [(1, "ant", (0, 0, 9, 9), 0.75)]))
    json.dumps(found, allow_nan=False)
    assert found["mask_ap"] is found["errors"]["ap50"] is found["boundary_ap"] is None
    assert found["worst"] == [{"image_id": 1, "missed": [], "false": [0], "merged": []}]
    assert [row["threshold"] for row in found["per_class"]] == [None] * len(CLASSES)
