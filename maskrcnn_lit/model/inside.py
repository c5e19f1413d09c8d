"""What the model computes between the pixels and the detections of an image, to look at: proposals,
matched anchors, pyramid levels, and the mask head's own output.

Letters: P proposals, N matched anchors, D detections, m mask side, G padded instances.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.model.boxes import iou
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.matching import OBJECT, match
from maskrcnn_lit.model.roi_align import level_of


class Inside(NamedTuple):
    """Of one image; boxes are x1 y1 x2 y2 in pixels of the batch. Level 2 is p2."""

    proposals: Tensor  # P 4, best first
    objectness: Tensor  # P, 0..1
    proposal_levels: Tensor  # P int64: the level that RoIAlign reads for the box head
    anchors: Tensor  # N 4: those that are trained to be objects
    anchor_slots: Tensor  # N int64 into G: the object of each
    anchor_ious: Tensor  # N: with that object
    anchor_levels: Tensor  # N int64: the level that the anchor belongs to
    detections: dict[str, Tensor]  # boxes D 4, scores D, labels D, perhaps masks
    detection_levels: Tensor  # D int64: the level that RoIAlign reads for the mask head
    masks: Tensor | None  # D m m: the mask head's probabilities; None without a mask head


@torch.inference_mode()
def look_inside(model: MaskRCNN, batch: Batch) -> Inside:
    """One forward pass for one image with its targets; `model` is in evaluation mode. The
    detections are those of `model(batch)`.

    Raises:
        ValueError: the batch has another number of images than one.
    """
    if len(batch["image_sizes"]) != 1:
        raise ValueError(f"look_inside takes one image, got {len(batch['image_sizes'])}")
    sizes = batch["image_sizes"]
    pyramid, prediction = model.trunk(batch["images"], sizes)
    anchors = model.anchors(pyramid, batch["images"].shape[-2:])
    proposals, logits, valid = model.rpn.propose(prediction, anchors, sizes, "test")
    detections = model.detect(pyramid, proposals, valid, sizes)
    real = detections["valid"][0]
    boxes, labels = detections["boxes"][:, real], detections["labels"][:, real]
    masks = model.predict_masks(pyramid, boxes, labels).get("masks")
    matched, slots = _matched_anchors(model, anchors, batch)
    # of each anchor; the levels of the pyramid begin where those of RoIAlign do
    first = _first_level(model)
    levels = torch.arange(len(pyramid), device=anchors.device) + first
    counts = torch.tensor(prediction.level_sizes, device=anchors.device)
    overlaps = iou(anchors[matched][None], batch["boxes"])[0]  # N G
    return Inside(
        proposals=proposals[0, valid[0]],
        objectness=logits[0, valid[0]].sigmoid(),
        proposal_levels=_roi_levels(model, proposals[0, valid[0]]),
        anchors=anchors[matched],
        anchor_slots=slots,
        anchor_ious=overlaps.gather(1, slots[:, None])[:, 0],
        anchor_levels=levels.repeat_interleave(counts)[matched],
        detections={key: value[0, real] for key, value in detections.items() if key != "valid"},
        detection_levels=_roi_levels(model, boxes[0]),
        masks=None if masks is None else masks[0],
    )


def _matched_anchors(model: MaskRCNN, anchors: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions of the anchors that count as objects in training, and the slot of the object of
    each: N, N.
    """
    index, kind = match(
        anchors[None],
        batch["boxes"],
        batch["valid"],
        batch["crowd"],
        object_iou=model.rpn.object_iou,
        background_iou=model.rpn.background_iou,
        keep_best=True,
    )
    matched = (kind[0] == OBJECT).nonzero()[:, 0]
    return matched, index[0, matched]


def _first_level(model: MaskRCNN) -> int:
    """The number of the finest level: 2 for a stride of 4."""
    return int(model.strides[0]).bit_length() - 1


def _roi_levels(model: MaskRCNN, boxes: Tensor) -> Tensor:
    """R 4 -> R int64: the level that RoIAlign reads for each region."""
    if model.level is not None:
        return torch.full((len(boxes),), model.level, device=boxes.device)
    return level_of(boxes, len(model.strides)) + _first_level(model)
