"""LVIS's federated AP, against the `lvis` protocol of faster-coco-eval."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_cases import jitter
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from lvis_form import CLASSES, lvis_form

from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.evaluation.coco.federated import counted_results, incomplete_classes, is_federated
from maskrcnn_lit.evaluation.coco.scores import results_table, score_results

LIMIT = 300
NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar300"),
    *("ap_rare", "ap_common", "ap_frequent"),
)


@pytest.fixture(scope="module")
def coco(test_data: Path) -> dict[str, Any]:
    return json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())


@pytest.fixture(scope="module")
def case(coco: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LVIS's ground truth of real objects, and detections: some images have more than 300."""
    results = jitter(coco)
    crowded = results[0]["image_id"]
    rng = np.random.default_rng(3)
    many = [r for r in results if r["image_id"] == crowded]
    results += [
        r | {"score": float(rng.random()), "category_id": int(rng.integers(1, 90))}
        for _ in range(400 // len(many) + 1)
        for r in many
    ]
    known = {category["id"] for category in coco["categories"]}
    return lvis_form(coco), [r for r in results if r["category_id"] in known]


def partner(
    truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str
) -> dict[str, float]:
    """What faster-coco-eval gives for the same 300 best detections of an image. (1.8.0 fails on
    masks of an image without objects, if none of its detections counts: those are left out.)
    """
    best: list[dict[str, Any]] = []
    with_objects = {a["image_id"] for a in truth["annotations"]}
    for image in truth["images"]:
        if image["id"] not in with_objects:
            classes = image["neg_category_ids"]
        else:
            classes = [c["id"] for c in truth["categories"]]
        own = [r for r in results if r["image_id"] == image["id"]]
        top = sorted(own, key=lambda r: -r["score"])[:LIMIT]
        best += [r for r in top if r["category_id"] in classes]
    field = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    keys = ("image_id", "category_id", "score", field)
    theirs = COCO(copy.deepcopy(truth), print_function=lambda *_: None)
    found = theirs.loadRes([{key: copy.deepcopy(r[key]) for key in keys} for r in best])
    run = COCOeval_faster(theirs, found, iou_type, lvis_style=True, print_function=lambda *_: None)
    run.params.maxDets = [LIMIT]
    run.evaluate()
    run.accumulate()
    run.summarize()
    precision, recall = run.eval["precision"], run.eval["recall"]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else np.nan

    groups = {
        f"ap_{n}": precision[:, :, g, 0, 0]
        for n, g in zip(("rare", "common", "frequent"), run.freq_groups, strict=True)
    }
    sizes = ("ap_small", "ap_medium", "ap_large")
    assert run.stats[0] == pytest.approx(mean(precision[..., 0, 0]))
    return {
        "ap": mean(precision[..., 0, 0]),
        "ap50": mean(precision[0, ..., 0, 0]),
        "ap75": mean(precision[5, ..., 0, 0]),
        **{name: mean(precision[..., a, 0]) for a, name in enumerate(sizes, 1)},
        "ar300": mean(recall[..., 0, 0]),
        **{name: mean(values) for name, values in groups.items()},
    }


@pytest.mark.long
@pytest.mark.data
@pytest.mark.parametrize(("iou_type", "kind"), [("bbox", "box"), ("segm", "mask")])
def test_equals_the_lvis_protocol(case: Any, iou_type: str, kind: str):
    truth, results = case
    field = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    keys = ("image_id", "category_id", "score", field)
    own = [{key: r[key] for key in keys} for r in results]
    ours = score_results(truth, own, max_detections=(1, 10, LIMIT)).metrics
    theirs = partner(truth, results, iou_type)
    assert len(truth["categories"]) == CLASSES
    for name in NAMES:
        assert ours[f"val/{kind}_{name}"] == pytest.approx(theirs[name], abs=1e-6), name
    assert 0.02 < theirs["ap"] < 0.9
    assert len({round(theirs[name], 3) for name in NAMES[-3:]}) == 3  # three groups
    # the rules matter on this set
    plain = truth | {
        "images": [{k: v for k, v in i.items() if "category_ids" not in k} for i in truth["images"]]
    }
    assert abs(score_results(plain, own).metrics[f"val/{kind}_ap"] - theirs["ap"]) > 0.01
    heads = results_table(ours).splitlines()[0].split()
    assert heads[6:] == ["rare", "common", "frequent", "AR1", "AR10", "AR300"]


@pytest.mark.data
def test_the_index_has_the_lists_of_lvis(coco: dict[str, Any], test_data: Path, tmp_path: Path):
    """Read from the json and given back by the index; the files are those of coco_url."""
    truth = lvis_form(coco)
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(truth))
    index = read_index(file, test_data / "coco_mini", "error", cache=tmp_path / "cache")
    again = index.coco_ground_truth()
    images = {image["id"]: image for image in truth["images"]}
    assert len(index.categories) == CLASSES
    assert len(again["images"]) == len(images)
    for image in again["images"]:
        original = images[image["id"]]
        assert image["file_name"] == "/".join(original["coco_url"].split("/")[-2:])
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            assert sorted(image[key]) == sorted(original[key])
    frequencies = {c["name"]: c["frequency"] for c in truth["categories"]}
    assert {c["name"]: c["frequency"] for c in again["categories"]} == frequencies
    assert index.decode(0)[0].shape[:2] == index.size(0)
    results = jitter(coco)[:200]
    assert score_results(truth, results) == score_results(again, results)


def test_a_detection_counts_only_where_its_class_is_verified():
    image = {"id": 5, "height": 9, "width": 9}
    truth = {
        "images": [image | {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1}],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
    }
    results = [
        {"image_id": 5, "category_id": k, "score": s} for k, s in ((1, 0.2), (2, 0.9), (3, 0.5))
    ]
    assert is_federated(truth)
    assert not is_federated(truth | {"images": [image]})
    assert counted_results(truth, results, 300).tolist() == [0, 1]
    assert counted_results(truth, results, 2).tolist() == [1]  # the second best takes a place
    assert incomplete_classes(truth) == {5: {1}}


@pytest.mark.long
@pytest.mark.data
def test_the_error_analysis_has_the_same_rules(case: Any):
    """AP50 of the analysis, by its own way through `Pairs`, is that of the scores."""
    truth, results = case
    scores = score_results(truth, results, max_detections=(1, 10, LIMIT))
    analysis = analyze(truth, results, scores=scores, max_detections=LIMIT)
    assert analysis["errors"]["ap50"] == pytest.approx(scores.metrics["val/mask_ap50"], abs=1e-9)
