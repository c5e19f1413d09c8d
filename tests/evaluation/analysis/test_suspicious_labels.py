"""Suspicious labels: each error of a label, by the detections of a model that is right."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.analysis.pairs import image_pairs
from maskrcnn_lit.evaluation.analysis.suspicious_labels import (
    KINDS,
    repaired,
    suggest,
    suspicious_labels,
    usual_agreement,
)
from maskrcnn_lit.evaluation.coco.scores import score_results

SIDE = 100
PLACES = [(x, y) for y in (5, 35, 65) for x in (5, 35, 65)]  # nine objects of 20 x 20

Entry = dict[str, Any]


def square(x: int, y: int, w: int = 20, h: int = 20) -> Entry:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = rle_tools.encode(mask)
    return {
        "bbox": [float(x), float(y), float(w), float(h)],
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def scene(images: int = 3) -> tuple[dict[str, Any], list[Entry]]:
    """Objects of classes 7 and 3 in turn, with ids from 1, and a detection of each, a pixel off.
    Ids of classes are not in the order of the list.
    """
    truth: dict[str, Any] = {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE}
            for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    results = []
    for image in truth["images"]:
        for n, (x, y) in enumerate(PLACES):
            number = len(truth["annotations"]) + 1
            label = {"image_id": image["id"], "category_id": (7, 3)[n % 2]}
            truth["annotations"].append(
                label | {"id": number, "area": 400.0, "iscrowd": 0} | square(x, y)
            )
            results.append(label | {"score": 0.9 - number / 1000} | square(x + 1, y))
    return truth, results


def change(truth: dict[str, Any], number: int, **more: Any) -> None:
    truth["annotations"][number - 1] |= more


def test_labels_that_agree_with_the_model_are_not_suspicious():
    truth, results = scene()
    analysis = suspicious_labels(truth, results)
    assert analysis["suspicions"] == []
    assert set(analysis["suggested"].values()) == {0}
    assert analysis["ap"] == pytest.approx(score_results(truth, results).metrics["val/mask_ap"])
    assert (analysis["kind"], analysis["images"], analysis["labels"]) == ("mask", 3, 27)


def test_each_kind_of_error_is_the_suspicion_that_its_words_say():
    truth, results = scene()
    change(truth, 2, category_id=7)  # a dog that is labeled cat
    change(truth, 11, **square(35, 10, 20, 10))  # half of the outline
    change(truth, 19, **square(5, 5, 50, 20))  # over its neighbor
    truth["annotations"] = [a for a in truth["annotations"] if a["id"] not in (5, 20)]
    results[19]["category_id"] = results[18]["category_id"]  # two cats, labeled as one
    results = [r for n, r in enumerate(results) if n != 25]  # 26: nothing is detected
    found = {
        (one["kind"], one["annotation"]): one
        for one in suspicious_labels(truth, results)["suspicions"]
    }
    assert set(found) == {
        ("class", 2), ("outline", 11), ("several", 19), ("missing", None), ("unseen", 26)
    }  # fmt: skip
    assert [kind in {name for name, _ in found} for kind in KINDS] == [True] * 5
    wrong = found["class", 2]
    assert (wrong["category"], wrong["suggested_category"]) == ("cat", "dog")
    assert wrong["what"] == "labeled cat, but the model detects dog (score 0.90, IoU 0.90)"
    missing = found["missing", None]
    assert missing["image_id"] == 10
    assert missing["file_name"] == "0.png"
    assert results[missing["detections"][0]]["bbox"][:2] == [36.0, 35.0]
    assert "no label here" in missing["what"]
    assert missing["category"] is None
    assert found["outline", 11]["iou"] == pytest.approx(200 * 0.95 / (400 + 10), abs=0.02)
    assert len(found["several", 19]["detections"]) == 2
    assert "detects 2 objects inside" in found["several", 19]["what"]
    assert found["unseen", 26]["detections"] == []
    assert found["unseen", 26]["score"] is None
    ranked = suspicious_labels(truth, results)["suspicions"]
    assert [one["rank"] for one in ranked] == [1, 2, 3, 4, 5]
    costs = [one["cost"] for one in ranked]
    assert costs == sorted(costs, reverse=True)
    assert min(costs) > 0


@pytest.mark.parametrize("boxes", [False, True])
def test_the_gain_is_ap_with_the_repair_minus_ap(boxes: bool):
    """Of each kind, by scoring the whole repaired ground truth."""
    truth, results = scene()
    change(truth, 2, category_id=7)
    change(truth, 11, **square(35, 10, 20, 10))
    truth["annotations"] = [a for a in truth["annotations"] if a["id"] != 5]
    results = [r for n, r in enumerate(results) if n != 25]
    if boxes:
        results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
    name = "val/box_ap" if boxes else "val/mask_ap"
    pairs = list(image_pairs(truth, results))
    usual = usual_agreement(pairs, 2)
    repairs = {
        (r.kind, r.image_id, r.detections): r for image in pairs for r in suggest(image, usual)
    }
    before = score_results(truth, results).metrics[name]
    suspicions = suspicious_labels(truth, results)["suspicions"]
    assert {one["kind"] for one in suspicions} == {"class", "outline", "missing", "unseen"}
    for one in suspicions:
        repair = repairs[one["kind"], one["image_id"], tuple(one["detections"])]
        after = truth | {"annotations": repaired(truth, results, repair, truth["annotations"])}
        gain = score_results(after, results).metrics[name] - before
        assert one["gain"] == pytest.approx(gain, abs=1e-12)
        assert gain > 0
        assert one["cost"] == pytest.approx(gain * repair.weight, abs=1e-12)


def test_on_federated_labels_a_repair_leaves_the_verified_classes():
    """As in LVIS: a class of which not all objects are labeled misses none, and a label that goes
    does not hide the detections of its class.
    """
    truth, results = scene()
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [3]}
    # a dog and a cat of image 10 have no label; image 12 has one dog, and nothing is detected on it
    dogs = [n for n, a in enumerate(truth["annotations"]) if a["category_id"] == 3]
    first, *others = [n for n in dogs if truth["annotations"][n]["image_id"] == 12]
    truth["annotations"][first] |= square(82, 82, 15, 15)
    gone = {1, 4, *others}
    truth["annotations"] = [a for n, a in enumerate(truth["annotations"]) if n not in gone]
    found = {(s["kind"], s["image_id"]) for s in suspicious_labels(truth, results)["suspicions"]}
    assert ("missing", 10) in found
    assert len([k for k, _ in found if k == "missing"]) == 1


def test_a_detection_on_a_crowd_or_with_a_low_score_suggests_nothing():
    truth, results = scene()
    truth["annotations"] = [a for a in truth["annotations"] if a["id"] not in (5, 6)]
    crowd = {"id": 99, "image_id": 10, "category_id": 7, "iscrowd": 1, "area": 900.0}
    truth["annotations"].append(crowd | square(35, 35, 30, 30))
    results[5]["score"] = 0.3
    assert suspicious_labels(truth, results)["suspicions"] == []


def test_where_all_outlines_are_coarse_none_is_suspicious():
    """The usual IoU is that of the image: a model that is coarse there says nothing."""
    truth, results = scene()
    for entry in [*truth["annotations"], *results]:
        entry["category_id"] = 7  # nine in an image: enough
    coarse = [
        r | square(int(r["bbox"][0]), int(r["bbox"][1]), 20, 10) if r["image_id"] == 10 else r
        for r in results
    ]
    assert suspicious_labels(truth, coarse)["suspicions"] == []
    one = [*results[:3], coarse[3], *results[4:]]
    (only,) = suspicious_labels(truth, one)["suspicions"]
    assert (only["kind"], only["annotation"]) == ("outline", 4)


def test_without_detections_or_labels_nothing_is_suspicious():
    truth, results = scene()
    assert suspicious_labels(truth, [])["suspicions"] == []
    empty = suspicious_labels(truth | {"annotations": []}, results)
    assert {one["kind"] for one in empty["suspicions"]} <= {"missing"}
