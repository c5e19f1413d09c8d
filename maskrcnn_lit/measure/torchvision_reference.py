"""Torchvision's Mask R-CNN with the settings of a config, for `bench against=torchvision`."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError

# Options of conf/model and the value that torchvision's model has, which takes no other.
FIXED: dict[str, Any] = {
    "backbone.deformable": None,
    "backbone.norm_eps": None,
    "backbone.stride_in_1x1": False,
    "fpn.connections": "both",
    "fpn.norm": None,
    "fpn.path_augmentation": False,
    "fpn.separable": False,
    "anchors.offset": 0,
    "rpn.box_loss": "smooth_l1",
    "rpn.objectness_loss": "cross_entropy",
    "rpn.separable": False,
    "roi_align.aligned": False,
    "roi_align.kind": "align",
    "roi_align.level": None,
    "roi_align.points": 2,
    "box_head.box_loss": "smooth_l1",
    "box_head.cascade": None,
    "box_head.class_loss": "cross_entropy",
    "box_head.convs": 0,
    "box_head.fcs": 2,
    "box_head.label_smoothing": 0,
    "box_head.norm": None,
    "mask_head.activation": "sigmoid",
    "mask_head.class_agnostic": False,
    "mask_head.fcs": 0,
    "mask_head.norm": None,
    "mask_head.separable": False,
    "mask_iou": False,
    "mask_refine": None,
    "occluder": False,
    "nms": "box",
    "agnostic_nms": False,
    "exclusive": False,
}

LAYERS = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}


def check_ours(model: Mapping[str, Any]) -> None:
    """Raise UserError for a conf/model, as plain data, that torchvision has no counterpart of: one
    with a custom part, without masks, or with another value of FIXED.
    """
    parts = {"model": model} | {
        f"model.{name}": part for name, part in model.items() if isinstance(part, Mapping)
    }
    for name, part in parts.items():
        target = str(part.get("_target_", ""))
        if target and not target.startswith("maskrcnn_lit."):
            raise UserError(
                f"against=torchvision compares only parts of maskrcnn_lit, but {name} is {target}: "
                "use backbone=resnet50 and a model such as mask_rcnn, or leave out against"
            )
    if model.get("mask_head", {}) is None:
        raise UserError(
            "against=torchvision compares models with masks, but model.mask_head is null: leave "
            "out against"
        )
    for name, fixed in FIXED.items():
        group, _, option = name.rpartition(".")
        value = (parts[f"model.{group}"] if group else model).get(option, fixed)
        if value != fixed:
            raise UserError(
                f"against=torchvision compares no model with model.{name}={value}: use "
                f"model.{name}={'null' if fixed is None else str(fixed).lower()}, as torchvision's "
                "model has it, or leave out against"
            )


def torchvision_reference(
    model: dict[str, Any], num_classes: int, norm: str, frozen: int
) -> nn.Module:
    """Torchvision's model with random weights, with the parameter names that
    `convert.from_torchvision` reads.

    Args: model: conf/model as plain data, its backbone a ResNet of torchvision; num_classes:
        without background. norm, frozen: of our backbone: frozen or batch; the number of frozen
        stages.

    Raises:
        UserError: torchvision has no counterpart.
    """
    check_ours(model)
    name = str(model["backbone"].get("name"))
    resnets = ("resnet", "resnext", "wide_resnet")
    known = name.startswith(resnets) and name in torchvision.models.list_models()
    if not known or norm not in ("frozen", "batch"):
        raise UserError(
            "against=torchvision compares only a ResNet with frozen or batch norms, but this is "
            f"{name} with norm={norm}: use backbone=resnet50, or leave out against"
        )
    width, anchors, rpn, box, mask = (
        model[key] for key in ("fpn", "anchors", "rpn", "box_head", "mask_head")
    )
    channels = width["channels"]
    layer = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    trunk = torchvision.models.get_model(name, weights=None, norm_layer=layer)
    stages = [[trunk.conv1, trunk.bn1], *([getattr(trunk, name)] for name in LAYERS)]
    for part in (part for stage in stages[:frozen] for part in stage):
        part.requires_grad_(False)
    inputs = [trunk.inplanes // 8 << stage for stage in range(4)]
    ratios = tuple(anchors["ratios"])
    generator = AnchorGenerator(
        tuple((size,) for size in anchors["sizes"]), (ratios,) * len(anchors["sizes"])
    )
    levels = list(LAYERS.values())
    return MaskRCNN(
        BackboneWithFPN(trunk, LAYERS, inputs, channels),
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(channels, len(ratios), rpn["depth"]),
        **{
            f"rpn_{key}_top_n_{phase}": rpn[key][phase]
            for key in ("pre_nms", "post_nms")
            for phase in rpn[key]
        },
        rpn_nms_thresh=rpn["nms_iou"],
        rpn_fg_iou_thresh=rpn["object_iou"],
        rpn_bg_iou_thresh=rpn["background_iou"],
        rpn_batch_size_per_image=rpn["batch_size"],
        rpn_positive_fraction=rpn["positive_fraction"],
        box_roi_pool=MultiScaleRoIAlign(levels, box["pool"], 2),
        box_head=TwoMLPHead(channels * box["pool"] ** 2, box["width"]),
        box_predictor=FastRCNNPredictor(box["width"], num_classes + 1),
        box_batch_size_per_image=box["batch_size"],
        box_positive_fraction=box["positive_fraction"],
        box_fg_iou_thresh=box["object_iou"],
        box_bg_iou_thresh=box["object_iou"],
        bbox_reg_weights=tuple(box["box_weights"]),
        box_score_thresh=box["score_threshold"],
        box_nms_thresh=box["nms_iou"],
        box_detections_per_img=box["max_detections"],
        mask_roi_pool=MultiScaleRoIAlign(levels, mask["pool"], 2),
        mask_head=MaskRCNNHeads(channels, (mask["width"],) * mask["depth"], 1),
        mask_predictor=MaskRCNNPredictor(mask["width"], mask["width"], num_classes + 1),
        image_mean=model["mean"],
        image_std=model["std"],
        _skip_resize=True,  # done by the loader
    )


def reference_inputs(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The batch in torchvision's format: float images without padding, masks of the full image."""
    images, targets = [], []
    for i, (height, width) in enumerate(batch["image_sizes"].tolist()):
        filled = batch["valid"][i]
        crops = zip(batch["masks"][i][filled], batch["mask_boxes"][i][filled].tolist(), strict=True)
        masks = [_whole(crop, box, height, width) for crop, box in crops]
        images.append(batch["images"][i, :, :height, :width] / 255)
        targets.append(
            {
                "boxes": batch["boxes"][i][filled],
                "labels": batch["labels"][i][filled],
                "masks": torch.stack(masks)
                if masks
                else batch["masks"].new_zeros(0, height, width),
            }
        )
    return images, targets


def _whole(crop: Tensor, box: list[float], height: int, width: int) -> Tensor:
    """M M -> H W: paste the crop into the full image."""
    x, y = max(0, round(box[0])), max(0, round(box[1]))
    size = (max(1, round(box[3]) - y), max(1, round(box[2]) - x))
    mask = crop.new_zeros(height, width)
    pasted = F.interpolate(crop[None, None], size=size, mode="nearest")[0, 0]
    mask[y : y + size[0], x : x + size[1]] = pasted[: height - y, : width - x]
    return mask
