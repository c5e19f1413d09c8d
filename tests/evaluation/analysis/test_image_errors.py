"""The errors of an image of a few rectangles."""

import numpy as np
from box_scenes import scene

from maskrcnn_lit.evaluation.analysis.image_errors import image_errors
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs

ANT, SECOND, BEE = (0, 0, 20, 20), (24, 0, 20, 20), (60, 60, 20, 20)


def errors(objects: list[tuple], detections: list[tuple]) -> dict[str, list[int]]:
    truth, results = scene(objects, detections)
    (pairs,) = image_pairs(truth, results)
    found = image_errors(pairs, np.full(3, 0.5))
    return {key: value.tolist() for key, value in found._asdict().items() if len(value)}


def test_a_perfect_image_has_none():
    assert errors([(1, "ant", ANT)], [(1, "ant", ANT, 0.9)]) == {}


def test_what_is_below_its_threshold_does_not_count():
    assert errors([(1, "ant", ANT)], [(1, "ant", ANT, 0.4), (1, "bee", BEE, 0.4)]) == {
        "missed": [0]
    }


def test_a_wrong_class_is_false_and_its_object_confused():
    objects = [(1, "ant", ANT), (1, "bee", BEE)]
    detections = [(1, "ant", ANT, 0.9), (1, "ant", BEE, 0.8), (1, "cat", (100, 100, 9, 9), 0.7)]
    assert errors(objects, detections) == {
        "missed": [1],
        "confused": [1],
        "false": [1, 2],
        "wrong_class": [1],
    }


def test_a_wrong_class_on_a_detected_object_confuses_nothing():
    detections = [(1, "ant", ANT, 0.9), (1, "bee", ANT, 0.8)]
    assert errors([(1, "ant", ANT)], detections) == {"false": [1], "wrong_class": [1]}


def test_a_duplicate_is_not_of_a_wrong_class():
    objects = [(1, "ant", ANT), (1, "bee", ANT)]
    detections = [(1, "ant", ANT, 0.9), (1, "bee", ANT, 0.8), (1, "bee", ANT, 0.7)]
    assert errors(objects, detections) == {"false": [2]}


def test_one_detection_over_two_objects_is_merged():
    objects = [(1, "ant", ANT), (1, "ant", SECOND)]
    assert errors(objects, [(1, "ant", (0, 0, 44, 20), 0.9)]) == {
        "missed": [0, 1],
        "false": [0],
        "merged": [0],
    }


def test_a_crowd_region_makes_nothing_false():
    assert errors([(1, "ant", (0, 0, 60, 60), "crowd")], [(1, "ant", ANT, 0.9)]) == {}


def test_an_image_without_objects_or_detections():
    assert errors([], [(1, "ant", ANT, 0.9)]) == {"false": [0]}
    assert errors([(1, "ant", ANT)], []) == {"missed": [0]}
