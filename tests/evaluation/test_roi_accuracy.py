import math

import pytest
import torch

from maskrcnn_lit.evaluation.roi_accuracy import RoiAccuracy


def _batch(ids: list[int]) -> dict[str, torch.Tensor]:
    """Each image: two objects, a crowd region, padding."""
    size = len(ids)
    return {
        "image_ids": torch.tensor(ids),
        "readable": torch.ones(size, dtype=torch.bool),
        "labels": torch.tensor([[1, 2, 3, 0]]).expand(size, 4),
        "valid": torch.tensor([[True, True, False, False]]).expand(size, 4),
        "crowd": torch.tensor([[False, False, True, False]]).expand(size, 4),
    }


def test_counts_objects_only_and_background_as_wrong() -> None:
    accuracy = RoiAccuracy()
    accuracy.update(torch.tensor([[1, 0, 3, 0], [1, 2, 0, 0]]), _batch([5, 6]))  # 1 of 2 and 2 of 2
    assert accuracy.compute() == pytest.approx(3 / 4)


def test_unreadable_images_do_not_count() -> None:
    batch = _batch([5, 6])
    batch["readable"] = torch.tensor([True, False])
    accuracy = RoiAccuracy()
    accuracy.update(torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0]]), batch)
    assert accuracy.compute() == 1.0


def test_an_image_counts_once_over_batches_and_processes() -> None:
    first, second = RoiAccuracy(), RoiAccuracy()
    first.update(torch.tensor([[1, 2, 0, 0]]), _batch([5]))
    first.update(torch.tensor([[1, 2, 0, 0]]), _batch([5]))
    second.update(torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0]]), _batch([5, 6]))
    first.merge(second)
    assert first.compute() == pytest.approx(2 / 4)


def test_nothing_seen_is_nan() -> None:
    assert math.isnan(RoiAccuracy().compute())
