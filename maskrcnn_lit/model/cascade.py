"""Cascade R-CNN (Cai and Vasconcelos 2018): box heads in a row, each on the boxes of the one before
and with a higher IoU threshold.

The head of the first stage is the model's box head, and the others are its `later` ones. As in
Detectron2: deltas of no class, losses that are added with the gradient at the features divided by
the number of stages, and class probabilities that are the mean over the stages.

Letters: B images, P boxes of an image, S sampled regions, C channels, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.box_head import BoxHead, SampledRegions
from maskrcnn_lit.model.boxes import clip, decode
from maskrcnn_lit.model.matching import IGNORED, OBJECT, match, take

Pool = Callable[[Tensor], Tensor]  # boxes B P 4 -> features (B P) C pool pool


def with_stages(head: Any, make: Callable[[], BoxHead]) -> Any:
    """`head` with the later stages that its option `cascade` asks for. make: builds a head of its
    kind. The deltas of stage n are scaled by n times the box weights (section 4.2).

    Raises: UserError: `head` is a class of the user that has no such stages.
    """
    thresholds = getattr(head, "cascade", None)
    if thresholds is None:
        return head
    if not isinstance(head, BoxHead):
        raise UserError(
            f"model.box_head.cascade={list(thresholds)} needs a BoxHead or a class that inherits "
            f"from it, but the box head is a {type(head).__name__}: use cascade=null"
        )
    head.object_iou = thresholds[0]
    for number, threshold in enumerate(thresholds[1:], start=2):
        stage = make()
        stage.object_iou = threshold
        stage.box_weights = tuple(number * weight for weight in head.box_weights)
        head.later.append(stage)
    return head


def stages(head: Any) -> list[Any]:
    """The heads of all stages, in order; of a plain box head, itself."""
    return [head, *getattr(head, "later", ())]


def scaled(features: Tensor, count: int) -> Tensor:
    """The same features, with a gradient divided by the number of stages."""
    if count == 1:
        return features
    still = features.detach()
    return still + (features - still) / count


def predict(
    head: Any, pool: Pool, boxes: Tensor, image_sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of all stages for boxes B P 4 in images of B 2: logits (B P) K+1, whose softmax is
    the mean of the stages' class probabilities, the last stage's deltas, (B P) 1 4 or (B P) K 4,
    and the boxes B P 4 that these move.
    """
    logits, deltas = head(pool(boxes))
    every = stages(head)
    if len(every) == 1:
        return logits, deltas, boxes
    total = logits.softmax(dim=-1)
    for number, stage in enumerate(every[1:]):
        boxes = moved(boxes, deltas, every[number], image_sizes)
        logits, deltas = stage(pool(boxes))
        total = total + logits.softmax(dim=-1)
    return (total / len(every)).log(), deltas, boxes


def later_losses(
    head: Any,
    pool: Pool,
    deltas: Tensor,
    regions: SampledRegions,
    batch: Batch,
    static_shapes: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of the stages after the first, and the sample size of each. deltas: (B S) 1 4, of
    the first stage, for its `regions`.
    """
    losses: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    every = stages(head)
    for number, stage in enumerate(every[1:], start=2):
        boxes = moved(regions.boxes, deltas, every[number - 2], batch["image_sizes"])
        regions = labeled(boxes, regions.valid, stage.object_iou, batch, static_shapes)
        logits, deltas = stage(scaled(pool(boxes), len(every)))
        own = stage.losses(logits, deltas, regions, batch)
        own = {f"{name}_stage{number}": loss for name, loss in own.items()}
        losses |= own
        counts |= dict.fromkeys(own, regions.valid.sum())
    return losses, counts


@torch.no_grad()
def moved(boxes: Tensor, deltas: Tensor, stage: BoxHead, image_sizes: Tensor) -> Tensor:
    """Boxes B P 4 moved by a stage's deltas (B P) 1 4 and clipped to their images."""
    return clip(decode(deltas.view_as(boxes), boxes, stage.box_weights), image_sizes)


@torch.no_grad()
def labeled(
    boxes: Tensor, valid: Tensor, threshold: float, batch: Batch, static_shapes: bool = False
) -> SampledRegions:
    """All of these boxes B S 4 as regions of a stage, without a draw: positive from this IoU on.
    Those without area count no more, and neither do background ones in a crowd.
    """
    instance, kind = match(
        boxes,
        batch["boxes"],
        batch["valid"],
        batch["crowd"],
        object_iou=threshold,
        background_iou=threshold,
        keep_best=False,
        static_shapes=static_shapes,
    )
    valid = valid & (kind != IGNORED) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    positive = valid & (kind == OBJECT)
    labels = torch.where(positive, take(batch["labels"], instance), 0)
    return SampledRegions(boxes, labels, instance, positive, valid)
