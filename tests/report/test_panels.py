"""Ground truth beside prediction, of a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import SIZE, detections, image
from torch.utils.data import default_collate

from maskrcnn_lit.data.batch import Batch, check_batch
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.report import panels
from maskrcnn_lit.report.draw import draw_instances
from maskrcnn_lit.report.panels import draw_panel, ground_truth_from_batch


def rectangle(box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def batch_of_one() -> tuple[Batch, np.ndarray]:
    """Two images; the second is 80 x 120 at scale 2, with an L of 30 x 40 original pixels, whose
    mask it gives.
    """
    image = np.random.default_rng(0).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(image).resize((240, 160), Image.Resampling.BICUBIC))
    images = torch.zeros(2, 3, 192, 256, dtype=torch.uint8)
    images[1, :, :160, :240] = torch.from_numpy(image).permute(2, 0, 1)
    mask = np.zeros((80, 120), bool)
    mask[20:50, 10:20] = mask[40:50, 10:50] = True
    crop = np.array(
        Image.fromarray(mask[20:50, 10:50]).resize((112, 112), Image.Resampling.NEAREST)
    )
    masks = torch.zeros(2, 3, 112, 112, dtype=torch.uint8)
    masks[1, 0], masks[1, 1] = torch.from_numpy(crop.astype(np.uint8)), 1
    boxes = torch.zeros(2, 3, 4)
    boxes[1, :2] = torch.tensor([[20.0, 40, 100, 100], [140, 20, 200, 60]])
    batch = {
        "images": images,
        "image_sizes": torch.tensor([[192, 256], [160, 240]]),
        "scales": torch.full((2, 2), 2.0),
        "original_sizes": torch.tensor([[96, 128], [80, 120]]),
        "image_ids": torch.tensor([5, 6]),
        "readable": torch.ones(2, dtype=torch.bool),
        "boxes": boxes,
        "labels": torch.tensor([[0, 0, 0], [2, 1, 0]]),
        "valid": torch.tensor([[False] * 3, [True, False, False]]),
        "crowd": torch.tensor([[False] * 3, [False, True, False]]),
        "masks": masks,
        "mask_boxes": boxes.clone(),
    }
    check_batch(batch, num_classes=2)
    return batch, mask


def test_a_target_of_a_batch_goes_back_to_the_original_image() -> None:
    batch, mask = batch_of_one()
    picture, target = ground_truth_from_batch(batch, 1, ["cat", "dog"])
    assert picture.shape == (80, 120, 3)
    seen = batch["images"][1, :, :160, :240].permute(1, 2, 0).numpy().astype(int)
    halved = seen.reshape(80, 2, 120, 2, 3).mean((1, 3))
    assert abs(picture - halved).mean() < 3
    assert target["names"] == ["dog", "cat (crowd)"]
    np.testing.assert_allclose(target["boxes"], [[10, 20, 50, 50], [70, 10, 100, 30]])
    np.testing.assert_array_equal(target["masks"][0], mask)
    np.testing.assert_array_equal(target["masks"][1], rectangle((70, 10, 100, 30), 80, 120))
    assert draw_instances(picture, **target).shape == (320, 480, 3)


def test_void_pixels_of_a_batch_go_back_to_the_original_image() -> None:
    batch, _ = batch_of_one()
    assert "void" not in ground_truth_from_batch(batch, 1, ["cat", "dog"])[1]
    batch["void"] = torch.zeros(2, 192, 256, dtype=torch.uint8)
    batch["void"][1, 20:40, 60:100] = 1
    batch["void"][1, 160:, 240:] = 1  # padding
    check_batch(batch, num_classes=2)
    picture, target = ground_truth_from_batch(batch, 1, ["cat", "dog"])
    np.testing.assert_array_equal(target["void"], rectangle((30, 10, 50, 20), 80, 120))
    assert draw_instances(picture, **target).shape == (320, 480, 3)


def test_an_image_of_a_batch_without_objects() -> None:
    batch, _ = batch_of_one()
    picture, target = ground_truth_from_batch(batch, 0, ["cat", "dog"])
    assert (picture.shape, target["names"], target["masks"]) == ((96, 128, 3), [], [])
    assert draw_instances(picture, **target).shape == (384, 512, 3)


def test_masks_that_reach_over_the_image_are_cut() -> None:
    pasted = panels._paste(np.ones((28, 28), np.uint8), np.array([-10.0, -10, 20, 5]), 40, 50)
    np.testing.assert_array_equal(pasted, rectangle((0, 0, 20, 5), 40, 50))


def test_the_panel_has_truth_left_and_prediction_right(tmp_path: Path):
    batch = default_collate([image(100), image(101)])
    output = Output({}, {}, detections(batch), None)
    names = ["circle", "square"]
    panel = draw_panel(batch, output, 1, names, 0.5)
    height, width = panel.shape[:2]
    assert panel.dtype == np.uint8
    assert width > 2 * SIZE
    assert max(height, width) <= 1400
    nothing = draw_panel(batch, output, 1, names, 0.95)  # all scores are 0.9
    differs = (panel != nothing).any((0, 2)).nonzero()[0]
    assert differs.min() >= width // 2
    assert len(differs) > 10


def test_a_panel_needs_detections():
    with pytest.raises(ValueError, match="has no detections: set the model to eval mode"):
        draw_panel(default_collate([image(100)]), Output({}, {}, None, None), 0, ["a", "b"], 0.5)
