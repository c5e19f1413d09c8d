"""RoIAlign (Mask R-CNN, section 3): features of fixed size for regions of any size, from the
pyramid level that fits each.

Letters: B images, C channels, R regions of all images, s output side, n sample points per bin side
(sampling_ratio), h w the cells of a level.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

KINDS = ("align", "warp", "pool")  # the three of table 2c of the paper

CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # FPN, equation 1: a region of 224 pixels uses p4


def level_of(boxes: Tensor, levels: int) -> Tensor:
    """FPN, equation 1: R 4 -> R int64, 0 for p2 ... levels - 1."""
    side = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIDE) + 1e-6)
    return level.clamp(2, 1 + levels).long() - 2


class RoIs(NamedTuple):
    """Regions to pool to s x s features."""

    boxes: Tensor  # R 4, pixels
    image: Tensor  # R int64, the image of each
    size: int  # s


def roi_align(
    pyramid: Sequence[Tensor],
    wanted: Sequence[RoIs],
    *,
    strides: Sequence[int],
    points: int = 2,
    aligned: bool = False,
    kind: str = "align",
) -> list[Tensor]:
    """p2.., each B C h w -> R C s s for each entry of `wanted`: one call for both heads stores one
    gradient.

    A bin is the mean of points x points bilinear samples of one level, as in
    `torchvision.ops.roi_align`. All levels are concatenated into one table with rows of C numbers;
    each output cell is a weighted sum of 4 points^2 rows. So shapes do not depend on the levels of
    the regions, and one call handles all levels.

    Args: points: samples per side of a bin (sampling_ratio); 0: as many as the bin has cells, as in
    Detectron2; this depends on the data, so it uses torchvision's operator for each level. aligned:
    cell centers are at half-integer coordinates, and a region may be smaller than a cell
    (Detectron2); otherwise at the corners, and a region is at least one cell wide (the original
    RoIAlign, and torchvision's models). kind: align; warp: the same on regions that are rounded to
    whole cells (RoIWarp as the paper has it: bilinear, not aligned; see `whole_cells`); pool: the
    largest cell of each bin of such a region, with bins of whole cells (RoIPool, Girshick 2015),
    also by torchvision's operator. Warp and pool do not use `aligned`.
    """
    if points == 0 or kind == "pool":
        return [_by_level(pyramid, regions, strides, aligned, kind) for regions in wanted]
    rows = torch.cat(
        [p.permute(0, 2, 3, 1).reshape(-1, p.shape[1]) for p in pyramid]
    )  # (B h w of each level) C
    with torch.no_grad():
        cells = tuple((len(p), p.shape[-2], p.shape[-1]) for p in pyramid)
        layout = _constant_layout(cells, tuple(strides), rows.device)
        tables = [_rows_and_weights(layout, regions, points, aligned, kind) for regions in wanted]
        index, weight = (torch.cat(parts) for parts in zip(*tables, strict=True))
        # A GPU sorts the indices in the backward pass, so smaller integers are faster.
        index = index.to(index_type(len(rows)))
    out = F.embedding_bag(
        index, rows, mode="sum", per_sample_weights=weight.to(rows.dtype)
    )  # (R s s of each) C
    sizes = [regions.size for regions in wanted]
    parts = out.split([len(regions.boxes) * regions.size**2 for regions in wanted])
    return [
        part.view(-1, s, s, part.shape[1]).permute(0, 3, 1, 2)
        for part, s in zip(parts, sizes, strict=True)
    ]


def sample_points(features: Tensor, points: RoIs, stride: int) -> Tensor:
    """One bilinear sample for each box without area: B C h w -> R C 1 1. Cell centers are at
    half-integer coordinates, and beyond the outermost ones the edge counts: as RoIAlign with
    points=1 and aligned=true.
    """
    height, width = features.shape[-2:]
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])  # (B h w) C
    with torch.no_grad():
        ends, shares = [], []
        for axis, extent in ((0, width), (1, height)):
            at = (points.boxes[:, axis] / stride - 0.5).clamp(0, extent - 1)
            low = at.long()
            ends.append(torch.stack([low, (low + 1).clamp(max=extent - 1)], dim=-1))  # R 2
            shares.append(torch.stack([1 - (at - low), at - low], dim=-1))
        down = ends[1][:, :, None] + height * points.image[:, None, None]
        index = (down * width + ends[0][:, None]).flatten(1)  # R 4
        weight = (shares[1][:, :, None] * shares[0][:, None]).flatten(1)
        index = index.to(index_type(len(rows)))
    out = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight.to(rows.dtype))
    return out[:, :, None, None]


def index_type(rows: int) -> torch.dtype:
    """The smallest integer type that can index `rows` rows."""
    return torch.int32 if rows <= torch.iinfo(torch.int32).max else torch.int64


def whole_cells(scaled: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """Regions R 4 in cells of a map of height x width -> R 4, from the first to the last cell of
    each, as RoIPool rounds them; cell i extends from i - 0.5 to i + 0.5.
    """
    cells = torch.floor(scaled + 0.5).clamp(min=0)
    limits = [torch.as_tensor(side, device=scaled.device) - 1 for side in (width, height)]
    parts = []
    for axis, limit in enumerate(limits):
        first = torch.minimum(cells[:, axis], limit)
        last = torch.maximum(torch.minimum(cells[:, axis + 2], limit), first)
        parts.append((first - 0.5, last + 0.5))
    (left, right), (top, bottom) = parts
    return torch.stack([left, top, right, bottom], dim=1)


def _by_level(
    pyramid: Sequence[Tensor], wanted: RoIs, strides: Sequence[int], aligned: bool, kind: str
) -> Tensor:
    """RoIAlign with as many samples as cells, or RoIPool: torchvision's operator of each level.

    It takes regions in the type of the features. Half precision would move them by several pixels,
    so both are in float32 at least.
    """
    boxes, image, size = wanted
    wide = torch.promote_types(pyramid[0].dtype, torch.float32)
    level = level_of(boxes, len(strides))
    rois = torch.cat([image[:, None].to(wide), boxes.to(wide)], dim=1)
    out = boxes.new_zeros(len(boxes), pyramid[0].shape[1], size, size, dtype=wide)
    for number, (features, stride) in enumerate(zip(pyramid, strides, strict=True)):
        here = (level == number).nonzero()[:, 0]
        own, cells, scale = rois[here], features.to(wide), 1 / stride
        if kind == "pool":
            pooled = torchvision.ops.roi_pool(cells, own, size, scale)
        elif kind == "warp":
            whole = whole_cells(own[:, 1:] * scale, *features.shape[-2:])
            own = torch.cat([own[:, :1], whole], dim=1)
            pooled = torchvision.ops.roi_align(cells, own, size, 1.0, 0, False)
        else:
            pooled = torchvision.ops.roi_align(cells, own, size, scale, 0, aligned)
        out = out.index_copy(0, here, pooled.to(wide))
    return out.to(pyramid[0].dtype)


@torch.compiler.assume_constant_result  # a constant in compiled code
def _constant_layout(
    cells: tuple[tuple[int, int, int], ...], strides: tuple[int, ...], device: torch.device
) -> Tensor:
    return _layout(cells, strides, device)


@lru_cache(
    maxsize=64
)  # one for each padded size: creating it in each step would copy it to the device
def _layout(
    cells: tuple[tuple[int, int, int], ...], strides: tuple[int, ...], device: torch.device
) -> Tensor:
    """For each level height, width, first row in the table, stride: 4 L int64. `cells`: B, h, w of
    each.
    """
    images, heights, widths = torch.tensor(cells).unbind(1)
    rows = images * heights * widths
    return torch.stack([heights, widths, rows.cumsum(0) - rows, torch.tensor(strides)]).to(device)


def _rows_and_weights(
    layout: Tensor, wanted: RoIs, points: int, aligned: bool, kind: str
) -> tuple[Tensor, Tensor]:
    """The rows of the table and their weights: both (R s s) (n 2 n 2)."""
    boxes, image, size = wanted
    regions = len(boxes)
    height, width, start, stride = layout[:, level_of(boxes, layout.shape[1])]  # R of each
    first = start + image * height * width  # R: the first row of this image's map at the level
    if kind == "warp":
        scaled, least = whole_cells(boxes / stride[:, None], height, width), 0
    else:
        scaled, least = boxes / stride[:, None] - (0.5 if aligned else 0), 0 if aligned else 1
    y, y_weight = _neighbors(scaled[:, 1], scaled[:, 3], height, size, points, least)
    x, x_weight = _neighbors(scaled[:, 0], scaled[:, 2], width, size, points, least)

    def down(t: Tensor) -> Tensor:  # R (s n) 2 -> R s 1 n 2 1 1
        return t.view(regions, size, 1, points, 2, 1, 1)

    def across(t: Tensor) -> Tensor:  # R (s n) 2 -> R 1 s 1 1 n 2
        return t.view(regions, 1, size, 1, 1, points, 2)

    def wide(t: Tensor) -> Tensor:
        return t.view(regions, *[1] * 6)

    index = wide(first) + down(y) * wide(width) + across(x)
    weight = down(y_weight) * across(x_weight) / points**2
    return index.flatten(3).flatten(0, 2), weight.flatten(3).flatten(0, 2)


def _neighbors(
    low: Tensor, high: Tensor, extent: Tensor, size: int, points: int, least: int
) -> tuple[Tensor, Tensor]:
    """The two cells beside each sample point of one axis and their weights: each R (s n) 2. A
    region is at least `least` cells wide.

    Points more than one cell outside of the map have weight 0; others are clamped to its edge.
    """
    step = (torch.arange(size * points, device=low.device, dtype=low.dtype) + 0.5) / (size * points)
    at = low[..., None] + step * (high - low).clamp(min=least)[..., None]
    last = extent[..., None] - 1
    inside = (at >= -1) & (at <= extent[..., None])
    at = at.clamp(min=0)
    cell = torch.minimum(at.long(), last)
    fraction = torch.where(cell >= last, 0, at - cell)
    cells = torch.stack([cell, torch.minimum(cell + 1, last)], dim=-1)
    return cells, torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
