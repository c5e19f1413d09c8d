"""Operations on boxes x1 y1 x2 y2: IoU, the deltas that the heads predict, NMS.

Letters: B images, N M boxes. Never in half precision, which is too coarse for pixel coordinates.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

MAX_LOG_SCALE = math.log(
    1000 / 16
)  # limit: a predicted side is at most 62.5 times that of its reference

WORD = 32  # bits of an int32


def can_sync(values: Tensor, static_shapes: bool = False) -> bool:
    """Whether the host may read `values` to choose data-dependent shapes that save work.

    True on the CPU. On a GPU the host would have to wait, and compiled code needs fixed shapes.
    `static_shapes`: always False, to test or count on the CPU what a GPU runs. The results are the
    same.
    """
    return not static_shapes and values.device.type == "cpu" and not torch.compiler.is_compiling()


def full_precision(values: Tensor) -> Tensor:
    """float16 and bfloat16 -> float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def area(boxes: Tensor) -> Tensor:
    """... 4 -> ..., in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """B N 4 and B M 4 -> B N M, in square pixels."""
    # One axis after the other and in place, since these matrices may have millions of entries per
    # image.
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(first[:, :, None, high], second[:, None, :, high])
        side -= torch.maximum(first[:, :, None, low], second[:, None, :, low])
        sides.append(side.clamp_(min=0))
    return sides[0].mul_(sides[1])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union: B N 4 and B M 4 -> B N M in [0, 1]; 0 for two boxes without area."""
    return over_union(intersection(first, second), first, second)


def over_union(shared: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The IoU of boxes from their `intersection`, in place."""
    union = (area(first)[:, :, None] + area(second)[:, None]).sub_(shared)
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def encode(boxes: Tensor, reference: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas that move `reference` onto `boxes` (R-CNN, Girshick et al. 2014, appendix C): ... 4 ->
    ... 4.

    `weights` scale the deltas to about unit variance (Faster R-CNN: 1 1 1 1 in the RPN, 10 10 5 5
    in the box head).
    """
    width, height, x, y = _center(reference)
    target_width, target_height, target_x, target_y = _center(boxes)
    deltas = [
        weights[0] * (target_x - x) / width,
        weights[1] * (target_y - y) / height,
        weights[2] * torch.log(target_width / width),
        weights[3] * torch.log(target_height / height),
    ]
    return torch.stack(deltas, dim=-1)


def decode(deltas: Tensor, reference: Tensor, weights: Sequence[float]) -> Tensor:
    """The inverse of `encode`: ... 4 -> ... 4 boxes in pixels, not clipped."""
    width, height, x, y = _center(reference)
    dx, dy, dw, dh = deltas.unbind(-1)
    x, y = x + dx / weights[0] * width, y + dy / weights[1] * height
    half_width = torch.exp((dw / weights[2]).clamp(max=MAX_LOG_SCALE)) * width / 2
    half_height = torch.exp((dh / weights[3]).clamp(max=MAX_LOG_SCALE)) * height / 2
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def _center(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return width, height, boxes[..., 0] + width / 2, boxes[..., 1] + height / 2


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip B N 4 boxes to each image; `image_sizes`: B 2, height, width."""
    limit = image_sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)  # B 1 4: w h w h
    return torch.minimum(boxes.clamp(min=0), limit)


def batched_nms(
    boxes: Tensor,
    threshold: float,
    groups: Tensor | None = None,
    iterations: int = 24,
    static_shapes: bool = False,
) -> Tensor:
    """Greedy NMS with static shapes: the mask of kept boxes, B N bool.

    Args: boxes: B N 4, each row sorted by descending score. threshold: a box is removed if its IoU
    with a better kept box is larger. groups: B N; only boxes of one group (class) suppress each
    other. iterations: a box that only suppressed boxes overlap must be kept, and so on: each round
    resolves one more link of such chains, and a fixed point is the greedy result. 800 px images
    needed at most 18 rounds. A GPU runs all rounds, since it must not wait for the host.
    static_shapes: see `can_sync`.

    On the CPU it runs torchvision's operator, group by group.
    """
    if can_sync(boxes, static_shapes):
        return _nms_in_turn(boxes, threshold, groups)
    return _resolve_suppression(_rivals(boxes, threshold, groups), iterations)[:, : boxes.shape[1]]


def nms_per_level(
    levels: Sequence[Tensor], threshold: float, iterations: int = 24, static_shapes: bool = False
) -> list[Tensor]:
    """`batched_nms` of several lists of boxes, B N 4 with its own N each: only boxes of one list
    suppress each other. A GPU handles all lists in the same rounds, to launch few kernels.
    """
    if can_sync(levels[0], static_shapes):
        return [_nms_in_turn(boxes, threshold, None) for boxes in levels]
    rivals = [_rivals(boxes, threshold, None) for boxes in levels]
    words, most = max(own.shape[1] for own in rivals), max(own.shape[2] for own in rivals)
    padded = [F.pad(own, (0, most - own.shape[2], 0, words - own.shape[1])) for own in rivals]
    keep = _resolve_suppression(torch.cat(padded), iterations).split(len(levels[0]))
    return [own[:, : boxes.shape[1]] for own, boxes in zip(keep, levels, strict=True)]


def _nms_in_turn(boxes: Tensor, threshold: float, groups: Tensor | None) -> Tensor:
    """NMS image by image and group by group."""
    keep = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for image, own in enumerate(torch.zeros_like(keep) if groups is None else groups):
        counts = own.unique(return_counts=True)[1].tolist()
        for rows in own.argsort(stable=True).split(counts):
            keep[image, rows[nms(boxes[image, rows], -rows.to(boxes.dtype), threshold)]] = True
    return keep


def _rivals(boxes: Tensor, threshold: float, groups: Tensor | None) -> Tensor:
    """For each box, the better boxes that overlap it: B N 4 -> B N/32 N int32, one bit per better
    box, with N rounded up to 32.

    Every round of `_resolve_suppression` reads the matrix; packed bits make it 8 times smaller than
    bools.
    """
    count = boxes.shape[1]
    boxes = F.pad(boxes, (0, 0, 0, -count % WORD))  # padded boxes have no area and no overlap
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    rivals = (iou(boxes, boxes) > threshold) & (
        rank[:, None] < rank
    )  # the better box has the lower index
    if groups is not None:
        groups = F.pad(groups, (0, -count % WORD))
        rivals = rivals & (groups[:, :, None] == groups[:, None])
    return (rivals.unflatten(1, (-1, WORD)) * _bits(boxes.device)[:, None]).sum(
        2, dtype=torch.int32
    )


def _resolve_suppression(rivals: Tensor, iterations: int) -> Tensor:
    """The mask of kept boxes, B N bool, from `_rivals`."""
    bits = _bits(rivals.device)
    keep = torch.ones_like(rivals[:, 0], dtype=torch.bool)
    for _ in range(iterations):
        staying = (keep.unflatten(1, (-1, WORD)) * bits).sum(2, dtype=torch.int32)  # B N/32
        keep = ~((rivals & staying[:, :, None]) != 0).any(dim=1)
    return keep


def _bits(device: torch.device) -> Tensor:
    """The 32 powers of two of an int32."""
    return 1 << torch.arange(WORD, dtype=torch.int32, device=device)
