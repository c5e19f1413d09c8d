"""Labels anchors and regions as object, background or ignored.

Letters: B images, G padded instances, N candidate boxes (anchors or regions), S sampled boxes per
image. Fixed counts and masks instead of lists of indices: shapes do not depend on data.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.model.boxes import area, can_sync, intersection, over_union

OBJECT, BACKGROUND, IGNORED = 1, 0, -1

CROWD_COVER = (
    0.5  # candidates with a larger share of their area in a crowd region are not background
)

# Number of overlaps computed at once, on the CPU (few, to fit into its cache) and with static
# shapes.
CPU_CHUNK, CHUNK = 1 << 20, 1 << 26


class Overlaps(NamedTuple):
    """Overlaps of each candidate with the objects of its image."""

    best: Tensor  # B N, the largest IoU; -1 without objects
    object: Tensor  # B N int64 into G: the first object with this IoU
    in_crowd: (
        Tensor  # B N bool: whether more than CROWD_COVER of the candidate lies in a crowd region
    )
    of_object: Tensor  # B N bool: whether it is a best candidate of an object


def match(
    candidates: Tensor,
    boxes: Tensor,
    valid: Tensor,
    crowd: Tensor,
    *,
    object_iou: float,
    background_iou: float,
    keep_best: bool,
    static_shapes: bool = False,
) -> tuple[Tensor, Tensor]:
    """The ground-truth box with the highest IoU for each candidate, and its label OBJECT,
    BACKGROUND or IGNORED.

    Args: candidates: B N 4, or 1 N 4 if all images share them. boxes, valid, crowd: B G 4, B G, B G
    (see data/batch.py). object_iou, background_iou: foreground IoU threshold (at least) and
    background IoU threshold (below). keep_best: the best candidates of each box are objects at any
    IoU above 0 (Faster R-CNN, section 3.1.2, (i)). static_shapes: see `can_sync`.

    Returns: index B N int64 into G, and kind B N int64. Background candidates in a crowd region are
    IGNORED: its objects are not annotated separately.

    A box without overlapping candidates gets no positive; torchvision and Detectron2 would use all
    candidates, since all have the best IoU of 0. The box head still learns it, since the
    ground-truth boxes are among its candidates.
    """
    overlaps = _survey(candidates, boxes, valid, crowd, keep_best, static_shapes)
    background = overlaps.best < background_iou
    kind = torch.where(background & ~overlaps.in_crowd, BACKGROUND, IGNORED)
    objects = (overlaps.best >= object_iou) | overlaps.of_object
    return overlaps.object, torch.where(objects, OBJECT, kind)


def _survey(
    candidates: Tensor,
    boxes: Tensor,
    valid: Tensor,
    crowd: Tensor,
    keep_best: bool,
    static_shapes: bool,
) -> Overlaps:
    """Compute the overlaps. If the host may read counts, process image by image without the empty
    slots, so an image with many objects does not slow down the others; else process all slots of
    all images in chunks.
    """
    images, slots = valid.shape
    # Store coordinates contiguously, since each is read repeatedly.
    candidates = candidates.transpose(1, 2).contiguous().transpose(1, 2)
    if not can_sync(boxes, static_shapes):
        at_once = max(1, CHUNK // max(1, images * candidates.shape[1]))
        return _survey_slots(candidates, boxes, valid, crowd, keep_best, at_once)
    at_once = max(1, CPU_CHUNK // max(1, candidates.shape[1]))
    number = torch.arange(1, slots + 1)
    used = torch.where(valid | crowd, number, 0).amax(dim=1).tolist()
    rows = []
    for i, count in enumerate(used):
        own = candidates[i % len(candidates)][None]
        part = (slice(i, i + 1), slice(count))
        rows.append(_survey_slots(own, boxes[part], valid[part], crowd[part], keep_best, at_once))
    return Overlaps(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _survey_slots(
    candidates: Tensor,
    boxes: Tensor,
    valid: Tensor,
    crowd: Tensor,
    keep_best: bool,
    at_once: int,
) -> Overlaps:
    """Process `at_once` slots of all images at a time; needs memory for B x at_once x N numbers."""
    shape = (len(boxes), candidates.shape[1])
    best, index = boxes.new_full(shape, -1.0), valid.new_zeros(shape, dtype=torch.int64)
    in_crowd, of_object = valid.new_zeros(shape), valid.new_zeros(shape)
    covered = CROWD_COVER * area(candidates)[:, None]  # 1 or B, 1, N
    for first in range(0, valid.shape[1], at_once):
        part = slice(first, first + at_once)
        shared = intersection(boxes[:, part], candidates)  # B g N
        in_crowd |= ((shared > covered) & crowd[:, part, None]).any(dim=1)
        overlap = over_union(shared, boxes[:, part], candidates)
        overlap.masked_fill_(~valid[:, part, None], -1.0)
        largest, slot = overlap.max(dim=1)
        better = largest > best
        best = torch.where(better, largest, best)
        index = torch.where(better, slot + first, index)
        if keep_best:
            highest = overlap.amax(dim=2, keepdim=True)
            of_object |= ((overlap == highest) & (highest > 0)).any(dim=1)
    return Overlaps(best, index, in_crowd, of_object)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` by `index`: B N ..., B S -> B S ..."""
    return values.gather(
        1,
        index.reshape(*index.shape, *[1] * (values.ndim - 2)).expand(
            *index.shape, *values.shape[2:]
        ),
    )
