"""A look inside of the model: the values are those that its parts compute."""

import pytest
import torch
from exported import lively
from models import make_batch

from maskrcnn_lit.model.boxes import iou
from maskrcnn_lit.model.inside import Inside, look_inside
from maskrcnn_lit.model.mask_rcnn import MaskRCNN


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return lively()


@pytest.fixture(scope="module")
def batch() -> dict:
    torch.manual_seed(1)
    return make_batch(images=1, side=128, objects=3)


@pytest.fixture(scope="module")
def inside(model: MaskRCNN, batch: dict) -> Inside:
    return look_inside(model, batch)


def test_the_detections_are_those_of_a_forward_pass(model: MaskRCNN, batch: dict, inside: Inside):
    with torch.inference_mode():
        expected = model(batch).detections
    real = expected["valid"][0]
    assert real.sum() > 20
    for key, value in inside.detections.items():
        assert torch.equal(value, expected[key][0, real]), key


def test_without_a_point_head_the_masks_are_those_of_the_detections(inside: Inside):
    torch.testing.assert_close(inside.masks, inside.detections["masks"])


def test_a_point_head_leaves_the_mask_heads_own_output(batch: dict):
    inside = look_inside(lively(mask_refine="points"), batch)
    assert inside.masks.shape[-1] == 28 < inside.detections["masks"].shape[-1]


def test_a_model_without_masks(batch: dict):
    inside = look_inside(lively(masks=False), batch)
    assert inside.masks is None
    assert len(inside.detections["boxes"]) > 5


def test_the_proposals_are_the_best_of_the_rpn(model: MaskRCNN, batch: dict, inside: Inside):
    assert inside.objectness.tolist() == sorted(inside.objectness.tolist(), reverse=True)
    with torch.inference_mode():
        pyramid, prediction = model.trunk(batch["images"], batch["image_sizes"])
        anchors = model.anchors(pyramid, batch["images"].shape[-2:])
        boxes, valid = model.proposals(prediction, anchors, batch["image_sizes"])
    assert torch.equal(inside.proposals, boxes[0, valid[0]])


def test_regions_read_the_level_of_equation_1(inside: Inside):
    for boxes, levels in (
        (inside.proposals, inside.proposal_levels),
        (inside.detections["boxes"], inside.detection_levels),
    ):
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        expected = [2 if side < 112 else 3 for side in sides.tolist()]  # 112 = 224 / 2
        assert levels.tolist() == expected


def test_one_level_for_all_regions(batch: dict):
    inside = look_inside(lively(roi_align={"level": 4}), batch)
    assert set(inside.proposal_levels.tolist()) == {4}


def test_matched_anchors_have_the_iou_or_are_the_best_of_their_object(
    model: MaskRCNN, batch: dict, inside: Inside
):
    pyramid, _ = model.trunk(batch["images"], batch["image_sizes"])
    every = model.anchors(pyramid, batch["images"].shape[-2:])
    overlaps = iou(every[None], batch["boxes"])[0]  # A G
    overlaps[:, ~batch["valid"][0]] = -1
    best = overlaps.amax(dim=0)
    assert len(inside.anchors) >= 3
    assert set(inside.anchor_slots.tolist()) == {0, 1, 2}
    for box, slot, own in zip(inside.anchors, inside.anchor_slots, inside.anchor_ious, strict=True):
        expected = iou(box[None, None], batch["boxes"][:, slot][:, None])[0, 0, 0]
        assert own == expected
        assert own >= 0.7 or own == best[slot]
    high = (overlaps.amax(dim=1) >= 0.7).sum()
    assert high <= len(inside.anchors)


def test_an_anchor_belongs_to_the_level_of_its_size(inside: Inside):
    """Sizes 8, 16, 32, 64, 128 on p2..p6."""
    sides = (inside.anchors[:, 2:] - inside.anchors[:, :2]).prod(dim=1).sqrt()
    assert inside.anchor_levels.tolist() == (sides / 8).log2().round().add(2).tolist()


def test_it_takes_one_image(model: MaskRCNN):
    with pytest.raises(ValueError, match="takes one image, got 2"):
        look_inside(model, make_batch(images=2))
