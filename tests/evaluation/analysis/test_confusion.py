"""The confusion matrix of a few rectangles."""

import numpy as np
from box_scenes import random_scene, scene

from maskrcnn_lit.evaluation.analysis.confusion import confusion_matrix, kept_detections
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs

HALF = np.full(3, 0.5)


def test_rows_are_the_truth_and_columns_the_detection() -> None:
    objects = [(1, "ant", (0, 0, 20, 20)), (1, "bee", (50, 0, 20, 20)), (1, "cat", (0, 50, 20, 20))]
    detections = [
        (1, "ant", (0, 0, 20, 20), 0.9),  # right
        (1, "cat", (0, 0, 20, 20), 0.8),  # the ant is taken: of the background
        (1, "ant", (50, 0, 20, 20), 0.7),  # a bee, called an ant
        (1, "bee", (100, 100, 10, 10), 0.6),  # there is nothing
        (1, "cat", (0, 50, 20, 20), 0.4),  # below the threshold: the cat is missed
    ]
    pairs = list(image_pairs(*scene(objects, detections)))
    counts = confusion_matrix(pairs, HALF)
    assert counts.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0]]
    assert confusion_matrix(pairs, np.array([0.5, 0.5, 0.3]))[2].tolist() == [0, 0, 1, 0]
    assert kept_detections(pairs[0], np.array([0.8, 0.6, 0.4])).tolist() == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_the_overlap_decides_and_the_better_score_goes_first() -> None:
    objects = [(1, "ant", (0, 0, 20, 20)), (1, "bee", (0, 4, 20, 20))]
    detections = [(1, "bee", (0, 1, 20, 20), 0.9), (1, "bee", (0, 4, 20, 20), 0.8)]
    counts = confusion_matrix(list(image_pairs(*scene(objects, detections))), HALF)
    assert counts.tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert confusion_matrix(list(image_pairs(*scene(objects, detections))), HALF, iou=0.99)[
        0
    ].tolist() == [0, 0, 0, 1]


def test_what_lies_in_a_crowd_region_of_its_class_is_left_out() -> None:
    objects = [(1, "ant", (0, 0, 60, 60), "crowd")]
    detections = [(1, "ant", (5, 5, 10, 10), 0.9), (1, "bee", (5, 5, 10, 10), 0.9)]
    counts = confusion_matrix(list(image_pairs(*scene(objects, detections))), HALF)
    assert counts.tolist() == [[0] * 4, [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_every_object_and_every_detection_is_counted_once() -> None:
    for seed in range(5):
        truth, results = random_scene(seed, crowds=False)
        counts = confusion_matrix(list(image_pairs(truth, results)), np.zeros(3))
        objects, found = (
            [e["category_id"] for e in entries] for entries in (truth["annotations"], results)
        )
        assert counts.sum(1)[:3].tolist() == [objects.count(number) for number in (10, 20, 30)]
        assert counts.sum(0)[:3].tolist() == [found.count(number) for number in (10, 20, 30)]
