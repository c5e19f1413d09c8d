"""Torchvision's model beside ours: of the same numbers, so that the same weights give the same
maps.
"""

import re
from typing import Any

import pytest
import torch
from models import make_batch

from maskrcnn_lit.config.compose import build, compose, to_dict
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.measure.torchvision_reference import (
    FIXED,
    check_ours,
    reference_inputs,
    torchvision_reference,
)
from maskrcnn_lit.model.pretrained import convert as weights


def plain(*options: str) -> dict[str, Any]:
    return to_dict(compose("train", ["model=tiny", "backbone=resnet18", *options]))["model"]


@pytest.mark.parametrize(("norm", "frozen"), [("batch", 0), ("frozen", 2)])
def test_the_same_weights_fit_both(norm: str, frozen: int) -> None:
    torch.manual_seed(0)
    config = plain(f"backbone.norm={norm}", f"backbone.freeze_at={frozen}")
    twin = torchvision_reference(config, 3, norm, frozen).eval()
    ours = build(config, num_classes=3).eval()
    weights.load(ours, weights.from_torchvision(twin.state_dict()))
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert len(trained) == sum(p.requires_grad for p in twin.parameters())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = twin.backbone(images).values()
        for mine, other in zip(ours.fpn(ours.backbone(images)), expected, strict=True):
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.long
def test_it_trains_and_detects_on_our_batches() -> None:
    torch.manual_seed(0)
    twin = torchvision_reference(plain(), 3, "batch", 0)
    images, targets = reference_inputs(make_batch())
    assert [tuple(image.shape) for image in images] == [(3, 64, 64)] * 2
    assert images[0].max() <= 1
    for target in targets:
        assert target["masks"].shape == (2, 64, 64)
        for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].tolist(), strict=True):
            assert mask.sum() == (round(y2) - round(y1)) * (round(x2) - round(x1))
            assert mask[round(y1), round(x1)] == 1
    assert all(loss.isfinite() for loss in twin(images, targets).values())
    assert len(twin.eval()(images)) == 2


def test_an_image_without_objects_has_no_masks() -> None:
    _, (target, _) = reference_inputs(make_batch(objects=0))
    assert target["masks"].shape == (0, 64, 64)
    assert target["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "norm"),
    [
        (["backbone=mobilenet_v2"], "batch"),
        ([], "group"),
        (["backbone.name=resnet26d"], "batch"),
    ],
)
def test_what_torchvision_has_not_is_told(options: list[str], norm: str) -> None:
    with pytest.raises(
        UserError, match=r"against=torchvision compares only a ResNet .* leave out against"
    ):
        torchvision_reference(plain(*options), 3, norm, 0)


OTHER = {  # an option of FIXED -> another value
    "backbone.deformable": [4, 5],
    "fpn.connections": "lateral",
    "roi_align.points": 0,
    "roi_align.kind": "warp",
    "roi_align.level": 4,
    "box_head.convs": 2,
    "box_head.cascade": [0.5, 0.6],
    "mask_head.activation": "softmax",
    "mask_refine": "points",
    "nms": "soft",
}


@pytest.mark.parametrize("name", FIXED)
def test_an_option_that_torchvision_has_not_is_told(name: str) -> None:
    model, fixed = plain(), FIXED[name]
    other = OTHER.get(name, "other" if fixed is None or isinstance(fixed, str) else not fixed)
    *group, option = name.split(".")
    part = model[group[0]] if group else model
    assert part.get(option, fixed) == fixed
    part[option] = other
    shown = "null" if fixed is None else str(fixed).lower()
    wanted = re.escape(f"no model with model.{name}={other}: use model.{name}={shown}, as torch")
    with pytest.raises(UserError, match=wanted):
        check_ours(model)


def test_masks_and_the_limits_of_the_config_are_torchvisions() -> None:
    model = plain("model.rpn.nms_iou=0.6", "model.box_head.nms_iou=0.4")
    twin: Any = torchvision_reference(model, 3, "batch", 0)
    assert (twin.rpn.nms_thresh, twin.roi_heads.nms_thresh) == (0.6, 0.4)
    with pytest.raises(UserError, match=r"with masks, but model\.mask_head is null"):
        check_ours(model | {"mask_head": None})


def test_a_part_of_ones_own_is_told() -> None:
    check_ours(plain())
    for name in ("backbone", "mask_head"):
        model = plain()
        model[name] = {"_target_": "mylab.Own", "channels": 8}
        with pytest.raises(UserError, match=rf"maskrcnn_lit, but model\.{name} is mylab\.Own"):
            check_ours(model)
    with pytest.raises(UserError, match=r"but model is mylab\.Model"):
        check_ours({"_target_": "mylab.Model"})
