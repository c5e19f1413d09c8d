"""Small models and batches that need no configuration file."""

from functools import partial
from typing import Any

import torch

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.model.backbone import Backbone
from maskrcnn_lit.model.box_head import BoxHead
from maskrcnn_lit.model.fpn import FPN
from maskrcnn_lit.model.mask_head import MaskHead
from maskrcnn_lit.model.mask_rcnn import MaskRCNN, build_mask_rcnn
from maskrcnn_lit.model.rpn import RPN


def make_model(
    num_classes: int = 3,
    backbone: str = "resnet18",
    *,
    channels: int = 16,
    width: int = 32,
    depth: int = 1,
    regions: int = 32,
    proposals: int = 64,
    anchors: dict[str, Any] | None = None,
    rpn_depth: int = 1,
    head_norm: str | None = None,
    convs: int = 0,
    fcs: int = 2,
    roi_align: dict[str, Any] | None = None,
    mask_iou: bool = False,
    mask_refine: str | None = None,
    occluder: bool = False,
    cascade: tuple[float, ...] | None = None,
    masks: bool = True,
    box: dict[str, Any] | None = None,
    mask: dict[str, Any] | None = None,
    pyramid: dict[str, Any] | None = None,
    rpn: dict[str, Any] | None = None,
    **backbone_options: Any,
) -> MaskRCNN:
    """A Mask R-CNN with the paper's thresholds; by default narrow, for images of 64 to 160
    pixels.
    """
    return build_mask_rcnn(
        num_classes=num_classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        backbone=Backbone(
            **{"name": backbone, "norm": "batch", "freeze_at": 0, "recompute": True}
            | backbone_options
        ),
        fpn=partial(FPN, channels=channels, norm=head_norm, **(pyramid or {})),
        anchors=Anchors(
            **{"sizes": (8, 16, 32, 64, 128), "ratios": (0.5, 1.0, 2.0), **(anchors or {})}
        ),
        rpn=partial(
            RPN,
            depth=rpn_depth,
            object_iou=0.7,
            background_iou=0.3,
            batch_size=256,
            positive_fraction=0.5,
            nms_iou=0.7,
            pre_nms={"train": 2 * proposals, "test": proposals},
            post_nms={"train": proposals, "test": proposals},
            **(rpn or {}),
        ),
        box_head=partial(
            BoxHead,
            pool=7,
            conv_width=channels,
            convs=convs,
            norm=head_norm,
            fcs=fcs,
            width=width,
            object_iou=0.5,
            batch_size=regions,
            positive_fraction=0.25,
            box_weights=(10.0, 10.0, 5.0, 5.0),
            score_threshold=0.05,
            nms_iou=0.5,
            max_detections=100,
            candidates=2000,
            cascade=cascade,
            **(box or {}),
        ),
        mask_head=partial(
            MaskHead, width=channels, depth=depth, norm=head_norm, pool=14, **(mask or {})
        )
        if masks
        else None,
        roi_align=roi_align or {},
        mask_iou=mask_iou,
        mask_refine=mask_refine,
        occluder=occluder,
    )


def make_batch(
    images: int = 2, side: int = 64, objects: int = 2, slots: int = 4, mask_size: int = 28
) -> Batch:
    """Random pixels; `objects` boxes an image with full masks, labels 1, 2, 3, ...; the other slots
    are padding.
    """
    corner = torch.rand(images, objects, 2) * side / 2
    boxes = torch.zeros(images, slots, 4)
    boxes[:, :objects] = torch.cat(
        [corner, corner + side / 4 + torch.rand(images, objects, 2) * side / 4], dim=-1
    )
    labels = torch.zeros(images, slots, dtype=torch.int64)
    labels[:, :objects] = torch.arange(objects) % 3 + 1
    sizes = torch.full((images, 2), side)
    return {
        "images": torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8),
        "image_sizes": sizes,
        "scales": torch.ones(images, 2),
        "original_sizes": sizes.clone(),
        "image_ids": torch.arange(images) + 10,
        "readable": torch.ones(images, dtype=torch.bool),
        "boxes": boxes,
        "labels": labels,
        "valid": labels > 0,
        "crowd": torch.zeros(images, slots, dtype=torch.bool),
        "masks": (labels > 0)[..., None, None].expand(-1, -1, mask_size, mask_size).to(torch.uint8),
        "mask_boxes": boxes.clone(),
        "seeds": torch.arange(images),
    }
