"""The same images of several runs: the ground truth first, then what each found."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_sample import HEIGHT, WIDTH, ground_truth, results

from maskrcnn_lit.report.comparison import examples as job_pictures
from maskrcnn_lit.report.comparison.examples import draw_examples


def gray(image_id: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


def test_each_image_has_the_truth_and_each_run_in_order():
    weak = [entry | {"score": 0.4} for entry in results()]
    examples = draw_examples({7, 9}, ground_truth(), [("a", results()), ("b", weak)], gray)
    assert [(example.name, example.image_id) for example in examples] == [
        ("7.png", 7),
        ("9.png", 9),
    ]
    assert [title for title, *_ in examples[0].pictures] == ["ground truth: 1", "a: 2", "b: 0"]
    assert [title for title, *_ in examples[1].pictures] == ["ground truth: 0", "a: 1", "b: 0"]
    for example in examples:
        for _, jpeg, width, height in example.pictures:
            assert Image.open(io.BytesIO(jpeg)).size == (width, height)
    truth, found, nothing = (
        np.asarray(Image.open(io.BytesIO(p[1])), np.int64) for p in examples[0].pictures
    )
    assert abs(truth - nothing).max() > 50
    assert abs(found - nothing).max() > 50
    assert abs(nothing - 90).max() < 10


def test_only_the_chosen_images_that_can_be_read_are_drawn():
    assert [e.image_id for e in draw_examples({9}, ground_truth(), [], gray)] == [9]
    assert draw_examples({7}, ground_truth(), [], lambda image_id: None) == []


def test_classes_scores_and_crowds_are_named(monkeypatch: pytest.MonkeyPatch):
    given: list[dict[str, Any]] = []

    def keep(image: np.ndarray, **more: Any) -> np.ndarray:
        given.append(more)
        return image

    monkeypatch.setattr(job_pictures, "draw_instances", keep)
    truth = ground_truth()
    truth["annotations"].append(truth["annotations"][0] | {"id": 71, "iscrowd": 1})
    draw_examples({7}, truth, [("a", results())], gray)
    assert given[0]["names"] == ["star", "star (crowd)"]
    assert given[0]["scores"] is None
    assert given[1]["names"] == ["circle", "circle"]
    assert given[1]["scores"] == [0.75, 0.75]
    assert given[1]["boxes"].tolist() == [[40, 20, 60, 40], [50, 5, 60, 15]]


def test_boxes_alone_can_be_drawn():
    boxes = [
        {key: value for key, value in entry.items() if key != "segmentation"} for entry in results()
    ]
    ((_, (title, jpeg, *_)),) = (
        e.pictures for e in draw_examples({7}, ground_truth(), [("a", boxes)], gray)
    )
    assert title == "a: 2"
    assert np.asarray(Image.open(io.BytesIO(jpeg))).std() > 0
