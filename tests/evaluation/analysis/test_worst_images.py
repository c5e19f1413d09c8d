"""The worst images of a few rectangles."""

import numpy as np
from box_scenes import scene

from maskrcnn_lit.evaluation.analysis.pairs import image_pairs
from maskrcnn_lit.evaluation.analysis.worst_images import worst_images

ANT, SECOND = (0, 0, 20, 20), (24, 0, 20, 20)


def worst(objects: list, detections: list, images: int = 1, **options: int) -> list[dict]:
    truth, results = scene(objects, detections, images)
    return worst_images(
        list(image_pairs(truth, results)), truth["annotations"], np.full(3, 0.5), **options
    )


def test_missed_false_and_merged() -> None:
    objects = [(1, "ant", ANT), (1, "ant", SECOND), (1, "bee", (60, 60, 20, 20))]
    detections = [
        (1, "bee", (60, 60, 20, 20), 0.4),  # below the threshold
        (1, "ant", (0, 0, 44, 20), 0.9),  # over both ants; IoU 20/44 with each
        (1, "cat", (100, 100, 10, 10), 0.8),
    ]
    assert worst(objects, detections) == [
        {"image_id": 1, "missed": [100, 101, 102], "false": [1, 2], "merged": [1]}
    ]


def test_more_than_half_of_each_of_two_objects_of_one_class() -> None:
    for width, other, merged in (
        (34, "ant", []),
        (35, "ant", [0]),
        (35, "bee", []),
    ):  # 10 and 11 of 20 pixels
        (found,) = worst(
            [(1, "ant", ANT), (1, other, SECOND)], [(1, "ant", (0, 0, width, 20), 0.9)]
        )
        assert found["merged"] == merged


def test_the_worst_first_then_by_id_and_no_image_without_an_error() -> None:
    objects = [(image, "ant", ANT) for image in (1, 2, 3, 4)] + [(3, "ant", SECOND)]
    found = worst(objects, [(1, "ant", ANT, 0.9)], images=5)
    assert [entry["image_id"] for entry in found] == [3, 2, 4]
    assert [entry["image_id"] for entry in worst(objects, [], images=5, count=2)] == [3, 1]


def test_a_crowd_region_makes_nothing_false() -> None:
    assert worst([(1, "ant", (0, 0, 60, 60), "crowd")], [(1, "ant", ANT, 0.9)]) == []
