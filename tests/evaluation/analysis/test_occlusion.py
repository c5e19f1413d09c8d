"""Slices by hand."""

import pytest
from box_scenes import CLASSES, random_scene, scene

from maskrcnn_lit.evaluation.analysis.average_precision import average_precision, judge, mean
from maskrcnn_lit.evaluation.analysis.occlusion import (
    CROWDED_FROM,
    occlusion_slices,
)
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs


def sliced(objects: list, detections: list, images: int = 1) -> dict[str, dict]:
    pairs = list(image_pairs(*scene(objects, detections, images)))
    return {row.pop("slice"): row for row in occlusion_slices(pairs, 3, judge(pairs, 3))}


def test_objects_of_a_slice_count_and_the_others_are_ignored() -> None:
    free, covered = (1, "ant", (0, 0, 20, 20)), (1, "ant", (60, 60, 20, 20))
    cover = (1, "bee", (60, 60, 6, 20))  # 0.3 of the ant; and is covered itself
    found = sliced(
        [free, covered, cover], [(*free, 0.9), (*free, 0.8), (1, "ant", (100, 0, 20, 20), 0.7)]
    )
    assert found["0 to 0.1"] == {"objects": 1, "ap": 1.0, "ap50": 1.0, "recall": 1.0}
    assert found["0.1 to 0.4"] == {"objects": 1, "ap": 0.0, "ap50": 0.0, "recall": 0.0}
    assert found["0.4 and more"] == {"objects": 1, "ap": 0.0, "ap50": 0.0, "recall": 0.0}
    assert found["crowded images"] == {"objects": 0, "ap": None, "ap50": None, "recall": None}
    # what is wrong is wrong in each slice; what lies on the object of another slice, and its
    # duplicates, are nothing
    found = sliced([free, covered, cover], [(*free, 0.9), (*free, 0.85), (*covered, 0.8)])
    assert found["0.1 to 0.4"] == {"objects": 1, "ap": 1.0, "ap50": 1.0, "recall": 1.0}
    found = sliced([free, covered, cover], [(1, "ant", (100, 0, 20, 20), 0.9), (*covered, 0.8)])
    assert found["0.1 to 0.4"]["ap50"] == pytest.approx(0.5)
    assert found["0.1 to 0.4"]["recall"] == 1


def test_crowd_regions_cover_nothing() -> None:
    found = sliced([(1, "ant", (0, 0, 20, 20)), (1, "ant", (0, 0, 50, 50), "crowd")], [])
    assert [row["objects"] for row in found.values()] == [1, 0, 0, 0]


def test_slices_hold_every_object_once() -> None:
    for seed in range(4):
        truth, results = random_scene(seed)
        pairs = list(image_pairs(truth, results))
        rows = occlusion_slices(pairs, 3, judge(pairs, 3))
        assert sum(row["objects"] for row in rows[:3]) == sum(len(image.objects) for image in pairs)


def test_crowded_images_are_scored_by_themselves() -> None:
    truth, results = random_scene(0, crowds=False)
    for annotation in truth["annotations"][2:]:  # all but two into one image
        annotation["image_id"] = 2
    for annotation in truth["annotations"][:2]:
        annotation["image_id"] = 3
    assert len(truth["annotations"]) - 2 >= CROWDED_FROM
    pairs = list(image_pairs(truth, results))
    row = occlusion_slices(pairs, 3, judge(pairs, 3))[3]
    alone = average_precision(
        judge([image for image in pairs if image.image_id == 2], len(CLASSES))
    )
    assert row["ap"] == mean(alone)
    assert row["ap50"] == mean(alone[:, 0])
    assert row["objects"] == len(truth["annotations"]) - 2
