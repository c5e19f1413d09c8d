"""Polygons and run lengths to mask crops of M x M pixels, without a mask of the whole image.

A crop covers a box of the image. Everything is asked at pixel centres, as pycocotools does: a crop
of the size of its box in pixels is the part of pycocotools' mask there, up to the 1/5 pixel to
which it rounds polygon points.

Letters: N instances, P points, M mask crop side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# polygons as flat x0 y0 x1 y1 ... float64 arrays, or run lengths in COCO's order: down the columns,
# zeros first
Outline = Sequence[NDArray[np.float64]] | NDArray[np.uint32]


def mask_crops(
    outlines: Sequence[Outline],
    boxes: NDArray[np.float64],
    size: tuple[int, int],
    side: int,
) -> NDArray[np.uint8]:
    """N M M masks, 0 or 1.

    Args:
        outlines: of N instances.
        boxes: N 4, x1 y1 x2 y2: what the crops cover.
        size: height, width of the image.
        side: M.
    """
    scales = side / (boxes[:, 2:] - boxes[:, :2])  # N 2
    shifts = -scales * boxes[:, :2]
    crops = np.zeros((len(outlines), side, side), np.uint8)
    parts: list[NDArray[np.float64]] = []
    owners: list[int] = []
    for n, outline in enumerate(outlines):
        if isinstance(outline, np.ndarray):
            crops[n] = _from_runs(outline, size, scales[n], shifts[n], side)
        else:
            parts.extend((part.reshape(-1, 2) * scales[n] + shifts[n]).ravel() for part in outline)
            owners.extend([n] * len(outline))
    if parts:  # one call for all of them: M M parts, in Fortran's order
        drawn = coco_mask.decode(coco_mask.frPyObjects(parts, side, side)).transpose(2, 0, 1)
        for n, mask in zip(owners, drawn, strict=True):
            crops[n] |= mask
    return crops


def _from_runs(
    runs: NDArray[np.uint32],
    size: tuple[int, int],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    side: int,
) -> NDArray[np.uint8]:
    """M M: for each pixel of the crop the file's pixel at its centre; only the columns in question
    are unpacked.
    """
    height, width = size
    centres = (np.arange(side)[:, None] + 0.5 - shift) / scale  # M 2, in the file's pixels
    columns = np.floor(centres[:, 0]).astype(np.int64).clip(0, width - 1)
    rows = np.floor(centres[:, 1]).astype(np.int64).clip(0, height - 1)
    first, last = int(columns.min()), int(columns.max()) + 1
    ends = np.cumsum(runs, dtype=np.int64)
    left, right = np.searchsorted(ends, [first * height, last * height], side="right")
    cuts = np.r_[first * height, ends[left:right], last * height]
    lengths = np.diff(cuts)
    values = (np.arange(left, left + len(lengths)) & 1).astype(np.uint8)
    pixels = np.repeat(values, lengths).reshape(last - first, height)
    return pixels[columns - first][:, rows].T


def visible_boxes(
    crops: NDArray[np.uint8], boxes: NDArray[np.float64], cut: NDArray[np.float64]
) -> NDArray[np.float64]:
    """N 4: the boxes `cut` (what the image's edge leaves of `boxes`, which the crops cover) shrunk
    to the mask inside.

    Without it the box of a bent object keeps room for the part outside. Exact to one pixel of the
    crop, 1/M of the uncut box. Only boxes that were cut change; one without mask inside gets no
    area.
    """
    side = crops.shape[-1]
    result = cut.copy()
    for n in np.flatnonzero((np.abs(cut - boxes) > 1e-6).any(1)):
        start, cell = boxes[n, :2], (boxes[n, 2:] - boxes[n, :2]) / side
        place = ((cut[n].reshape(2, 2) - start) / cell).clip(
            0, side
        )  # begin, end in pixels of the crop
        first = (
            np.ceil(place[0] - 0.5).astype(int).clip(0, side - 1)
        )  # those whose centre is inside, one at least
        last = np.maximum(np.floor(place[1] - 0.5).astype(int), first)
        inside = crops[n, first[1] : last[1] + 1, first[0] : last[0] + 1]
        for axis in (0, 1):
            held = np.flatnonzero(inside.any(axis)) + first[axis]
            if not len(held):
                result[n, 2:] = result[n, :2]
                break
            if held[0] > first[axis]:  # else the mask goes on up to the cut
                result[n, axis] = start[axis] + cell[axis] * held[0]
            if held[-1] < last[axis]:
                result[n, axis + 2] = start[axis] + cell[axis] * (held[-1] + 1)
    return result


def expand_counts(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of a compressed RLE: numbers of 5 bits a character, from the fourth on as the
    difference to the one two before (`rleFrString` of pycocotools' maskApi.c). ValueError: damaged.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("not a compressed RLE")
    starts = np.flatnonzero(np.r_[True, (digits[:-1] & 32) == 0])
    lengths = np.diff(np.r_[starts, len(digits)])
    if lengths.max() > 12:
        raise ValueError("a number of more than 60 bits")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    negative = (digits[starts + lengths - 1] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * lengths), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def compress_runs(runs: NDArray[np.uint32], size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE, {"size": [h, w], "counts": bytes}, of run lengths."""
    return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)
