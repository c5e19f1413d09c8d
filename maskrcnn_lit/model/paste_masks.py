"""Converts box masks to COCO RLE of the full image without creating its pixels.

Bit-identical to torchvision's `paste_masks_in_image`, a threshold and pycocotools' `encode`. There
a mask is resized bilinearly to its box, so the values of a pixel column lie on a piecewise linear
function through the values of the mask's rows (the nodes). A run begins or ends where this function
crosses the threshold: a few divisions per column, for any height of the box. Columns with a pixel
that depends on rounding are computed by torch's own resize.

By hand, as pycocotools encodes only masks of the full image, one for each detection, in memory.

Runs are represented as changes: pixels that are on the other side of the threshold than the
previous one, in column-major order. Letters: D masks, m the side of a mask with its zero padding
(28 + 2), C the pixel columns of all boxes inside the image, H W the image.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from torch import Tensor

MASK_THRESHOLD = 0.5  # section 3.1: the mask is resized to the region and binarised at 0.5

CHUNK_COLUMNS = 4096  # limit for C per chunk, to bound memory: 0.5 MB for a C x m float32 tensor


def masks_to_rle(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """D compressed COCO RLEs {"size": [H, W], "counts": bytes}: each mask resized to its box and
    binarized.

    masks: D m-2 m-2 probabilities, converted to float32, on any device. The work is done there;
    only changes are copied to the host.
    boxes: D 4 on the host, x1 y1 x2 y2 in pixels of the H x W image; they may extend beyond it.
    """
    padded = F.pad(
        masks.float(), (1, 1, 1, 1)
    )  # zero padding makes the outline fall to 0 at the border of the box,
    corners = _grow(boxes, padded.shape[-1] / masks.shape[-1]).to(
        torch.int64
    )  # and the box grows by the same factor
    changes = [np.zeros(0, dtype=np.int64)]
    for first, last in _chunks(corners, width):
        positions, mask, x = _changes_from_nodes(
            padded[first:last], corners[first:last], height, width
        )
        uncertain = _changes_from_pixels(
            padded[first:last], corners[first:last], mask, x, height, width
        )
        for part in (positions, uncertain):
            changes.append(part.cpu().numpy() + first * _span(height, width))
    return _encode(np.concatenate(changes), len(masks), height, width)


def _grow(boxes: Tensor, factor: float) -> Tensor:
    center, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * factor
    return torch.cat([center - half, center + half], dim=1)


def _visible(corners: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The first column of each box inside of the image, and their number."""
    left = corners[:, 0].clamp(min=0)
    return left, ((corners[:, 2] + 1).clamp(max=width) - left).clamp(min=0)


def _chunks(corners: Tensor, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of masks with at most CHUNK_COLUMNS columns together, or of one mask."""
    first, filled = 0, 0
    for d, count in enumerate(_visible(corners, width)[1].tolist()):
        if d > first and filled + count > CHUNK_COLUMNS:
            yield first, d
            first, filled = d, 0
        filled += count
    if len(corners):
        yield first, len(corners)


def _span(height: int, width: int) -> int:
    """The offset between the changes of two masks: one number for each pixel, one for the image's
    end.
    """
    return height * width + 1


def _changes_from_nodes(
    padded: Tensor, corners: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The changes, int64, and the columns that depend on rounding: mask and x in the image of each.

    padded: D m m. corners: D 4 int64 on the host, the first and the last pixel of each box.
    """
    side = padded.shape[-1]
    mask, x, coordinate, share = (t.to(padded.device) for t in _columns(corners, side, width))
    left = coordinate.long()
    rows = padded.transpose(1, 2).flatten(0, 1)  # a row is a column of a mask, from top to bottom
    start = rows.index_select(0, mask * side + left)
    slope = rows.index_select(0, mask * side + (left + 1).clamp(max=side - 1)) - start  # along x
    nodes = torch.addcmul(start, slope, (coordinate - left)[:, None]).flatten()

    # C x m flattened: the ends of all columns are zeros.
    rounding, unit = _tolerances(side)
    inside = nodes > MASK_THRESHOLD + rounding + 2 * unit
    near = inside != (nodes > MASK_THRESHOLD - rounding - 2 * unit)
    i = ((inside[1:] != inside[:-1]) | near[1:] | near[:-1]).nonzero()[
        :, 0
    ]  # between node i and i + 1
    column = torch.div(i, side, rounding_mode="floor")
    owner, above, below = mask.take(column), nodes.take(i).double(), nodes.take(i + 1).double()
    share = share.take(owner)
    # The crossings, in rows of the box: the center of the first row is 0.
    row = (i - column * side + (MASK_THRESHOLD - above) / (below - above) + 0.5) / share - 0.5
    before = row.floor()

    nearest = torch.minimum(row - before, before + 1 - row) * share * (below - above).abs()
    steepest = torch.maximum(slope.take(i).abs(), slope.take(i + 1).abs())
    turning = (
        coordinate - coordinate.round()
    ).abs() < 2 * unit  # so close to a node that its other slope may apply
    steepest = torch.where(turning.take(column), 1.0, steepest) + (below - above).abs()
    sure = (
        (nearest > rounding + unit * steepest) & ~near.take(i) & ~near.take(i + 1)
    )  # NaN counts as uncertain
    left_out = torch.zeros_like(turning)
    left_out[column[~sure]] = True

    top = corners[:, 1].to(padded.device)
    y = (before.long() + 1 + top.take(owner)).clamp(
        0, height
    )  # clipped runs begin and end at the border
    changes = owner * _span(height, width) + x.take(column) * height + y
    return changes[~left_out.take(column)], mask[left_out], x[left_out]


def _columns(corners: Tensor, side: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For C columns the mask, the x in the image, and the position between the nodes (0..m-1,
    float32 as in torch); for D masks the height of a pixel in nodes.
    """
    left, counts = _visible(corners, width)
    mask = torch.repeat_interleave(counts)
    x = torch.arange(len(mask)) + (left - counts.cumsum(0) + counts)[mask]
    sides = (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1)
    share = (
        torch.full(sides.shape, float(side)) / sides.float()
    ).double()  # number / tensor would be rounded twice
    coordinate = share[mask, 0] * (x - corners[mask, 0] + 0.5) - 0.5
    return mask, x, coordinate.float().clamp(min=0), share[:, 1].contiguous()


def _tolerances(side: int) -> tuple[float, float]:
    """Bounds for the difference between torch's value of a pixel and ours, for two causes.

    The first bounds rounding in products and sums of values up to 1: 8 times half a unit in the
    last place of float32 in torch, 3 here. The second is one unit in the last place of a
    coordinate, times the difference of the adjacent nodes: depending on the compiler, a
    coordinate's product and difference are rounded once or twice.
    """
    return 2.0**-21, 2.0 ** (side.bit_length() - 24)


def _changes_from_pixels(
    padded: Tensor, corners: Tensor, mask: Tensor, x: Tensor, height: int, width: int
) -> Tensor:
    """The changes in columns of the image, mask and x of each, from the pixels of their boxes.

    padded: D m m. corners: D 4 int64 on the host. mask: ascending.
    """
    inside = torch.zeros(len(mask), height + 2, dtype=torch.bool, device=padded.device)
    owners, counts = mask.unique_consecutive(return_counts=True)
    last = counts.cumsum(0).tolist()
    for d, begin, end in zip(owners.tolist(), [0, *last], last, strict=False):
        x1, y1, x2, y2 = corners[d].tolist()
        size = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        pixels = F.interpolate(
            padded[d, None, None], size=size, mode="bilinear", align_corners=False
        )[0, 0]
        top, bottom = max(y1, 0), min(y1 + size[0], height)
        if bottom > top:
            columns = pixels[top - y1 : bottom - y1, x[begin:end] - x1]
            inside[begin:end, 1 + top : 1 + bottom] = (columns > MASK_THRESHOLD).T
    column, row = (inside[:, 1:] != inside[:, :-1]).nonzero(as_tuple=True)
    return mask[column] * _span(height, width) + x[column] * height + row


def _encode(changes: np.ndarray, masks: int, height: int, width: int) -> list[dict[str, Any]]:
    """Changes of all masks, in any order -> an RLE for each. Two changes at the same pixel cancel:
    an empty run, or one that continues from the bottom of a column to the top of the next.
    """
    changes, times = np.unique(changes, return_counts=True)
    changes = changes[times % 2 == 1]
    starts = np.arange(masks + 1) * _span(height, width)
    counts = np.diff(np.sort(np.concatenate([starts[:-1], changes, starts[1:] - 1])))
    cuts = np.searchsorted(changes, starts) + 2 * np.arange(
        masks + 1
    )  # the begin and end of each mask
    rles = []
    for first, last in pairwise(cuts.tolist()):
        own = counts[first : last - 1]
        rles.append({"size": [height, width], "counts": own if own[-1] else own[:-1]})
    return pycocotools.mask.frPyObjects(rles, height, width) if rles else []
