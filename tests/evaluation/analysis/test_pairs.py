"""Pairs of detections and objects against pycocotools' IoU and by hand."""

import numpy as np
import pytest
from box_scenes import CLASSES, random_scene, scene
from pycocotools import mask as rle_tools

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis.boundary import boundary_crop, crop_iou
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs, kind_of


def without(results: list[dict], field: str) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != field} for entry in results]


def test_one_image_by_hand() -> None:
    objects = [
        (2, "bee", (0, 0, 10, 10)),
        (2, "ant", (50, 50, 20, 10)),
        (2, "ant", (0, 0, 40, 40), "crowd"),
    ]
    detections = [(2, "ant", (0, 0, 10, 5), 0.25), (2, "ant", (50, 50, 20, 20), 0.75)]
    first, second = image_pairs(*scene(objects, detections, images=2))
    assert (first.image_id, second.image_id) == (1, 2)  # in the order of the ids
    assert not len(first.detections)
    assert first.iou.shape == (0, 0)
    assert second.detections.tolist() == [1, 0]
    assert second.scores.tolist() == [0.75, 0.25]
    assert second.labels.tolist() == [0, 0]
    assert second.object_labels.tolist() == [1, 0]
    assert second.objects.tolist() == [0, 1]
    assert second.crowd_labels.tolist() == [0]
    assert second.iou.tolist() == [[0, 0.5], [0.5, 0]]
    assert second.crowd_iou.tolist() == [[0], [1]]  # the share of the detection in the region
    assert second.areas.tolist() == [400, 50]
    assert second.object_pixels.tolist() == [100, 200]
    assert second.object_areas.tolist() == [100, 200]
    assert second.boxes.tolist() == [
        [0, 0, 10, 10],
        [50, 50, 20, 10],
    ]
    assert second.of_one_class().tolist() == [[0, 0.5, 0], [0, 0, 1]]


@pytest.mark.parametrize("field", ["segmentation", "bbox"])
@pytest.mark.parametrize("seed", range(3))
def test_iou_is_pycocotools(seed: int, field: str) -> None:
    truth, results = random_scene(seed)
    results = without(results, "bbox" if field == "segmentation" else "segmentation")
    assert kind_of(results, truth) == {"segmentation": "mask", "bbox": "box"}[field]
    seen = 0
    for image in image_pairs(truth, results):
        for d, entry in enumerate(image.detections):
            for g, annotation in enumerate(image.objects):
                shapes = results[entry][field], truth["annotations"][annotation][field]
                expected = rle_tools.iou([shapes[0]], [shapes[1]], [0]).item()
                assert image.iou[d, g] == expected
                seen += 1
    assert seen > 50


def test_boundaries_of_the_pairs_that_may_match() -> None:
    truth, results = random_scene(1)
    seen = 0
    for image in image_pairs(truth, results, boundary=True):
        for (d, g), iou in np.ndenumerate(image.iou):
            value = image.boundary_iou[d, g]
            if image.labels[d] != image.object_labels[g] or iou < 0.5:
                assert value == 0
                continue
            masks = results[image.detections[d]], truth["annotations"][image.objects[g]]
            assert value == min(
                iou, crop_iou(*(boundary_crop(entry["segmentation"]) for entry in masks))
            )
            seen += 1
    assert seen > 5


def test_the_best_detections_of_an_image_and_class_are_kept_and_equal_ones_in_their_order() -> None:
    boxes = [(n, 0, 5, 5) for n in range(4)]
    detections = [
        (1, "ant", box, score) for box, score in zip(boxes, (0.5, 0.9, 0.5, 0.1), strict=True)
    ]
    detections += [(1, "bee", boxes[0], 0.05), (1, "bee", boxes[1], 0.7)]
    (image,) = image_pairs(*scene([(1, "ant", (0, 0, 5, 5))], detections), max_detections=3)
    assert image.detections.tolist() == [1, 5, 0, 2, 4]
    assert image.iou.shape == (5, 1)


def test_hundreds_of_objects_and_detections() -> None:
    boxes = [(4 * (n % 30), 4 * (n // 30), 3, 3) for n in range(300)]
    objects, detections = (
        [(1, "ant", box) for box in boxes],
        [(1, "ant", box, 0.5) for box in boxes],
    )
    for field in ("bbox", "segmentation"):
        truth, results = scene(objects, detections)
        (image,) = image_pairs(
            truth, without(results, field), max_detections=1000, boundary=field == "bbox"
        )
        assert np.array_equal(image.iou, np.eye(300))
        assert (image.areas == 9).all()


def test_polygons_and_runs_in_the_ground_truth() -> None:
    truth, results = scene([(1, "ant", (10, 20, 30, 40))] * 2, [(1, "ant", (10, 20, 30, 40), 0.5)])
    truth["annotations"][0]["segmentation"] = [[10, 20, 40, 20, 40, 60, 10, 60]]
    (image,) = image_pairs(truth, results)
    assert image.iou.tolist() == [[1, 1]]


def test_nothing_found_and_nothing_there() -> None:
    truth, _ = scene([(1, "ant", (0, 0, 5, 5))], [])
    (image,) = image_pairs(truth, [], boundary=True)
    assert image.iou.shape == (0, 1)
    assert image.of_one_class().shape == (0, 1)
    assert kind_of([], truth) == "mask"


def test_what_does_not_belong_is_told() -> None:
    truth, results = scene([], [(1, "ant", (0, 0, 5, 5), 0.5)])
    with pytest.raises(
        UserError, match="the results have image ids that the ground truth does not have, 7"
    ):
        list(image_pairs(truth, [results[0] | {"image_id": 7}]))
    with pytest.raises(UserError, match="entry 1 of the results has no 'segmentation'"):
        list(image_pairs(truth, results + without(results, "segmentation")))
    assert len(CLASSES) == 3
