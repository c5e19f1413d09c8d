"""The detections without test-time augmentation, from the output of a model with it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskrcnn_lit.callbacks.plain_detections import PlainDetections
from maskrcnn_lit.data.batch import BLANK_ID
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.model.mask_rcnn import Output


def batch() -> dict[str, Any]:
    return {
        "scales": torch.full((3, 2), 0.5),
        "original_sizes": torch.full((3, 2), 40),
        "image_ids": torch.tensor([9, 4, BLANK_ID]),
        "readable": torch.tensor([True, True, False]),
    }


def found(shift: float) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[[1.0, 2, 5, 8]]]).repeat(3, 1, 1) + shift
    return {
        "boxes": boxes,
        "scores": torch.full((3, 1), 0.5),
        "labels": torch.full((3, 1), 2),
        "valid": torch.ones(3, 1, dtype=torch.bool),
    }


def test_plain_detections_are_collected_in_the_order_of_ids():
    callback, nothing = PlainDetections(), SimpleNamespace()
    output = Output({}, {}, found(0), None, plain=found(1))
    callback.on_validation_batch_end(nothing, nothing, output, batch(), 0)
    results = callback.results([Category(3, "cat"), Category(7, "dog")])
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (4, 7, [4.0, 6.0, 8.0, 12.0]),
        (9, 7, [4.0, 6.0, 8.0, 12.0]),
    ]
    callback.on_validation_epoch_start(nothing, nothing)
    assert callback.results([Category(3, "cat")]) == []


def test_a_model_without_views_is_an_error():
    output = Output({}, {}, found(0), None)
    with pytest.raises(ValueError, match="WithViews"):
        PlainDetections().on_validation_batch_end(
            SimpleNamespace(), SimpleNamespace(), output, batch(), 0
        )
