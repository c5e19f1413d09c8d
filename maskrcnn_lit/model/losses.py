"""The five losses of Mask R-CNN as functions of tensors (He et al. 2017, section 3; Faster R-CNN,
equation 1).

Each is a sum over the sampled boxes divided by their number, with masks as weights instead of
indices: equal results at static shapes. Callers pass full precision. S is the number of sampled
boxes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_lit.model.boxes import area

# choices of the options box_loss, and class_loss or objectness_loss, of the RPN and the box head
BOX_LOSSES, CLASS_LOSSES = ("smooth_l1", "giou"), ("cross_entropy", "focal")

# Weights of giou_loss in the box head, as in MMDetection and Detectron2, and in the RPN, as in
# Detectron2's mask_rcnn_R_50_FPN_1x_giou.
GIOU_WEIGHT, RPN_GIOU_WEIGHT = 10.0, 2.0
FOCAL_GAMMA = 2.0

SMOOTH_L1_BETA = 1 / 9  # threshold of smooth L1 in the RPN and the box head, as in Detectron


def objectness_loss(logits: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of sampled anchors: B S logits, B S bool, B S bool -> scalar."""
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return (loss * valid).sum() / count(valid)


def focal_objectness_loss(logits: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """As `objectness_loss`, times (1 - p) ** FOCAL_GAMMA with p the probability of what the anchor
    is (Lin et al. 2017, "Focal loss for dense object detection", equation 4).
    """
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return (_focal(loss) * valid).sum() / count(valid)


def _focal(loss: Tensor) -> Tensor:
    """Cross-entropies -log p -> focal losses."""
    return loss * (1 - torch.exp(-loss)).clamp(min=0) ** FOCAL_GAMMA


def box_loss(deltas: Tensor, targets: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Smooth L1 of the positives' deltas, divided by the number of all sampled boxes: B S 4, B S 4,
    B S, B S -> scalar.
    """
    # Targets of negatives may be infinite; remove them before the subtraction to avoid NaN.
    difference = deltas - torch.where(positive[..., None], targets, deltas.detach())
    zero = torch.zeros_like(difference)
    loss = F.smooth_l1_loss(difference, zero, beta=SMOOTH_L1_BETA, reduction="none")
    return (loss * positive[..., None]).sum() / count(valid)


def giou_loss(
    boxes: Tensor, truth: Tensor, positive: Tensor, valid: Tensor, weight: float = GIOU_WEIGHT
) -> Tensor:
    """1 - generalized IoU (Rezatofighi et al. 2019, algorithm 1) of the positives' boxes and their
    objects, divided by the number of all sampled boxes, times `weight`: B S 4, B S 4, B S, B S ->
    scalar. Other boxes may be anything.
    """
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    boxes, truth = (torch.where(positive[..., None], own, unit) for own in (boxes, truth))
    low, high = (torch.maximum, torch.minimum)
    shared = high(boxes[..., 2:], truth[..., 2:]) - low(boxes[..., :2], truth[..., :2])
    hull = low(boxes[..., 2:], truth[..., 2:]) - high(boxes[..., :2], truth[..., :2])
    overlap, around = shared.clamp(min=0).prod(dim=-1), hull.prod(dim=-1)
    union = area(boxes) + area(truth) - overlap
    giou = overlap / union.clamp(min=1e-6) - (around - union) / around.clamp(min=1e-6)
    return weight * ((1 - giou) * positive).sum() / count(valid)


def focal_class_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """As `class_loss`, times (1 - p) ** FOCAL_GAMMA with p the probability of the true class (Lin
    et al. 2017, equation 4, over a softmax).
    """
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (_focal(loss) * valid.flatten()).sum() / count(valid)


def class_loss(logits: Tensor, labels: Tensor, valid: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of sampled regions over background (0) and classes: B S K+1, B S int64, B S ->
    scalar.

    smoothing: the share of each target that is spread evenly over all K + 1 (Szegedy et al. 2016,
    section 7).
    """
    loss = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    return (loss * valid.flatten()).sum() / count(valid)


def mask_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, counted: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy over the pixels of the positives' masks, each of its own class only
    (section 3, "decouples mask and class prediction"): S m m logits, S m m in [0, 1], S bool ->
    scalar.

    counted: S m m in [0, 1], the share of a pixel that is not void; the mean of a mask is over
    these shares. None: all pixels count.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _over_masks(loss, valid, counted)


def multinomial_mask_loss(
    logs: Tensor, targets: Tensor, valid: Tensor, counted: Tensor | None = None
) -> Tensor:
    """As `mask_loss`, but classes and background compete in each pixel (table 2b): S 2 m m log
    probabilities of the mask's class and of the background; a pixel outside of the mask is
    background.
    """
    return _over_masks(-(targets * logs[:, 0] + (1 - targets) * logs[:, 1]), valid, counted)


def _over_masks(loss: Tensor, valid: Tensor, counted: Tensor | None) -> Tensor:
    """S m m losses of pixels -> their mean."""
    if counted is None:
        loss = loss.mean(dim=(1, 2))
    else:
        loss = (loss * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1e-6)
    return (loss * valid).sum() / count(valid)


def count(valid: Tensor) -> Tensor:
    """The number of valid entries, at least 1, as a tensor, so that the division needs no
    synchronization.
    """
    return valid.sum().clamp(min=1)
