"""Each kind of error by hand, and all numbers against the definitions spelled out one detection at
a time.
"""

import math

import numpy as np
import pytest
from box_scenes import random_scene, scene
from coco_cases import coco_ap
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.analysis.pairs import image_pairs
from maskrcnn_lit.evaluation.analysis.tide import KINDS, error_shares, judge_errors

ANT, OTHER_ANT = (1, "ant", (0, 0, 20, 20)), (1, "ant", (60, 60, 20, 20))
HALF = 51 / 101  # AP with precision 1 up to recall 0.5


def shares(objects: list, detections: list) -> dict:
    return error_shares(list(image_pairs(*scene(objects, detections))), 3)


def one_error(kind: str, found: dict, rise: float) -> None:
    """Nothing but one error of this kind, which costs `rise`."""
    assert found["counts"] == {name: int(name == kind) for name in (*KINDS, "missed")}
    assert {name: found[name] for name in (*KINDS, "missed")} == pytest.approx(
        {name: rise if name == kind else 0.0 for name in (*KINDS, "missed")}
    )


def test_nothing_wrong() -> None:
    found = shares([ANT], [(*ANT, 0.9)])
    assert found["ap50"] == 1.0
    assert found["false_positives"] == found["false_negatives"] == 0
    one_error("none", found, 0.0)


def test_classification() -> None:
    found = shares([ANT, OTHER_ANT], [(*ANT, 0.9), (1, "bee", OTHER_ANT[2], 0.8)])
    assert found["ap50"] == pytest.approx(HALF)
    one_error("classification", found, 1 - HALF)
    assert found["false_positives"] == 0  # it is one of a class without objects
    assert found["false_negatives"] == pytest.approx(1 - HALF)


def test_the_order_of_the_kinds() -> None:
    bee = (1, "bee", OTHER_ANT[2])
    found = shares(
        [ANT, OTHER_ANT, bee], [(*ANT, 0.9), (*bee, 0.95), (*bee, 0.8)]
    )  # a duplicate, and on an ant
    assert found["counts"]["classification"] == 1
    assert found["counts"]["duplicate"] == 0
    moved = (1, "bee", (70, 60, 20, 20))  # IoU 1/3 with its own class, 1 with the other
    found = shares([(1, "ant", moved[2]), bee], [(*moved, 0.8)])
    assert found["counts"]["localisation"] == 1
    assert found["counts"]["classification"] == 0


def test_localisation() -> None:
    found = shares([ANT, OTHER_ANT], [(*ANT, 0.9), (1, "ant", (70, 60, 20, 20), 0.8)])  # IoU 1/3
    assert found["ap50"] == pytest.approx(HALF)
    one_error("localisation", found, 1 - HALF)


def test_both() -> None:
    bee = (1, "bee", (0, 60, 20, 20))
    found = shares(
        [ANT, bee], [(*ANT, 0.9), (1, "bee", (10, 0, 20, 20), 0.8), (*bee, 0.7)]
    )  # IoU 1/3 with the ant
    assert found["ap50"] == pytest.approx(0.75)
    one_error("both", found, 0.25)


def test_duplicate() -> None:
    found = shares([ANT, OTHER_ANT], [(*ANT, 0.9), (*ANT, 0.8), (*OTHER_ANT, 0.7)])
    assert found["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    one_error("duplicate", found, 1 - found["ap50"])
    assert found["false_positives"] == pytest.approx(1 - found["ap50"])
    assert found["false_negatives"] == 0


def test_background() -> None:
    found = shares([ANT], [(1, "ant", (60, 60, 20, 20), 0.95), (*ANT, 0.9)])
    assert found["ap50"] == pytest.approx(0.5)
    one_error("background", found, 0.5)


def test_missed() -> None:
    found = shares([ANT, OTHER_ANT], [(*ANT, 0.9)])
    one_error("missed", found, 1 - HALF)
    assert found["false_negatives"] == pytest.approx(1 - HALF)


def test_an_object_with_a_fixable_error_on_it_is_not_missed() -> None:
    found = shares([ANT, OTHER_ANT], [(*ANT, 0.9), (1, "ant", (70, 60, 20, 20), 0.8)])
    assert found["counts"]["missed"] == 0
    assert found["missed"] == 0


def test_of_two_errors_on_one_object_the_better_is_mended_and_the_other_removed() -> None:
    moved = [(1, "ant", (70, 60, 20, 20), 0.8), (1, "ant", (60, 70, 20, 20), 0.7)]
    found = shares([ANT, OTHER_ANT], [(*ANT, 0.6), *moved])
    assert found["counts"]["localisation"] == 2
    assert found["ap50"] + found["localisation"] == pytest.approx(1)


def test_an_error_on_an_object_that_is_found_is_removed() -> None:
    found = shares([ANT], [(*ANT, 0.6), (1, "ant", (10, 0, 20, 20), 0.8)])
    assert found["counts"]["localisation"] == 1
    assert found["ap50"] == pytest.approx(0.5)
    assert found["localisation"] == pytest.approx(0.5)


def test_a_crowd_region_makes_no_error() -> None:
    found = shares(
        [ANT, (1, "ant", (50, 50, 60, 60), "crowd")],
        [(*ANT, 0.6), (1, "ant", (55, 55, 10, 10), 0.8)],
    )
    one_error("none", found, 0.0)
    assert found["ap50"] == 1


def test_a_class_whose_objects_are_all_missed() -> None:
    bee = (1, "bee", (60, 60, 20, 20))
    assert shares([ANT, bee], [(*ANT, 0.9)])["missed"] == pytest.approx(
        0.5
    )  # nothing is left to say of the bees
    wrong = (1, "bee", (0, 90, 10, 10), 0.5)
    assert (
        shares([ANT, bee], [(*ANT, 0.9), wrong])["missed"] == 0
    )  # all that was called a bee is wrong


def test_no_objects_and_no_images() -> None:
    found = shares([], [(*ANT, 0.9)])
    assert math.isnan(found["ap50"])
    assert math.isnan(found["missed"])
    assert found["counts"]["background"] == 1
    assert math.isnan(error_shares([], 3)["ap50"])


@pytest.mark.parametrize("seed", range(15))
def test_against_the_definitions_one_by_one(seed: int) -> None:
    truth, results = random_scene(seed)
    found, expected = (
        error_shares(list(image_pairs(truth, results)), 3),
        spelled_out(truth, results),
    )
    assert found["counts"] == expected.pop("counts")
    assert {key: value for key, value in found.items() if key != "counts"} == pytest.approx(
        expected, abs=1e-9
    )
    assert found["ap50"] == pytest.approx(
        coco_ap(truth, results, iou_type="segm")["ap50"], abs=1e-9
    )


def test_the_scenes_hold_every_kind() -> None:
    kinds = [
        kind
        for seed in range(15)
        for kind in judge_errors(list(image_pairs(*random_scene(seed)))).kinds
    ]
    assert {kind: kinds.count(kind) > 5 for kind in KINDS} == dict.fromkeys(KINDS, True)


def name_error(row: dict, own: tuple, other: tuple, present: list[dict]) -> None:
    """The kind of error that a detection is, from its best IoU with its own and other classes."""
    if 0.1 <= own[0] < 0.5:
        row |= dict(kind="localisation", target=present[own[1]])
    elif other[0] >= 0.5:
        row |= dict(kind="classification", target=present[other[1]])
    elif own[0] >= 0.5:
        row["kind"] = "duplicate"
    else:
        row["kind"] = "background" if max(own[0], other[0]) <= 0.1 else "both"
    if row["target"] is not None:
        row["target"]["covered"] = True


def spelled_out(truth: dict, results: list[dict]) -> dict:
    """The same from lists and loops, straight from the paper."""
    rows, objects = [], []
    for image in sorted(entry["id"] for entry in truth["images"]):
        present = [
            a | {"found": False, "covered": False}
            for a in truth["annotations"]
            if a["image_id"] == image
        ]
        crowds, present = (
            [a for a in present if a["iscrowd"]],
            [a for a in present if not a["iscrowd"]],
        )
        objects += present
        found = sorted((r for r in results if r["image_id"] == image), key=lambda r: -r["score"])
        wrong = []
        for r in found:
            ious = [
                rle_tools.iou([r["segmentation"]], [a["segmentation"]], [0]).item() for a in present
            ]
            own = [
                (iou, n) for n, (iou, a) in enumerate(zip(ious, present, strict=True)) if same(a, r)
            ]
            other = [
                (iou, n)
                for n, (iou, a) in enumerate(zip(ious, present, strict=True))
                if not same(a, r)
            ]
            free = [(iou, n) for iou, n in own if iou >= 0.5 and not present[n]["found"]]
            if free:
                present[max(free)[1]]["found"] = True
                rows.append(
                    dict(label=r["category_id"], score=r["score"], kind="right", target=None)
                )
                continue
            on = [
                rle_tools.iou([r["segmentation"]], [a["segmentation"]], [1]).item()
                for a in crowds
                if same(a, r)
            ]
            if max(on, default=0) < 0.5:
                row = dict(label=r["category_id"], score=r["score"], kind=None, target=None)
                rows.append(row)
                wrong.append(
                    (
                        row,
                        max(own, default=(0, -1), key=by_iou),
                        max(other, default=(0, -1), key=by_iou),
                    )
                )
        for row, own, other in wrong:
            name_error(row, own, other, present)
    missed = [a for a in objects if not a["found"] and not a["covered"]]
    base = plain_ap(rows, objects, objects)
    numbers = {"ap50": base}
    for kind in KINDS:
        mended = [row for row in rows if row["kind"] != kind]
        best: dict[int, dict] = {}
        for row in sorted(
            (row for row in rows if row["kind"] == kind), key=lambda row: -row["score"]
        ):
            if row["target"] is not None and not row["target"]["found"]:
                best.setdefault(row["target"]["id"], row)
        keep = [id(row) for row in best.values()]
        in_order = [
            row | dict(kind="right", label=row["target"]["category_id"]) if id(row) in keep else row
            for row in rows
            if row["kind"] != kind or id(row) in keep
        ]
        assert len(in_order) == len(mended) + len(best)
        numbers[kind] = max(plain_ap(in_order, objects, objects) - base, 0)
    numbers["missed"] = max(
        plain_ap(rows, objects, [a for a in objects if a not in missed]) - base, 0
    )
    numbers["false_positives"] = max(
        plain_ap([r for r in rows if r["kind"] == "right"], objects, objects) - base, 0
    )
    numbers["false_negatives"] = max(
        plain_ap(rows, objects, [a for a in objects if a["found"]]) - base, 0
    )
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS} | {
        "missed": len(missed)
    }
    return numbers | {"counts": counts}


def by_iou(pair: tuple[float, int]) -> float:
    return pair[0]


def same(annotation: dict, result: dict) -> bool:
    return annotation["category_id"] == result["category_id"]


def plain_ap(rows: list[dict], objects: list[dict], left: list[dict]) -> float:
    values = []
    for label in sorted({a["category_id"] for a in objects}):
        count = sum(a["category_id"] == label for a in left)
        own = sorted((row for row in rows if row["label"] == label), key=lambda row: -row["score"])
        if not count and not own:
            continue
        hits, points = 0, []
        for n, row in enumerate(own, start=1):
            hits += row["kind"] == "right"
            points.append((hits / count if count else 0, hits / n))
        recalls = np.linspace(0, 1, 101)
        values.append(
            np.mean([max((p for r, p in points if r >= recall), default=0) for recall in recalls])
        )
    return float(np.mean(values))
