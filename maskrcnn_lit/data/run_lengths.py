"""Masks of boxes -> COCO RLE of the whole image, without its pixels.

Bit for bit what torchvision's `paste_masks_in_image`, a threshold and pycocotools' `encode` give. There a mask is
resized bilinearly to its box. So a column of pixels reads, from top to bottom, a line drawn through the values of the
mask's rows (the nodes). A run begins or ends where that line crosses the threshold: a few divisions a column, however
high the box is. Where rounding could decide a pixel, torch's own resize of that mask decides.

Letters: D masks, m a mask's side with its ring of zeros (28 + 2), C the columns of pixels of all boxes, H W the image.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from torch import Tensor

MASK_THRESHOLD = 0.5  # section 3.1: the mask is resized to the region and binarised at 0.5
CHUNK_COLUMNS = 4096  # C at once, to bound the memory: 1 MB for a tensor of C x m float32


def masks_to_rle(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """D compressed COCO RLEs {"size": [H, W], "counts": bytes}: each mask stretched over its box and binarised.

    masks: D m-2 m-2 probabilities, on any device: the work is done there, and only the ends of runs come to the host.
        They are read as float32.
    boxes: D 4 on the host, x1 y1 x2 y2 in pixels of the H x W image; they may reach out of it.
    """
    padded = F.pad(masks.float(), (1, 1, 1, 1))  # a ring of zeros lets the outline fall to 0 at the box's border,
    side = padded.shape[-1]
    corners = _grow(boxes, side / masks.shape[-1]).to(torch.int64)  # and the box grows by the same share
    found = [np.zeros(0, dtype=np.int64)]
    for first, last in _chunks((corners[:, 2].clamp(max=width - 1) - corners[:, 0].clamp(min=0) + 1).clamp(min=0)):
        changes, sure = _changes_from_nodes(padded[first:last], corners[first:last], height, width)
        found.append(changes.cpu().numpy() + first * _span(height, width))
        for d in (first + np.flatnonzero(~sure.cpu().numpy())).tolist():
            changes = _changes_from_pixels(padded[d], corners[d].tolist(), height, width)
            found.append(changes.cpu().numpy() + d * _span(height, width))
    return _encode(np.concatenate(found), len(masks), height, width)


def _grow(boxes: Tensor, factor: float) -> Tensor:
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * factor
    return torch.cat([centre - half, centre + half], dim=1)


def _chunks(columns: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of masks with at most CHUNK_COLUMNS columns together, or of one mask."""
    first, held = 0, 0
    for d, count in enumerate(columns.tolist()):
        if d > first and held + count > CHUNK_COLUMNS:
            yield first, d
            first, held = d, 0
        held += count
    if len(columns):
        yield first, len(columns)


def _span(height: int, width: int) -> int:
    """Places that a mask takes in the one row of all masks: its pixels down the columns, and the end of the last."""
    return height * width + 1


def _changes_from_nodes(padded: Tensor, corners: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where a pixel is on the other side of the threshold than the one before it: places (see `_span`), int64.

    The second value, D bool, is false for a mask with a pixel, or a node, so near to the threshold that rounding could
    move it across; the places of such a mask are left out.

    padded: D m m. corners: D 4 int64 on the host, the first and the last pixel of each box.
    """
    side, device = padded.shape[-1], padded.device
    owner, x, coordinate, scale = _columns(corners, side, width)
    owner, x, coordinate, scale, top = (t.to(device) for t in (owner, x, coordinate, scale, corners[:, 1]))
    lower = coordinate.long()
    rows = padded.transpose(1, 2).flatten(0, 1)  # a row is a column of a mask, from top to bottom
    start = rows.index_select(0, owner * side + lower)
    slope = rows.index_select(0, owner * side + (lower + 1).clamp(max=side - 1)) - start  # along x, a node's worth
    nodes = torch.addcmul(start, slope, (coordinate - lower)[:, None]).flatten()
    slope = slope.abs().flatten()

    # C x m in one row: a column ends, and the next begins, in the ring.
    rounding, unit = _rounding(side)
    margin = rounding + 2 * unit
    inside = nodes > MASK_THRESHOLD + margin
    near = inside != (nodes > MASK_THRESHOLD - margin)
    i = ((inside[1:] != inside[:-1]) | near[1:] | near[:-1]).nonzero()[:, 0]
    column = i // side
    mask, above, below = owner[column], nodes[i].double(), nodes[i + 1].double()
    step = (below - above).abs()
    # Rows of the box from its first pixel's centre to where the line crosses: the first pixel beyond is on the other side.
    row = (i - column * side + (MASK_THRESHOLD - above) / (below - above) + 0.5) / scale[mask, 1] - 0.5
    before = row.floor()
    nearest = torch.minimum(row - before, before + 1 - row) * scale[mask, 1] * step
    # Next to a node the slope may be that of either side.
    turning = (coordinate - coordinate.round()).abs() < 2 * unit
    steepest = torch.where(turning[column], 1.0, torch.maximum(slope[i], slope[i + 1]))
    # Written so that NaN is not sure.
    is_sure = (nearest > rounding + unit * (steepest + step)) & ~near[i] & ~near[i + 1]
    sure = torch.ones(len(padded), dtype=torch.bool, device=device)
    sure[mask[~is_sure]] = False

    y = (before.long() + 1 + top[mask]).clamp(0, height)  # what is cut off begins and ends at the border
    return (mask * _span(height, width) + x[column] * height + y)[sure[mask]], sure


def _columns(corners: Tensor, side: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C columns of pixels: the mask of each, its x in the image, where it lies between the nodes (0..m-1, float32, as in
    torch); and D 2, the share of a node that a pixel of the mask is (x y)."""
    left, right = corners[:, 0].clamp(min=0), (corners[:, 2] + 1).clamp(max=width)
    counts = (right - left).clamp(min=0)
    owner = torch.repeat_interleave(counts)
    x = torch.arange(len(owner)) + (left - counts.cumsum(0) + counts)[owner]
    scale = (side / (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1).float()).double()
    coordinate = scale[owner, 0] * (x - corners[owner, 0] + 0.5) - 0.5
    return owner, x, coordinate.float().clamp(min=0), scale


def _rounding(side: int) -> tuple[float, float]:
    """How far torch's value of a pixel may be from ours, for each of two causes.

    The first is for the products and sums of values up to 1: 8 halves of a float32's last bit (2^-24) there, 3 here.
    The second is one unit in the last place of a coordinate, for each node that a value changes by: a
    coordinate is a product and a difference, which a compiler may round once or twice.
    """
    return 2.0**-21, 2.0 ** (side.bit_length() - 24)


def _changes_from_pixels(padded: Tensor, corners: list[int], height: int, width: int) -> Tensor:
    """The same places for one mask, m m, from the pixels of its box."""
    x1, y1, x2, y2 = corners
    size = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
    pixels = F.interpolate(padded[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    left, top = max(x1, 0), max(y1, 0)
    inside = pixels[top - y1 : max(height - y1, 0), left - x1 : max(width - x1, 0)] > MASK_THRESHOLD
    columns = F.pad(inside.T, (1, 1))
    column, row = (columns[:, 1:] != columns[:, :-1]).nonzero(as_tuple=True)
    return (left + column) * height + top + row


def _encode(changes: np.ndarray, masks: int, height: int, width: int) -> list[dict[str, Any]]:
    """Places of all masks, in any order -> an RLE for each. A place that is there twice is no change: a run that has no
    pixel, or one that ends at the bottom of a column and goes on at the top of the next."""
    places, times = np.unique(changes, return_counts=True)
    places = places[times % 2 == 1]
    starts = np.arange(masks + 1) * _span(height, width)
    counts = np.diff(np.sort(np.concatenate([starts[:-1], places, starts[1:] - 1])))
    cuts = np.searchsorted(places, starts) + 2 * np.arange(masks + 1)
    rles = []
    for first, after in itertools.pairwise(cuts.tolist()):
        rles.append({"size": [height, width], "counts": counts[first : after - (1 if counts[after - 2] else 2)]})
    return pycocotools.mask.frPyObjects(rles, height, width) if rles else []
