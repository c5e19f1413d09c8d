"""Precision and recall against pycocotools' accumulate, cell by cell."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_cases import CASES, box, found, jitter, small_truth
from plain_coco import evaluated

from maskrcnn_lit.evaluation.coco.matching import match_results
from maskrcnn_lit.evaluation.coco.precision import RECALLS, coco_tables, hits_needed


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "iou_type"),
    [
        ("jittered and shuffled", "segm"),
        ("images without objects or detections", "bbox"),
        ("five scores", "bbox"),
    ],
)
def test_every_cell_is_that_of_pycocotools(test_data: Path, name: str, iou_type: str) -> None:
    truth = json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())
    case = CASES[name](truth, jitter(truth))
    tables = coco_tables(
        match_results(case.truth, case.results, iou_type=iou_type, limit=100), (1, 10, 100)
    )
    theirs = evaluated(case.truth, case.results, iou_type).eval
    assert (tables.precision == theirs["precision"][..., -1]).all()
    assert (tables.recall == theirs["recall"]).all()
    assert (tables.recall > 0).any()
    assert (tables.recall == -1).any()


def test_by_hand() -> None:
    """Of class one, two objects: right, wrong, right. Of class two nothing is there to find."""
    truth = small_truth([box(1, 1, [0, 0, 50, 50]), box(2, 1, [0, 0, 50, 50])])
    results = [
        found(1, 1, [0, 0, 50, 50], 0.9),
        found(1, 1, [80, 80, 30, 30], 0.8),
        found(2, 1, [0, 0, 50, 50], 0.7),
    ]
    precision, recall = coco_tables(
        match_results(truth, results, iou_type="bbox", limit=100), (1, 2)
    )
    assert np.allclose(precision[:, :51, 0, 0], 1, atol=1e-12)
    assert np.allclose(precision[:, 51:, 0, 0], 2 / 3)
    assert (recall[:, 0, 0] == [1, 1]).all()
    assert (precision[:, :, 1] == -1).all()
    assert (recall[:, 1] == -1).all()
    assert precision.shape == (10, len(RECALLS), 2, 4)
    assert recall.shape == (10, 2, 4, 2)


def test_hits_that_a_recall_needs() -> None:
    assert hits_needed(1).tolist() == [0] + [1] * 100
    assert hits_needed(3)[[0, 1, 33, 34, 66, 67, 100]].tolist() == [0, 1, 1, 2, 2, 3, 3]
