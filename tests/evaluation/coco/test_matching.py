"""The outcome of every detection, at every threshold and size, against pycocotools' evaluateImg and
by hand.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_cases import CASES, box, found, jitter, small_truth
from plain_coco import evaluated

from maskrcnn_lit.evaluation.coco import matching as coco_matching
from maskrcnn_lit.evaluation.coco.matching import (
    AREA_RANGES,
    IGNORED,
    RIGHT,
    THRESHOLDS,
    WRONG,
    match_results,
)


def outcomes(truth: dict, results: list[dict], **options: object) -> np.ndarray:
    return match_results(truth, results, **{"iou_type": "bbox", "limit": 100} | options).outcome


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "iou_type"),
    [("duplicated", "bbox"), ("images whose objects are crowds", "segm"), ("five scores", "bbox")],
)
def test_every_outcome_is_that_of_pycocotools(test_data: Path, name: str, iou_type: str) -> None:
    truth = json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())
    case = CASES[name](truth, jitter(truth))
    matches = match_results(case.truth, case.results, iou_type=iou_type, limit=100)
    theirs = evaluated(case.truth, case.results, iou_type)
    images, classes = sorted(theirs.params.imgIds), sorted(theirs.params.catIds)
    seen = 0
    for entry in filter(None, theirs.evalImgs):
        a = [range_ == entry["aRng"] for range_ in AREA_RANGES.tolist()].index(True)
        of_image = (matches.image == images.index(entry["image_id"])) & (
            matches.labels == classes.index(entry["category_id"])
        )
        expected = np.where(
            entry["dtIgnore"], IGNORED, np.where(entry["dtMatches"] > 0, RIGHT, WRONG)
        )
        assert (expected == matches.outcome[of_image, :, a].T).all()
        assert (matches.scores[of_image] == entry["dtScores"]).all()
        assert (matches.rank[of_image] == np.arange(of_image.sum())).all()
        seen += of_image.sum()
    assert seen == len(matches.outcome) * len(AREA_RANGES) > 1000


def test_detections_stand_by_class_and_score_and_equal_ones_by_image() -> None:
    truth = small_truth([box(1, 2, [0, 0, 9, 9])])
    results = [
        found(2, 1, [0, 0, 5, 5], 0.5),
        found(1, 2, [0, 0, 5, 5], 0.9),
        found(1, 1, [0, 0, 5, 5], 0.5),
    ]
    results.append(found(2, 1, [0, 0, 6, 6], 0.7))
    matches = match_results(truth, results, iou_type="bbox", limit=100)
    assert (matches.images, matches.classes) == (2, 2)
    assert matches.labels.tolist() == [0, 0, 0, 1]
    assert matches.image.tolist() == [1, 0, 1, 0]
    assert matches.scores.tolist() == [0.7, 0.5, 0.5, 0.9]
    assert matches.rank.tolist() == [0, 0, 1, 0]
    assert matches.truth_labels.tolist() == [1]
    assert matches.truth_image.tolist() == [0]
    assert matches.truth_counted.tolist() == [[True, True, False, False]]


def test_the_best_detection_takes_the_object_and_the_next_is_wrong() -> None:
    truth = small_truth([box(1, 1, [0, 0, 40, 40])])
    outcome = outcomes(truth, [found(1, 1, [0, 0, 40, 40], 0.8), found(1, 1, [0, 0, 40, 30], 0.9)])
    assert outcome[0, :, 0].tolist() == [RIGHT] * 6 + [WRONG] * 4  # the surer one, of IoU 0.75
    assert outcome[1, :, 0].tolist() == [WRONG] * 6 + [RIGHT] * 4


def test_an_object_that_counts_comes_before_a_nearer_one_that_is_ignored() -> None:
    truth = small_truth([box(1, 1, [0, 0, 40, 40], iscrowd=1), box(1, 1, [0, 0, 40, 30])])
    outcome = outcomes(truth, [found(1, 1, [0, 0, 40, 40], 0.9), found(1, 1, [0, 0, 20, 20], 0.8)])
    assert outcome[0, :, 0].tolist() == [RIGHT] * 6 + [IGNORED] * 4
    assert (
        outcome[1, :, 0] == IGNORED
    ).all()  # all of it lies in the crowd region, which is never taken


def test_sizes_decide_what_is_ignored() -> None:
    truth = small_truth([box(1, 1, [0, 0, 30, 30])])  # small
    outcome = outcomes(
        truth, [found(1, 1, [0, 0, 30, 30], 0.9), found(2, 1, [0, 0, 100, 100], 0.8)]
    )
    assert outcome[0, 0].tolist() == [RIGHT, RIGHT, IGNORED, IGNORED]
    assert outcome[1, 0].tolist() == [WRONG, IGNORED, IGNORED, WRONG]


def test_the_limit_keeps_the_best_of_each_image_and_class() -> None:
    results = [found(1, 1, [0, 0, 9, 9], n / 10) for n in range(5)] + [
        found(1, 2, [0, 0, 9, 9], 0.05)
    ]
    matches = match_results(small_truth([]), results, iou_type="segm", limit=2)
    assert matches.scores.tolist() == [0.4, 0.3, 0.05]
    assert matches.outcome.shape == (
        3,
        len(THRESHOLDS),
        len(AREA_RANGES),
    )


def test_pairs_in_parts_are_the_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(1, 60, (60, 4)).tolist()
    truth = small_truth([box(1, 1, place) for place in places[:30]])
    results = [found(1, 1, place, n / 100) for n, place in enumerate(places)]
    whole = outcomes(truth, results)
    assert (whole[:, 0, 0] == RIGHT).sum() >= 30
    monkeypatch.setattr(coco_matching, "_PAIRS", 7)
    assert (outcomes(truth, results) == whole).all()
