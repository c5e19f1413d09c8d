"""Suppression: which of several detections of one object stay.

Five kinds. `box` is greedy NMS by the IoU of boxes, as in the paper. `mask` and `containment` are
greedy, too, by the IoU of masks, and by the share of the smaller mask that lies in the better one.
`soft` (Bodla et al. 2017, "Soft-NMS", equation 3) and `matrix` (Wang et al. 2020, "SOLOv2", section
3.3) lower the scores of overlapping detections, by the IoU of boxes and of masks.

`mask`, `containment` and `matrix` need the mask of every candidate: the box head gives three
candidates for each detection, of which two with nearly the same box (SAME_BOX) count as one.

Overlaps of masks are exact for what they are: a mask of m x m cells, each in or out, over its box.
All shapes are fixed on a GPU and in an exported graph; on the CPU, pairs that cannot matter are
left out, with the same result.

Letters: B images, N candidates by descending score, m mask side, P pairs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_lit.errors import check_choice, check_flag
from maskrcnn_lit.model.boxes import can_sync, intersection, iou
from maskrcnn_lit.model.matching import take
from maskrcnn_lit.model.paste_masks import MASK_THRESHOLD

KINDS = ("box", "mask", "soft", "matrix", "containment")
OF_MASKS = ("mask", "matrix", "containment")

SAME_BOX = 0.95  # IoU: such boxes of a class have the same features, and so the same mask
CANDIDATES = 3  # with a mask, for each detection

SIDE = 28  # cells of the largest masks that are compared

SOFT_SIGMA = 0.5  # Bodla et al., section 4
MATRIX_SIGMA = 2.0  # Wang et al., section 3.3

ROUNDS = 24  # of greedy suppression where the host must not wait, see `boxes.batched_nms`
PAIRS = 4096  # whose masks are compared at once: 13 MB for each of four arrays


class Suppression(NamedTuple):
    """nms: of KINDS. agnostic_nms: over all classes, not within each. exclusive: a pixel belongs to
    one object, that of the highest score (postprocess.py).
    """

    nms: str = "box"
    agnostic_nms: bool = False
    exclusive: bool = False

    def checked(self) -> "Suppression":
        """Itself. Raises UserError for values of the wrong kind."""
        check_choice(KINDS, model__nms=self.nms)
        check_flag(model__agnostic_nms=self.agnostic_nms, model__exclusive=self.exclusive)
        return self

    @property
    def of_masks(self) -> bool:
        """Whether it compares masks."""
        return self.nms in OF_MASKS

    def groups(self, labels: Tensor) -> Tensor:
        """B N: numbers of 1 or more; only detections of one group suppress each other."""
        return torch.ones_like(labels) if self.agnostic_nms else labels


BOX_NMS = Suppression()  # the paper's


def soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gaussian Soft-NMS: the `count` best of boxes B N 4 with scores B N, in groups B N.

    Returns: their lowered scores, descending, and their indices: B count each. Where there are
    fewer, the last scores are 0 or less.
    """
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    overlap = iou(boxes, boxes) * (groups[:, :, None] == groups[:, None])
    factors = torch.exp(-(overlap**2) / SOFT_SIGMA)  # once: a step is four operations then
    factors = factors * (rank[:, None] != rank)
    left, picked, values = scores, [], []
    for _ in range(count):
        best = left.argmax(dim=1, keepdim=True)
        picked.append(best)
        values.append(left.gather(1, best))
        left = left * take(factors, best)[:, 0]
    return torch.cat(values, dim=1), torch.cat(picked, dim=1)


def suppress_masks(
    detections: dict[str, Tensor],
    suppression: Suppression,
    *,
    threshold: float,
    least_score: float,
    count: int,
    static_shapes: bool = False,
) -> dict[str, Tensor]:
    """The at most `count` detections that stay of N candidates with masks, as `MaskRCNN.detect`
    gives them.

    Args:
        threshold: overlap beyond which the worse one is removed (`mask`, `containment`).
        least_score: lowered scores of this or less are removed (`matrix`).
        static_shapes: see `boxes.can_sync`.
    """
    boxes, scores, valid = (detections[name] for name in ("boxes", "scores", "valid"))
    masks = detections["masks"]
    if masks.shape[-1] > SIDE:  # refined masks: the means of their cells are as good, and cheap
        masks = F.adaptive_avg_pool2d(masks, SIDE)
    masks = (masks > MASK_THRESHOLD).to(boxes.dtype)
    groups = torch.where(valid, suppression.groups(detections["labels"]), 0)
    shared, sizes = mask_overlaps(masks, boxes, groups, static_shapes)
    smaller = torch.minimum(sizes[:, :, None], sizes[:, None])
    tiny = torch.finfo(boxes.dtype).tiny
    if suppression.nms == "containment":
        overlap = shared / smaller.clamp(min=tiny)
    else:
        union = sizes[:, :, None] + sizes[:, None] - shared
        overlap = shared / union.clamp(min=tiny)
    if suppression.nms == "matrix":
        scores = scores * matrix_decay(overlap)
        kept = valid & (scores > least_score)
    else:
        kept = valid & greedy(overlap > threshold, static_shapes)
    order = torch.where(kept, scores, -1).topk(min(count, scores.shape[1]), dim=1).indices
    kept, scores = kept.gather(1, order), scores.gather(1, order)
    return {key: take(value, order) for key, value in detections.items()} | {
        "boxes": torch.where(kept[..., None], take(boxes, order), 0),
        "scores": scores * kept,
        "labels": take(detections["labels"], order) * kept,
        "valid": kept,
    }


def greedy(rivals: Tensor, static_shapes: bool = False) -> Tensor:
    """Which stay, B N bool, if a detection goes that a better one which stays overlaps.

    rivals: B N N bool, [b, i, j]: i is better than j and overlaps it.
    """
    pull = rivals.float()
    keep = torch.ones_like(rivals[:, 0])
    sync = can_sync(rivals, static_shapes)
    for _ in range(rivals.shape[1] if sync else ROUNDS):
        after = (keep.float()[:, None] @ pull)[:, 0] == 0
        if sync and torch.equal(after, keep):
            break
        keep = after
    return keep


def matrix_decay(overlap: Tensor) -> Tensor:
    """B N: the factor of each score, with the Gaussian; overlap: B N N, [b, i, j] of a better i and
    j, else 0.
    """
    most = overlap.amax(dim=1)  # of each with a better one
    decay = MATRIX_SIGMA * (most[:, :, None] ** 2 - overlap**2)
    return torch.exp(decay).amin(dim=1).clamp(max=1)


def mask_overlaps(
    masks: Tensor, boxes: Tensor, groups: Tensor, static_shapes: bool = False
) -> tuple[Tensor, Tensor]:
    """Shared areas of the masks of pairs, and the area of each mask, in square pixels.

    Args:
        masks: B N m m of 0 and 1, over boxes B N 4.
        groups: B N; 0: an empty slot.

    Returns: B N N, [b, i, j] of i before j in one group, else 0; B N.
    """
    count = masks.shape[1]
    rank = torch.arange(count, device=masks.device)
    counted = (groups[:, :, None] == groups[:, None]) & (groups[:, :, None] > 0)
    counted = counted & (rank[:, None] < rank)
    sides = (boxes[..., 2:] - boxes[..., :2]) / masks.shape[-1]
    areas = masks.sum(dim=(2, 3)) * sides[..., 0] * sides[..., 1]
    if can_sync(masks, static_shapes):
        shared = torch.zeros_like(counted, dtype=masks.dtype)
        b, i, j = (counted & (intersection(boxes, boxes) > 0)).nonzero(as_tuple=True)
        for some in torch.arange(len(b)).split(PAIRS):
            at = b[some], i[some], j[some]
            shared[at] = shared_area(
                masks[at[0], at[1]], boxes[at[0], at[1]], masks[at[0], at[2]], boxes[at[0], at[2]]
            )
        return shared, areas
    rows = max(1, PAIRS // (len(masks) * count))
    parts = [
        shared_area(
            masks[:, first : first + rows, None],
            boxes[:, first : first + rows, None],
            masks[:, None],
            boxes[:, None],
        )
        for first in range(0, count, rows)
    ]
    return torch.cat(parts, dim=1) * counted, areas


def shared_area(first: Tensor, boxes: Tensor, second: Tensor, others: Tensor) -> Tensor:
    """The area that two masks share, in square pixels: masks ... m m of 0 and 1 over boxes ... 4,
    whose leading sides broadcast -> ....

    A cell of one and a cell of the other share a rectangle, whose sides are the overlaps of rows
    and of columns. So the sum over all cells is two products of matrices.
    """
    side = first.shape[-1]
    rows = _overlaps(boxes[..., 1::2], others[..., 1::2], side)
    columns = _overlaps(boxes[..., 0::2], others[..., 0::2], side)
    on_first = rows @ second @ columns.transpose(-1, -2)  # area of the second in each cell
    return (first * on_first).sum(dim=(-2, -1))


def _overlaps(ours: Tensor, theirs: Tensor, side: int) -> Tensor:
    """Lengths that cells of two rows share: their begin and end ... 2 -> ... side side."""
    steps = torch.linspace(0, 1, side + 1, dtype=ours.dtype, device=ours.device)
    edges = [span[..., :1] + (span[..., 1:] - span[..., :1]) * steps for span in (ours, theirs)]
    low = torch.maximum(edges[0][..., :-1, None], edges[1][..., None, :-1])
    high = torch.minimum(edges[0][..., 1:, None], edges[1][..., None, 1:])
    return (high - low).clamp(min=0)
