"""Our scores against plain pycocotools, on real ground truth and on small random sets."""

import copy
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from coco_cases import CASES, Case, box, coco_ap, found, jitter, rle, small_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_coco import NAMES, api, largest_difference, plain
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.index import Category, read_index
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.scores import (
    DetectionCollector,
    check_limits,
    class_table,
    limit_warning,
    match_all,
    of_images,
    results_table,
    score_results,
    to_coco_results,
)


@pytest.fixture(scope="module")
def ground_truth(test_data: Path) -> dict:
    return json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())


@pytest.fixture(scope="module")
def jittered(ground_truth: dict) -> list[dict]:
    return jitter(ground_truth)


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("name", CASES)
def test_equals_pycocotools(
    ground_truth: dict, jittered: list[dict], name: str, iou_type: str
) -> None:
    case: Case = CASES[name](ground_truth, jittered)
    ours = coco_ap(case.truth, case.results, iou_type=iou_type, max_detections=case.max_detections)
    theirs = plain(case.truth, case.results, iou_type, max_detections=case.max_detections)
    assert largest_difference(ours, theirs) <= 1e-9
    assert len(ours) == 13
    assert len(ours["ap_per_class"]) == len(case.truth["categories"])
    assert case.trivial or 0.02 < ours["ap"] < 0.98


@pytest.mark.long
def test_the_json_files_score_as_their_content(
    ground_truth: dict, jittered: list[dict], tmp_path: Path
) -> None:
    ours = coco_ap(ground_truth, jittered, iou_type="segm")
    assert ours["ap_small"] < ours["ap_large"]
    assert largest_difference(ours, plain(ground_truth, jittered, "segm", folder=tmp_path)) <= 1e-9


def test_masks_are_sized_by_their_own_area_and_not_by_their_boxes(
    ground_truth: dict, jittered: list[dict]
) -> None:
    ours = coco_ap(ground_truth, jittered, iou_type="segm")
    naive, _ = plain(ground_truth, jittered, "segm", drop_boxes=False)
    for name, value in zip(NAMES, naive, strict=True):
        if not name.startswith("ap_"):
            assert ours[name] == pytest.approx(value, abs=1e-9)
    assert ours["ap_small"] != pytest.approx(naive[3], abs=1e-4)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ground_truth_as_detections_scores_one(ground_truth: dict, iou_type: str) -> None:
    coco = api(ground_truth)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 1.0,
        }
        | {"segmentation": rle(coco.annToMask(a))}
        for a in ground_truth["annotations"]
        if not a["iscrowd"]
    ]
    scores = coco_ap(ground_truth, results, iou_type=iou_type)
    assert any(a["iscrowd"] for a in ground_truth["annotations"])
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100"):
        assert scores[name] == pytest.approx(1.0, abs=1e-9), name


def test_the_index_gives_ground_truth_that_scores_as_the_json_does(
    ground_truth: dict, jittered: list[dict], test_data: Path
) -> None:
    folder = test_data / "coco_mini"
    index = read_index(
        folder / "annotations/instances_val2017.json", folder / "val2017", on_bad="error"
    )
    expected, scores = (
        score_results(truth, jittered) for truth in (ground_truth, index.coco_ground_truth())
    )
    assert scores.metrics == pytest.approx(expected.metrics, abs=1e-12)
    assert len(scores.metrics) == 24
    assert scores.per_class == expected.per_class


def test_detections_inside_a_crowd_region_are_no_false_positives() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50]), box(1, 1, [60, 0, 50, 100], iscrowd=1)])
    inside = [found(1, 1, [0, 0, 50, 50], 0.5), found(1, 1, [65, 10, 20, 20], 0.9)]
    outside = [inside[0], found(1, 1, [0, 90, 20, 20], 0.9)]
    assert coco_ap(truth, inside, iou_type="bbox")["ap"] == pytest.approx(1.0)
    assert coco_ap(truth, outside, iou_type="bbox")["ap"] == pytest.approx(0.5)


def test_annotation_ids_from_zero_are_scored_as_others_are() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50]), box(2, 1, [0, 0, 40, 40])])
    results = [found(1, 1, [0, 0, 50, 50], 0.9), found(2, 1, [0, 0, 40, 40], 0.8)]
    from_zero = truth | {"annotations": [a | {"id": n} for n, a in enumerate(truth["annotations"])]}
    assert coco_ap(truth, results, iou_type="bbox")["ap"] == pytest.approx(1.0)
    assert coco_ap(from_zero, results, iou_type="bbox") == coco_ap(truth, results, iou_type="bbox")
    trapped, _ = plain(from_zero, results, "bbox")
    assert trapped[0] < 0.9  # this is what the renumbering is for


@pytest.mark.parametrize("start, step", [(0, 1), (1, 7), (2**62, 12345), (2**70, 1)])
def test_ids_of_any_size_and_order_score_the_same(
    ground_truth: dict, jittered: list[dict], start: int, step: int
) -> None:
    order = np.random.default_rng(1).permutation(80).tolist()
    new = {
        c["id"]: start + step * n for c, n in zip(ground_truth["categories"], order, strict=True)
    }
    truth = ground_truth | {
        "categories": [c | {"id": new[c["id"]]} for c in ground_truth["categories"]],
        "annotations": [
            a | {"category_id": new[a["category_id"]]} for a in ground_truth["annotations"]
        ],
    }
    results = [r | {"category_id": new[r["category_id"]]} for r in jittered]
    expected, scores = (
        coco_ap(t, r, iou_type="bbox") for t, r in ((ground_truth, jittered), (truth, results))
    )
    assert scores.pop("ap_per_class") == pytest.approx(
        expected.pop("ap_per_class"), abs=1e-12, nan_ok=True
    )
    assert scores == pytest.approx(expected, abs=1e-12)


def test_no_detection_scores_zero_and_no_ground_truth_is_nan() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50])])  # medium: there is nothing small or large
    for iou_type in ("bbox", "segm"):
        scores = coco_ap(truth, [], iou_type=iou_type)
        assert scores["ap"] == scores["ap50"] == scores["ap_medium"] == scores["ar100"] == 0.0
        assert math.isnan(scores["ap_small"])
        assert math.isnan(scores["ar_large"])
        assert scores["ap_per_class"]["one"] == 0.0
        assert math.isnan(scores["ap_per_class"]["two"])
    assert math.isnan(
        coco_ap(small_truth([]), [found(1, 1, [0, 0, 5, 5], 0.5)], iou_type="bbox")["ap"]
    )


def test_false_positives_on_an_image_without_objects_cost() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50])])
    right, wrong = found(1, 1, [0, 0, 50, 50], 0.5), found(2, 1, [0, 0, 50, 50], 0.9)
    assert coco_ap(truth, [right, wrong], iou_type="bbox")["ap"] == pytest.approx(0.5)


def test_arguments_stay_as_they_are_and_nothing_is_printed(
    ground_truth: dict, jittered: list[dict], capsys: pytest.CaptureFixture
) -> None:
    truth, results = copy.deepcopy(ground_truth), copy.deepcopy(jittered)
    for iou_type in ("bbox", "segm"):
        coco_ap(truth, results, iou_type=iou_type)
    assert truth == ground_truth
    assert results == jittered
    assert capsys.readouterr() == ("", "")


@pytest.mark.long
def test_more_detections_an_image_than_a_hundred() -> None:
    boxes = [[x * 8, y * 8, 7, 7] for x in range(15) for y in range(15)]
    truth = small_truth([box(1, 1, place) for place in boxes])
    results = [found(1, 1, place, 0.9 - n / 1000) for n, place in enumerate(boxes)]
    limited = coco_ap(truth, results, iou_type="bbox")
    scores = coco_ap(truth, results, iou_type="bbox", max_detections=(1, 10, 300))
    assert limited["ar100"] == pytest.approx(100 / 225)
    assert scores["ar300"] == scores["ap"] == pytest.approx(1.0)
    assert "ar100" not in scores
    theirs = plain(truth, results, "bbox", max_detections=[1, 10, 300])
    assert largest_difference(scores, theirs) <= 1e-9


_sides = st.integers(1, 110)
_boxes = st.tuples(st.integers(0, 60), st.integers(0, 60), _sides, _sides).map(list)
_ids = st.integers(1, 2)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(
    objects=st.lists(st.tuples(_ids, _ids, _boxes, st.integers(0, 1)), max_size=8),
    seen=st.lists(st.tuples(_ids, _ids, _boxes, st.sampled_from([0.1, 0.5, 0.9])), max_size=12),
    copied=st.integers(0, 8),
)
def test_equals_pycocotools_on_random_sets(objects: list, seen: list, copied: int) -> None:
    truth = small_truth([box(*some) for some in objects])
    seen += [(image, category, box, 0.7) for image, category, box, _ in objects[:copied]]
    results = [found(*some) for some in seen]
    for iou_type in ("bbox", "segm"):
        ours, theirs = coco_ap(truth, results, iou_type=iou_type), plain(truth, results, iou_type)
        assert largest_difference(ours, theirs) <= 1e-9


def test_score_results_names_what_is_logged_and_restricts_the_images() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50]), box(2, 2, [0, 0, 40, 40])])
    results = [found(1, 1, [0, 0, 50, 50], 0.9)]
    metrics, per_class = score_results(truth, results)
    assert metrics["val/box_ap"] == metrics["val/mask_ap"] == pytest.approx(0.5)
    assert set(metrics) == {f"val/{kind}_{name}" for kind in ("box", "mask") for name in NAMES}
    assert per_class["one"] == pytest.approx({"box_ap": 1.0, "mask_ap": 1.0})
    assert per_class["two"] == {"box_ap": 0.0, "mask_ap": 0.0}
    assert score_results(of_images(truth, [1]), results).metrics["val/mask_ap"] == pytest.approx(
        1.0
    )
    assert len(truth["images"]) == 2
    boxes_only = [
        {key: value for key, value in r.items() if key != "segmentation"} for r in results
    ]
    assert "val/mask_ap" not in score_results(truth, boxes_only).metrics


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image_id": 99}, "image ids that the ground truth does not have, 99 (it has 1, 2)"),
        ({"category_id": 7}, "category ids that the ground truth does not have, 7 (it has 1, 2)"),
        ({"score": math.nan}, "entry 1 of the results has score nan"),
        ({"bbox": [1, 2, 3]}, "entry 1 of the results has bbox [1, 2, 3]"),
        (
            {"segmentation": {"size": [9, 8], "counts": "0"}},
            "has size [9, 8] (height, width), but the",
        ),
    ],
)
def test_wrong_results_are_named(change: dict, said: str) -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50])])
    good = found(1, 1, [0, 0, 50, 50], 0.9)
    with pytest.raises(UserError) as error:
        score_results(truth, [good, good | change])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "limits", [[1, 10], [10, 10, 100], [100, 10, 1], [0, 1, 2], [1, 10, 100.0], 400, "all"]
)
def test_limits_that_are_none_are_named(limits: object) -> None:
    said = (
        f"metrics.max_detections={limits} must be three ascending whole numbers, as in '[1,10,100]'"
    )
    with pytest.raises(UserError, match=re.escape(said)):
        check_limits(limits)
    assert check_limits([1, 10, 400]) == (1, 10, 400)


def test_more_objects_than_count_are_told() -> None:
    objects = [box(1, 1, [0, 0, n, n]) for n in range(1, 8)] + [
        box(1, 2, [0, 0, n, n]) for n in range(1, 5)
    ]
    matches = match_all(small_truth([*objects, box(1, 1, [0, 0, 9, 9], iscrowd=1)]), [])["mask"]
    assert limit_warning(matches, (1, 2, 7)) is None
    assert limit_warning(matches, (1, 2, 7), 11) is None
    few, model, both = (
        limit_warning(matches, *some) for some in (((1, 2, 6),), ((1, 2, 7), 10), ((1, 2, 6), 10))
    )
    assert few
    assert few.endswith("only 6 detections count: add metrics.max_detections='[1,2,7]'")
    assert model
    assert model.startswith("an image has 11 objects, but the model returns at most 10 detections")
    assert both
    assert both.endswith("add metrics.max_detections='[1,2,7]' model.box_head.max_detections=11")
    assert limit_warning(match_all(small_truth([]), [])["box"], (1, 2, 7)) is None
    limits = (((1, 2, 6), 100), ((1, 2, 6), 10), ((1, 2, 7), 10), ((1, 2, 20), 10))
    told = [limit_warning(matches, *some, raises_model=True) or "" for some in limits]
    assert [text.split(": add ")[1] for text in told] == [
        f"metrics.max_detections='[1,2,{last}]'" for last in (7, 11, 11, 20)
    ]
    assert limit_warning(matches, (1, 2, 20), 11, raises_model=True) is None


def test_results_table_is_aligned_and_shows_a_dash_for_no_number() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50])])
    table = results_table(score_results(truth, [found(1, 1, [0, 0, 50, 50], 0.9)]).metrics)
    header, *rows = table.splitlines()
    assert header.split() == [
        "AP",
        "AP50",
        "AP75",
        "small",
        "medium",
        "large",
        "AR1",
        "AR10",
        "AR100",
    ]
    assert [row.split() for row in rows] == [
        [kind, "1.000", "1.000", "1.000", "-", "1.000", "-", "1.000", "1.000", "1.000"]
        for kind in ("box", "mask")
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert "-" in results_table({"val/box_ap": None})


def test_the_class_table_has_the_best_first() -> None:
    per_class = {
        "ant": {"box_ap": 0.5, "mask_ap": 0.1, "roi_accuracy": 0.25},
        "bee": {"box_ap": math.nan, "mask_ap": math.nan, "roi_accuracy": math.nan},
        "cat": {"box_ap": 0.4, "mask_ap": 0.3, "roi_accuracy": 1.0},
    }
    lines = class_table(per_class).splitlines()
    assert lines[0].split() == ["class", "box", "AP", "mask", "AP", "roi_accuracy"]
    assert [line.split() for line in lines[1:]] == [
        ["cat", "0.400", "0.300", "1.000"],
        ["ant", "0.500", "0.100", "0.250"],
        ["bee", "-", "-", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_class_table_of_boxes_alone_is_by_box_ap() -> None:
    lines = class_table({"a": {"box_ap": 0.1}, "b": {"box_ap": 0.2}, "c": {"box_ap": None}})
    assert [line.split() for line in lines.splitlines()] == [
        ["class", "box", "AP"],
        ["b", "0.200"],
        ["a", "0.100"],
        ["c", "-"],
    ]


def test_of_many_classes_the_table_has_the_best_and_the_worst() -> None:
    per_class = {f"class {n}": {"box_ap": 0.0, "mask_ap": n / 100} for n in range(80)}
    per_class |= {f"empty {n}": {"box_ap": math.nan, "mask_ap": math.nan} for n in range(3)}
    per_class["a name that is much longer than there is room for it"] = {
        "box_ap": 0.9,
        "mask_ap": 0.9,
    }
    lines = class_table(per_class).splitlines()
    assert len(lines) == 12
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("a name that is much longer than t... ")
    assert [line[:8] for line in lines[2:6]] == ["class 79", "class 78", "class 77", "class 76"]
    assert lines[6] == "... 71 more, and 3 without objects: all are in evaluation.json"
    assert [line[:7] for line in lines[7:]] == [f"class {n}" for n in (4, 3, 2, 1, 0)]
    assert lines[-1].split()[-1] == "0.000"


def test_to_coco_results_gives_original_ids_and_json_ready_masks() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:7] = 1
    detections = [
        {
            "image_id": 5,
            "boxes": np.zeros((0, 4), np.float32),
            "scores": [],
            "labels": [],
            "masks": [],
        },
        {
            "image_id": 2**40,
            "boxes": np.array([[2, 1, 7, 3]], np.float32),
            "scores": np.array([0.25], np.float32),
            "labels": np.array([2]),
            "masks": [rle_tools.encode(np.asfortranarray(mask))],
        },
    ]
    (entry,) = to_coco_results(detections, [Category(90, "ant"), Category(13, "bee")])
    assert entry["image_id"] == 2**40
    assert entry["category_id"] == 13
    assert entry["bbox"] == [2, 1, 5, 2]
    assert entry["score"] == 0.25
    assert (rle_tools.decode(json.loads(json.dumps(entry))["segmentation"]) == mask).all()
    with pytest.raises(ValueError, match=r"label 2 of image 1099511627776 is not in 1\.\.1"):
        to_coco_results(detections, [Category(90, "ant")])


def test_collector_keeps_one_entry_an_image_and_only_counts_unreadable_ones() -> None:
    first, second = DetectionCollector(), DetectionCollector()
    first.add([_detections(3, 0.5), _detections(1, 0.5), _detections(7, 0.5)], [True, True, False])
    second.add([_detections(2, 0.9), _detections(3, 0.9)], [True, True])
    first.merge(second)
    results = first.results([Category(4, "ant")])
    assert [(r["image_id"], r["score"]) for r in results] == [(1, 0.5), (2, 0.9), (3, 0.5)]
    assert first.unreadable == {7}


def test_collector_memory_does_not_grow_with_the_area_of_the_images() -> None:
    collector = DetectionCollector()
    mask = np.zeros((3000, 4000), np.uint8, order="F")
    mask[500:2500, 300:3300] = 1
    rle = rle_tools.encode(mask)
    entry = {
        "image_id": 1,
        "boxes": np.ones((100, 4), np.float32),
        "scores": np.ones(100, np.float32),
    }
    collector.add(
        [entry | {"labels": np.ones(100, int), "masks": [dict(rle) for _ in range(100)]}], [True]
    )
    results = collector.results([Category(1, "ant")])
    assert len(pickle.dumps(collector)) < 50_000 < mask.size
    assert (
        len(json.dumps(results)) < 100 * mask.shape[1] * 5
    )  # run lengths, at most some bytes a column


def _detections(image_id: int, score: float) -> dict:
    mask = rle_tools.encode(np.asfortranarray(np.ones((4, 4), np.uint8)))
    return {
        "image_id": image_id,
        "boxes": [[0, 0, 4, 4]],
        "scores": [score],
        "labels": [1],
        "masks": [mask],
    }


def test_an_official_ap_is_a_line_below_the_table():
    metrics = {"val/mask_ap": 0.43, "val/cityscapes_ap": 0.306, "val/cityscapes_ap50": 0.512}
    assert results_table(metrics).splitlines()[-1].startswith("Cityscapes AP 0.306, AP50 0.512: ")
    assert "Cityscapes" not in results_table({"val/mask_ap": 0.43})
    assert "Cityscapes AP" in class_table({"car": {"mask_ap": 0.4, "cityscapes_ap": 0.3}})
