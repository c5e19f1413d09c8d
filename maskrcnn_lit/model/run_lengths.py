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
    left, right = corners[:, 0].clamp(min=0), (corners[:, 2] + 1).clamp(max=width)
    counts = (right - left).clamp(min=0)
    owner = torch.repeat_interleave(counts)  # the mask of each of C columns
    x = torch.arange(len(owner)) + (left - counts.cumsum(0) + counts)[owner]
    sides = (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1)
    # The share of a node that a pixel is; torch has it, and the coordinates, in float32.
    scale = (torch.tensor(float(side)) / sides.float()).double()
    coordinate = scale[owner, 0] * (x - corners[owner, 0] + 0.5) - 0.5
    coordinate, owner, x, scale, top = (
        tensor.to(device) for tensor in (coordinate.float().clamp(min=0), owner, x, scale, corners[:, 1])
    )
    lower = coordinate.long()
    rows = padded.transpose(1, 2).flatten(0, 1)  # a row is a column of a mask, from top to bottom
    first, second = owner * side + lower, owner * side + (lower + 1).clamp(max=side - 1)
    nodes = rows.index_select(0, first).lerp(rows.index_select(0, second), (coordinate - lower)[:, None])

    # A coordinate below `side` is off by one unit in the last place at most, and a bilinear value changes by 1.5 a
    # node at most where it is 0.5; the rest is for the products and the sums.
    margin = side * 2.0**-22
    inside = nodes > MASK_THRESHOLD
    column, above = (inside[:, 1:] != inside[:, :-1]).nonzero(as_tuple=True)
    start, stop = nodes[column, above].double(), nodes[column, above + 1].double()
    crossed = owner[column]
    row_scale = scale[crossed, 1]
    row = (above + (MASK_THRESHOLD - start) / (stop - start) + 0.5) / row_scale - 0.5  # of the box, with a fraction
    before = row.floor()
    nearest = torch.minimum(row - before, before + 1 - row) * row_scale * (stop - start).abs()

    sure = torch.ones(len(padded), dtype=torch.bool, device=device)
    near = ((nodes > MASK_THRESHOLD - margin) != (nodes > MASK_THRESHOLD + margin)).nonzero(as_tuple=True)[0]
    sure[owner[near]] = False
    sure[crossed[~(nearest > margin)]] = False  # written so that NaN is not sure
    y = (before.long() + 1 + top[crossed]).clamp(0, height)  # what is cut off begins and ends at the border
    places = crossed * _span(height, width) + x[column] * height + y
    return places[sure[crossed]], sure


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
