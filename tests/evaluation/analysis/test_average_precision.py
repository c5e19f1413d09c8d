"""Our plain AP against pycocotools', through `coco_ap`, and by hand."""

import math

import numpy as np
import pytest
from box_scenes import CLASSES, random_scene, scene
from coco_cases import coco_ap

from maskrcnn_lit.data.coco.sizes import SIZES
from maskrcnn_lit.evaluation.analysis.average_precision import (
    THRESHOLDS,
    average_precision,
    interpolated,
    judge,
    judge_size,
    judged_at_50,
    match,
    mean,
)
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs
from maskrcnn_lit.evaluation.coco.scores import match_all


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools(seed: int, iou_type: str) -> None:
    truth, results = random_scene(seed)
    if iou_type == "bbox":
        results = [
            {key: value for key, value in entry.items() if key != "segmentation"}
            for entry in results
        ]
    expected = coco_ap(truth, results, iou_type=iou_type)
    pairs = list(image_pairs(truth, results))
    ap = average_precision(judge(pairs, len(CLASSES)))
    for name, values in zip(CLASSES, ap, strict=True):
        assert values.mean() == pytest.approx(
            expected["ap_per_class"][name], abs=1e-12, nan_ok=True
        )
    assert mean(ap) == pytest.approx(expected["ap"], abs=1e-12)
    assert mean(ap[:, 0]) == pytest.approx(expected["ap50"], abs=1e-12)
    assert mean(ap[:, 5]) == pytest.approx(expected["ap75"], abs=1e-12)
    for size in SIZES:
        of_size = mean(average_precision(judge_size(pairs, len(CLASSES), size)))
        wanted = expected[f"ap_{size}"]
        assert (
            of_size is None if math.isnan(wanted) else of_size == pytest.approx(wanted, abs=1e-12)
        )


def test_the_thresholds_are_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    assert np.array_equal(THRESHOLDS, Params().iouThrs)


def test_an_object_is_taken_once_and_by_the_best_detection() -> None:
    iou, none = np.array([[0.6, 0.7], [0.9, 0.8], [0.9, 0.9]]), np.zeros(2, bool)
    assert match(iou, np.array([0.5, 0.75]), none, none).tolist() == [[1, 0, -1], [-1, 0, 1]]
    assert match(np.zeros((2, 0)), np.array([0.5]), none[:0], none[:0]).tolist() == [[-1, -1]]


def test_an_ignored_object_is_taken_only_where_no_other_will_do() -> None:
    iou = np.array([[0.9, 0.6]] * 3)
    ignore = np.array([True, False])
    once = match(iou, np.array([0.5]), ignore, np.zeros(2, bool))
    assert once.tolist() == [[1, 0, -1]]
    assert match(iou, np.array([0.5]), ignore, ignore).tolist() == [[1, 0, 0]]


def test_of_equal_objects_the_last_is_taken() -> None:
    none = np.zeros(3, bool)
    assert match(np.array([[0.8, 0.8, 0.2]]), np.array([0.5]), none, none).tolist() == [[1]]


def test_precision_by_hand() -> None:
    # right, wrong, right of four objects: recall 0.25 at precision 1, 0.5 at 2/3
    points = interpolated(np.array([True, False, True]), 4)
    assert points[:26].tolist() == [1.0] * 26
    assert points[26:51].tolist() == [2 / 3] * 25
    assert not points[51:].any()
    assert not interpolated(np.zeros(0, bool), 4).any()


def test_objects_that_do_not_count_make_their_detections_neither_right_nor_wrong() -> None:
    objects = [(1, "ant", (0, 0, 20, 20)), (1, "ant", (50, 0, 20, 20))]
    detections = [
        (1, "ant", (50, 0, 20, 20), 0.9),
        (1, "ant", (50, 0, 20, 20), 0.8),
        (1, "ant", (0, 0, 20, 20), 0.7),
    ]
    pairs = list(image_pairs(*scene(objects, detections)))

    def first(image):
        return np.array([True, False])

    judged = judge(pairs, 3, counted=first)
    assert judged.objects.tolist() == [1, 0, 0]
    assert judged.ignored[0].tolist() == [True, False, False]
    assert judged.right[0].tolist() == [
        False,
        False,
        True,
    ]
    judged = judge(pairs, 3, counted=first, ignored_reusable=True)
    assert judged.ignored[0].tolist() == [True, True, False]
    assert average_precision(judged)[0].tolist() == [1.0] * 10
    assert np.isnan(average_precision(judged)[1:]).all()


@pytest.mark.parametrize(("field", "kind"), [("segmentation", "mask"), ("bbox", "box")])
@pytest.mark.parametrize("seed", range(4))
def test_what_scoring_has_matched_is_what_pairs_are_judged_as(
    seed: int, field: str, kind: str
) -> None:
    truth, results = random_scene(seed)
    results = [
        {key: r[key] for key in ("image_id", "category_id", "score", field)} for r in results
    ]
    truth["categories"].sort(key=lambda category: category["id"])  # as matches number them
    found = judged_at_50(match_all(truth, results, 3)[kind])
    judged = judge(list(image_pairs(truth, results, max_detections=3)), 3, np.array([0.5]))
    assert found.objects.tolist() == judged.objects.tolist()
    columns = [
        sorted(
            zip(
                j.labels.tolist(),
                j.scores.tolist(),
                j.right[0].tolist(),
                j.ignored[0].tolist(),
                strict=True,
            )
        )
        for j in (found, judged)
    ]
    assert columns[0] == columns[1]
    assert found.right.any()
    assert found.ignored.any()


def test_nothing_at_all() -> None:
    judged = judge([], 2)
    assert mean(average_precision(judged)) is None
    assert judged.right.shape == (10, 0)
