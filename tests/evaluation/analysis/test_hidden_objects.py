"""Hidden shares, parts, merged and split objects, by hand."""

import math

import numpy as np
import pytest
from box_scenes import SIZE, random_scene, rectangle, rle, scene
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.analysis.average_precision import judge
from maskrcnn_lit.evaluation.analysis.hidden_objects import (
    SLICES,
    hidden_object_metrics,
    hidden_objects,
    hidden_shares,
    part_count,
)
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs

IMAGE = {"id": 1, "height": SIZE[0], "width": SIZE[1]}


def analysed(truth: dict, results: list, threshold: float = 0.5) -> dict:
    pairs = list(image_pairs(truth, results))
    return hidden_objects(truth, pairs, judge(pairs, 3), np.full(3, threshold))


def rows(found: dict) -> dict[str, tuple]:
    return {row["slice"]: (row["objects"], row["recall"]) for row in found["slices"]}


def test_shares_are_those_of_amodal_masks_or_their_areas():
    truth, _ = scene([(1, "ant", (0, 0, 20, 10)), (1, "ant", (40, 0, 10, 10))], [])
    first, second = truth["annotations"]
    first["amodal_segmentation"] = rectangle((0, 0, 20, 40))  # 200 of 800 pixels can be seen
    second["amodal_area"] = 200.0
    shares, known = hidden_shares([first, second], IMAGE)
    assert shares.tolist() == [0.75, 0.5]
    assert known.all()
    first["amodal_area"] = 1e6  # the mask counts
    second["amodal_area"] = 50.0  # less than what can be seen
    assert hidden_shares([first, second], IMAGE)[0].tolist() == [0.75, 0]


def test_without_amodal_masks_the_others_in_the_box_count():
    """An L of 300 pixels in a box of 20 x 20, whose last quarter another object fills."""
    corner = np.zeros(SIZE, bool)
    corner[:20, :20] = True
    corner[10:20, 10:20] = False
    truth, _ = scene([(1, "ant", (0, 0, 20, 20)), (1, "bee", (10, 10, 30, 30))], [])
    truth["annotations"][0]["segmentation"] = rle(corner)
    shares, known = hidden_shares(truth["annotations"], IMAGE)
    # of the first 100 of 400 pixels; the box of the second has no pixel of the first
    assert shares.tolist() == [0.25, 0]
    assert not known.any()
    alone, _ = hidden_shares(truth["annotations"][:1], IMAGE)
    assert alone.tolist() == [0]
    boxes, _ = hidden_shares(truth["annotations"], IMAGE, masks=False)
    assert boxes.tolist() == pytest.approx([100 / 400, 100 / 900])


@pytest.mark.parametrize("others", [1, 2, 4])
def test_a_pixel_of_several_objects_counts_once(others: int):
    """An object of 300 pixels in a box of 400; others have its last quarter and more, each the
    same. A pixel that is its own, too, is not hidden.
    """
    corner = np.zeros(SIZE, bool)
    corner[:20, :20] = True
    corner[10:20, 10:20] = False
    truth, _ = scene([(1, "ant", (0, 0, 20, 20)), *[(1, "bee", (5, 10, 30, 30))] * others], [])
    truth["annotations"][0]["segmentation"] = rle(corner)
    shares, _ = hidden_shares(truth["annotations"], IMAGE)
    assert shares[0] == pytest.approx(0.25)
    # 50 of 900 pixels of the box of the others belong to the first, and to them
    assert shares[1:].tolist() == [0] * others


def test_recall_by_hidden_share():
    objects = [(1, "ant", (30 * n, 0, 20, 10)) for n in range(4)]
    truth, results = scene(objects, [(*objects[0], 0.9), (*objects[2], 0.8)])
    for entry, hidden in zip(truth["annotations"], (0.0, 0.25, 0.5, 0.5), strict=True):
        entry["amodal_area"] = 200 / (1 - hidden)
    found = analysed(truth, results)
    assert found["source"] == "amodal masks"
    assert rows(found) == {
        "0 to 0.1": (1, 1.0),
        "0.1 to 0.4": (1, 0.0),
        "0.4 to 0.6": (2, 0.5),
        "0.6 to 0.85": (0, None),
        "0.85 and more": (0, None),
    }
    assert found["occluded"] == {"objects": 3, "recall": pytest.approx(1 / 3)}
    assert found["separated"] == {"objects": 0, "recall": None}
    metrics = hidden_object_metrics(truth, results, 100)
    assert (metrics["val/recall_hidden_0"], metrics["val/recall_hidden_40"]) == (1.0, 0.5)
    assert math.isnan(metrics["val/recall_hidden_85"])
    del truth["annotations"][0]["amodal_area"]
    assert analysed(truth, results)["source"] == "both"


def picture(*lines: str) -> dict:
    made = np.array([[cell == "#" for cell in line] for line in lines])
    return rle(made)


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        (1, ["##..", "##..", "...."]),
        (2, ["#..#", "#..#", "#..#"]),
        (1, ["#...", ".#..", "..#."]),  # at corners
        (1, ["...#", "..#.", ".#.."]),
        (1, ["####", "#..#", "####"]),  # with a hole
        (2, [".#..", "....", "..#."]),
        (2, [".#..", "....", "..##"]),
        (2, ["#...", "....", ".#.."]),  # an RLE of neighboring columns that do not touch
        (3, ["#.#.", "....", "#..."]),
        (1, ["#.#.", "#.#.", "###."]),  # joined at the bottom
        (0, ["....", "....", "...."]),
        (1, ["####", "####", "####"]),
    ],
)
def test_parts_are_counted(parts: int, lines: list[str]):
    assert part_count(picture(*lines)) == parts


def test_a_run_from_the_bottom_of_a_column_to_the_top_of_the_next_is_two_parts():
    mask = picture(".#", "..", "..", "#.")
    assert len(rle_tools.decode(mask)) == 4
    assert part_count(mask) == 2


def test_parts_of_random_masks_are_those_of_a_flood():
    rng = np.random.default_rng(0)
    for _ in range(40):
        mask = rng.random((9, 11)) < 0.35
        left, count = mask.copy(), 0
        while left.any():
            count += 1
            stack = [tuple(np.argwhere(left)[0])]
            while stack:
                y, x = stack.pop()
                if 0 <= y < 9 and 0 <= x < 11 and left[y, x]:
                    left[y, x] = False
                    stack += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        assert part_count(rle(mask)) == count


def test_separated_objects_need_a_close_mask_and_some_score():
    halves = rle(
        np.pad(np.ones((10, 10), bool), ((0, 110), (0, 120)))
        | np.pad(np.ones((10, 10), bool), ((0, 110), (60, 60)))
    )
    truth, _ = scene([(1, "ant", (0, 0, 70, 10)), (1, "ant", (0, 40, 20, 20))], [])
    truth["annotations"][0]["segmentation"] = halves
    for score, name, recall in ((0.3, 10, 1.0), (0.29, 10, 0.0), (0.9, 20, 0.0)):
        entry = {"image_id": 1, "category_id": name, "score": score, "segmentation": halves}
        found = analysed(truth, [entry])
        assert found["separated"] == {"objects": 1, "recall": recall}
        assert found["occluded"] == {"objects": 0, "recall": None}


def test_merged_and_split_objects_and_the_count_error():
    objects = [
        (1, "ant", (0, 0, 10, 10)),
        (1, "ant", (12, 0, 10, 10)),
        (1, "bee", (40, 0, 40, 10)),
        (2, "ant", (0, 0, 10, 10)),
    ]
    detections = [
        (1, "ant", (0, 0, 22, 10), 0.9),  # over both
        (1, "bee", (40, 0, 18, 10), 0.9),  # two on one
        (1, "bee", (62, 0, 18, 10), 0.8),
        (1, "bee", (62, 0, 18, 10), 0.4),  # under the threshold
        (2, "bee", (0, 0, 10, 10), 0.9),  # another class
        (2, "bee", (50, 50, 10, 10), 0.9),
        (2, "bee", (80, 50, 10, 10), 0.9),
    ]
    found = analysed(*scene(objects, detections, 3))
    assert (found["merged"], found["split"]) == (1, 1)
    # 3 for 3, 3 for 1, 0 for 0
    assert found["count_error"] == found["count_bias"] == pytest.approx(2 / 3)
    found = analysed(*scene(objects, [], 3))
    assert (found["merged"], found["split"]) == (0, 0)
    assert (found["count_error"], found["count_bias"]) == pytest.approx((4 / 3, -4 / 3))


def test_detections_in_a_crowd_region_are_not_counted():
    objects = [(1, "ant", (0, 0, 50, 50), "crowd"), (1, "ant", (60, 0, 10, 10))]
    found = analysed(*scene(objects, [(1, "ant", (5, 5, 10, 10), 0.9)]))
    assert (found["count_error"], found["count_bias"]) == (1, -1)


def test_slices_hold_every_object_once():
    for seed in range(3):
        truth, results = random_scene(seed)
        found = analysed(truth, results)
        objects = [a for a in truth["annotations"] if not a["iscrowd"]]
        assert [row["slice"] for row in found["slices"]] == list(SLICES)
        assert sum(row["objects"] for row in found["slices"]) == len(objects)


def test_results_of_boxes_have_boxes_alone():
    truth, results = scene([(1, "ant", (0, 0, 20, 10))], [(1, "ant", (0, 0, 20, 10), 0.9)])
    for entry in truth["annotations"]:
        del entry["segmentation"]
    for entry in results:
        entry.pop("segmentation")
    found = analysed(truth, results)
    assert found["source"] == "boxes"
    assert rows(found)["0 to 0.1"] == (1, 1.0)
    assert found["occluded"] is found["separated"] is None


def test_without_a_detection_every_box_is_missed():
    """Objects without masks count, too: their segmentation is [] or missing."""
    truth, _ = scene([(1, "ant", (0, 0, 20, 10)), (1, "bee", (30, 0, 20, 10))], [])
    truth["annotations"][0]["segmentation"] = []
    del truth["annotations"][1]["segmentation"]
    metrics = hidden_object_metrics(truth, [], 100)
    assert metrics["val/count_error"] == 2
    assert metrics["val/recall_hidden_0"] == 0
