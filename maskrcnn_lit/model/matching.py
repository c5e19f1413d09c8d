"""Which anchors and regions are objects, which are background, and which of them a step learns
from.

Letters: B images, G padded instances, N candidate boxes (anchors or regions), S sampled boxes an
image. Fixed counts and masks in place of lists of indices: no shape depends on data.
"""

import torch
from torch import Tensor

from maskrcnn_lit.model.boxes import area, intersection, over_union

OBJECT, BACKGROUND, IGNORED = 1, 0, -1

CROWD_COVER = 0.5  # a candidate with more of its area than this in a crowd region is no background


def match(
    candidates: Tensor,
    boxes: Tensor,
    valid: Tensor,
    crowd: Tensor,
    *,
    object_iou: float,
    background_iou: float,
    keep_best: bool,
) -> tuple[Tensor, Tensor]:
    """The ground-truth box that each candidate overlaps most, and whether it is OBJECT, BACKGROUND
    or IGNORED.

    Args: candidates: B N 4, or 1 N 4 where all images share them. boxes, valid, crowd: B G 4, B G,
        B G (see data/batch.py). object_iou, background_iou: at least / less than this overlap makes
        an object / background. keep_best: each box's best candidates are objects whatever their
        overlap (Faster R-CNN, section 3.1.2, (i)).

    Returns: index B N int64 into G, and kind B N int64. Candidates that lie in a crowd region are
        IGNORED instead of BACKGROUND: nobody outlined the objects there.
    """
    shared = intersection(boxes, candidates)  # B G N
    in_crowd = ((shared > CROWD_COVER * area(candidates)[:, None]) & crowd[:, :, None]).any(dim=1)
    overlap = over_union(shared, boxes, candidates).masked_fill_(~valid[:, :, None], -1.0)
    best, index = overlap.max(dim=1)
    kind = torch.where(
        best >= object_iou, OBJECT, torch.where(best >= background_iou, IGNORED, BACKGROUND)
    )
    if keep_best:
        highest = overlap.amax(dim=2, keepdim=True)
        kind = torch.where(((overlap == highest) & valid[:, :, None]).any(dim=1), OBJECT, kind)
    return index, torch.where((kind == BACKGROUND) & in_crowd, IGNORED, kind)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` by `index`: B N ..., B S -> B S ..."""
    return values.gather(
        1,
        index.reshape(*index.shape, *[1] * (values.ndim - 2)).expand(
            *index.shape, *values.shape[2:]
        ),
    )
