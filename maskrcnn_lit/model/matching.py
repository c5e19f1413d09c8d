"""Which anchors and regions are objects, which are background, and which of them a step learns
from.

Letters: B images, G padded instances, N candidate boxes (anchors or regions), S sampled boxes an
image. Fixed counts and masks in place of lists of indices: no shape depends on data.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.model.boxes import area, can_sync, intersection, over_union

OBJECT, BACKGROUND, IGNORED = 1, 0, -1

CROWD_COVER = 0.5  # a candidate with more of its area than this in a crowd region is no background

# How many overlaps are computed at once, on the CPU (few, so that they stay in its cache) and in
# static shapes.
CPU_CHUNK, CHUNK = 1 << 20, 1 << 26


class Overlaps(NamedTuple):
    """Of each candidate with the objects of its image."""

    best: Tensor  # B N, the largest IoU; -1 where there is no object
    object: Tensor  # B N int64 into G: the first that has it
    in_crowd: Tensor  # B N bool: more than CROWD_COVER of it lies in a crowd region
    of_object: Tensor  # B N bool: no candidate overlaps one of the objects more


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
    """The ground-truth box that each candidate overlaps most, and whether it is OBJECT, BACKGROUND
    or IGNORED.

    Args: candidates: B N 4, or 1 N 4 where all images share them. boxes, valid, crowd: B G 4, B G,
        B G (see data/batch.py). object_iou, background_iou: at least / less than this overlap makes
        an object / background. keep_best: each box's best candidates are objects whatever their
        overlap (Faster R-CNN, section 3.1.2, (i)), if they overlap it at all. static_shapes: see
        `can_sync`.

    Returns: index B N int64 into G, and kind B N int64. Candidates that lie in a crowd region are
        IGNORED instead of BACKGROUND: nobody outlined the objects there.

    A box that no candidate overlaps has no best one: it gets no positive here, where torchvision
    and Detectron2 take all candidates (their best overlap is 0, and so is that of all others). The
    box head learns it still, since the objects' own boxes are among its candidates.
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
    """Where the host may read counts, image by image without the empty slots: an image with many
    objects makes no work for the others. Else all slots of all images, some at a time.
    """
    images, slots = valid.shape
    # One coordinate after the other in memory: they are read in this order, again and again.
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
    """`at_once` slots of all images at a time: the memory is that of B x at_once x N numbers."""
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
