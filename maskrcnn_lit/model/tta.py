"""Test-time augmentation: detections of an image from several views of it, as Detectron2's
GeneralizedRCNNWithTTA does.

The boxes of all views, mapped back to the first one, are merged by the model's NMS. Then the mask
head predicts a mask of each merged box in every view, and the probabilities are averaged, those of
mirrored views mirrored back.

Letters: B images, H W the padded image, D detections.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.image_size import MAX_SIDE, ImageSize
from maskrcnn_lit.errors import UserError, check_choice
from maskrcnn_lit.model.mask_rcnn import MaskRCNN, Output
from maskrcnn_lit.model.matching import take
from maskrcnn_lit.model.suppression import CANDIDATES

KINDS = ("flip", "scales")

SMALLER, LARGER = 0.75, 1.25  # of data.image_size, the other sizes of `scales`
GRID = 32  # images are padded to multiples of it

Detections = dict[str, Tensor]


class View(NamedTuple):
    """The same B images at some size, as in data/batch.py.

    Attributes:
        images: B 3 H W uint8.
        sizes: B 2 int64, height and width of the valid part.
        scales: B 2, resized / original, for y and x.
        mirrored: whether each image is mirrored left to right.
    """

    images: Tensor
    sizes: Tensor
    scales: Tensor
    mirrored: bool = False


class Merged(NamedTuple):
    """Both results are in pixels of the first view.

    Attributes:
        detections: of all views, as `Output.detections`.
        plain: of the first view alone.
        pyramid: of the first view.
        seconds, plain_seconds: the time of the model for each of the two.
    """

    detections: Detections
    plain: Detections
    pyramid: list[Tensor]
    seconds: float
    plain_seconds: float


def check_tta(kind: str | None, model: Any) -> None:
    """Raise UserError for an unknown kind, or a model that cannot use it. `model`: any."""
    check_choice(KINDS, True, tta=kind)
    if kind is None:
        return
    if not isinstance(model, MaskRCNN):
        raise UserError(
            f"tta={kind} predicts masks of boxes that several views share, and the graph of an "
            "exported file has boxes and masks in one: give the run, or leave out tta"
        )
    if model.suppression.nms == "soft":
        others = "box, mask, matrix or containment" if model.mask_size else "box"
        raise UserError(
            f"tta={kind} merges views by NMS, and model.nms=soft lowers scores instead, in each "
            f"view again: use model.nms={others}"
        )
    if not callable(getattr(model.box_head, "suppress", None)):
        raise UserError(
            f"tta={kind} needs the method `suppress` of a box head, which "
            f"{type(model.box_head).__name__} lacks: subclass BoxHead, or leave out tta"
        )


def view_sizes(kind: str, image_size: ImageSize) -> list[ImageSize]:
    """The sizes of the views, `image_size` first; sides of the others are multiples of GRID."""
    if kind == "flip":
        return [image_size]
    sizes = [image_size]
    for factor in (SMALLER, LARGER):
        size: ImageSize
        if isinstance(image_size, int):
            size = _rounded(image_size, factor)
        else:
            size = (_rounded(image_size[0], factor), _rounded(image_size[1], factor))
        if size not in sizes:
            sizes.append(size)
    return sizes


def _rounded(side: int, factor: float) -> int:
    """`side * factor` as a multiple of GRID, away from `side`, so that a small side changes too."""
    cells = side * factor / GRID
    cells = int(cells) if factor < 1 else -int(-cells // 1)
    return min(max(cells * GRID, GRID), MAX_SIDE)


def with_mirrored(batches: Sequence[Batch]) -> list[View]:
    """Two views of each of these batches of the same images: as it is, and mirrored."""
    views = []
    for batch in batches:
        plain = View(batch["images"], batch["image_sizes"], batch["scales"])
        views += [plain, plain._replace(images=mirror(plain.images, plain.sizes), mirrored=True)]
    return views


def mirror(images: Tensor, sizes: Tensor) -> Tensor:
    """B 3 H W images, each of B 2 `sizes`, mirrored left to right; the padding stays where it
    is.
    """
    width = sizes[:, 1, None]
    column = torch.arange(images.shape[-1], device=images.device)
    source = torch.where(column < width, width - 1 - column, column)  # B W
    return images.gather(3, source[:, None, None].expand_as(images))


@torch.no_grad()
def detect_views(model: MaskRCNN, views: Sequence[View]) -> Merged:
    """Detections from all `views` of the same images; one view alone gives what the model does."""
    began = _now(model)
    pyramids, found = [], []
    pyramid, detections = _boxes(model, views[0])
    looked = _now(model)
    plain = model.finished(pyramid, detections)
    plain_done = _now(model)
    for view in views:
        if view is not views[0]:
            pyramid, detections = _boxes(model, view)
        pyramids.append(pyramid)
        boxes = _moved(detections["boxes"], view, views[0])
        empty = ~detections["valid"][..., None]
        found.append(detections | {"boxes": boxes.masked_fill(empty, 0)})
    merged = _with_masks(model, pyramids, views, merge(model, found))
    return Merged(
        model.marked(merged),
        model.marked(plain),
        pyramids[0],
        _now(model) - plain_done + looked - began,
        plain_done - began,
    )


def _now(model: MaskRCNN) -> float:
    """Seconds, after the work of the model's device."""
    if model.mean.device.type == "cuda":
        torch.cuda.synchronize(model.mean.device)
    return time.perf_counter()


def _boxes(model: MaskRCNN, view: View) -> tuple[list[Tensor], Detections]:
    """The pyramid of a view, and its detections before masks, in its pixels."""
    pyramid, prediction = model.trunk(view.images, view.sizes)
    anchors = model.anchors(pyramid, view.images.shape[-2:])
    proposals, valid = model.proposals(prediction, anchors, view.sizes)
    return pyramid, model.detect_boxes(pyramid, proposals, valid, view.sizes)


def _moved(boxes: Tensor, view: View, to: View) -> Tensor:
    """B D 4 in pixels of `view` -> in those of another view of the images."""
    if view.mirrored:
        boxes = _mirrored_boxes(boxes, view.sizes)
    boxes = boxes * (to.scales / view.scales).flip(-1).repeat(1, 2)[:, None]
    return _mirrored_boxes(boxes, to.sizes) if to.mirrored else boxes


def _mirrored_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    width = sizes[:, 1, None].to(boxes.dtype)
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def merge(model: MaskRCNN, found: Sequence[Detections]) -> Detections:
    """The union of the boxes of several views, in pixels of one, without duplicates: at most as
    many as the box head gives, by descending score. Where suppression compares masks, candidates.
    """
    union = {key: torch.cat([one[key] for one in found], dim=1) for key in found[0]}
    union = _best(union, union["valid"], union["valid"].shape[1])
    of_masks = model.suppression.of_masks
    groups = union["labels"] if of_masks else model.suppression.groups(union["labels"])
    keep = model.box_head.suppress(union["boxes"], groups) & union["valid"]
    count = model.box_head.max_detections * (CANDIDATES if of_masks else 1)
    return _best(union, keep, count)


def _best(detections: Detections, keep: Tensor, count: int) -> Detections:
    """The `count` best of those to `keep`, B D bool; equal scores keep their order. Empty slots are
    zero.
    """
    ranked = torch.where(keep, detections["scores"], -1)
    order = ranked.argsort(dim=1, descending=True, stable=True)[:, :count]
    chosen = {key: take(value, order) for key, value in detections.items()}
    valid = keep.gather(1, order)
    return {
        "boxes": chosen["boxes"].masked_fill(~valid[..., None], 0),
        "scores": chosen["scores"] * valid,
        "labels": chosen["labels"] * valid,
        "valid": valid,
    }


def _with_masks(
    model: MaskRCNN,
    pyramids: Sequence[Sequence[Tensor]],
    views: Sequence[View],
    detections: Detections,
) -> Detections:
    """With masks averaged over the views, and what follows from masks: their scores, suppression
    by masks, finer masks.
    """
    detections = model.trimmed(detections)
    if model.mask_head is None:
        return detections
    means: dict[str, list[Tensor]] = {}
    for number, (pyramid, view) in enumerate(zip(pyramids, views, strict=True)):
        boxes = _moved(detections["boxes"], views[0], view)
        own = model.predict_masks(pyramid, boxes, detections["labels"])
        if "coarse" in own:  # in the view, for its refinement
            detections[f"coarse_{number}"] = own.pop("coarse")
        own["masks"] = _mirrored_back(own["masks"], view)
        for name, value in own.items():
            means.setdefault(name, []).append(value)
    detections |= {name: torch.stack(values).mean(0) for name, values in means.items()}
    detections = model.suppressed(model.ranked(detections))
    if model.mask_refine is None:
        return detections
    fine = []
    for number, (pyramid, view) in enumerate(zip(pyramids, views, strict=True)):
        own = {
            "boxes": _moved(detections["boxes"], views[0], view),
            "labels": detections["labels"],
            "coarse": detections.pop(f"coarse_{number}"),
        }
        fine.append(_mirrored_back(model.refined(pyramid, own)["masks"], view))
    return detections | {"masks": torch.stack(fine).mean(0)}


def _mirrored_back(masks: Tensor, view: View) -> Tensor:
    return masks.flip(-1) if view.mirrored else masks


class WithViews(nn.Module):
    """A model whose forward, in evaluation mode, detects in several views of the images.

    Args:
        model: in evaluation mode.
        sizes: of `view_sizes`; the batch has the first.
        read: ids of images and another size -> their batch of that size.

    Attributes:
        images, seconds, plain_seconds: the number of images so far, and the time of the model for
            their detections, of all views and of the first one alone.
    """

    def __init__(
        self,
        model: MaskRCNN,
        sizes: Sequence[ImageSize],
        read: Callable[[Sequence[int], ImageSize], Batch],
    ) -> None:
        super().__init__()
        self.model, self.sizes, self.read = model, list(sizes), read
        self.images, self.seconds, self.plain_seconds = 0, 0.0, 0.0

    def forward(self, batch: Batch) -> Output:
        """`Output.plain` has the detections of the images as they are. There are no losses."""
        device, ids = batch["images"].device, batch["image_ids"].tolist()
        others = [self.read(ids, size) for size in self.sizes[1:]]
        moved = [{key: value.to(device) for key, value in other.items()} for other in others]
        merged = detect_views(self.model, with_mirrored([batch, *moved]))
        self.images += len(ids)
        self.seconds += merged.seconds
        self.plain_seconds += merged.plain_seconds
        labels = None
        if "boxes" in batch:
            labels = self.model.classify(merged.pyramid, batch["boxes"], batch["image_sizes"])
        return Output({}, {}, merged.detections, labels, plain=merged.plain)
