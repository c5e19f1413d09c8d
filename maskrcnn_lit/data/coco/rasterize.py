"""Rasterizes polygons and run lengths to masks of full images or to crops of M x M pixels.

pycocotools rasterizes in int32 without checks: a distant vertex overflows and kills the process. So
all polygons go through `polygons_rle` or `mask_crops`, which clip them first.

A crop covers a box of the image. Masks are sampled at pixel centers, as in pycocotools: a crop with
the size of its box equals that part of pycocotools' mask, up to the 1/5 pixel to which it rounds
polygon points.

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


LEAST_SIDE = 1e-3  # px: minimum side of a box inside its image

_FARTHEST = 1e12  # px: clipping would lose all digits of larger coordinates


def clip_polygon(part: NDArray[np.float64], low: Any, high: Any) -> NDArray[np.float64]:
    """Clip a polygon to the window from `low` to `high` (x, y each), flat x y x y ...; empty if
    nothing is inside (Sutherland and Hodgman 1974).

    Coordinates may have any finite size.
    """
    points = np.clip(part.reshape(-1, 2), -_FARTHEST, _FARTHEST)
    for axis in (0, 1):
        for limit, sign in ((low[axis], 1.0), (high[axis], -1.0)):
            inside = sign * (points[:, axis] - limit)  # P: distance from the edge, negative outside
            if len(points) == 0 or inside.min() >= 0:
                continue
            after = np.roll(inside, -1)
            crosses = (inside < 0) != (after < 0)
            share = np.divide(
                inside, inside - after, out=np.zeros_like(inside), where=crosses & (inside != after)
            )
            crossing = points + share[:, None] * (np.roll(points, -1, 0) - points)
            crossing[:, axis] = limit
            both = np.stack([points, crossing], 1).reshape(-1, 2)  # each point, then its crossing
            points = both[np.stack([inside >= 0, crosses], 1).ravel()]
    return points.ravel()


def near_window(part: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Clip a polygon that extends farther from the image than the image's longer side; others are
    unchanged. Pixels inside the image stay the same.
    """
    margin = max(height, width)
    if part.min() >= -margin and part.max() <= 2 * margin:  # true for most polygons, and cheap
        return part
    return clip_polygon(part, (-margin, -margin), (width + margin, height + margin))


def polygons_rle(parts: Sequence[Any], height: int, width: int) -> dict[str, Any]:
    """The union of polygons (flat x y x y ... each, at least 3 points, finite) as compressed RLE of
    an image of this size; equal to that of pycocotools, for coordinates of any size.
    """
    near = [near_window(np.asarray(part, np.float64), height, width) for part in parts]
    usable = [part.tolist() for part in near if len(part) >= 6] or [[-1.0] * 6]  # covers no pixel
    rles = coco_mask.frPyObjects(usable, height, width)
    return rles[0] if len(rles) == 1 else coco_mask.merge(rles)


def mask_crops(
    outlines: Sequence[Outline],
    boxes: NDArray[np.float64],
    size: tuple[int, int],
    side: int,
) -> NDArray[np.uint8]:
    """N M M masks, 0 or 1. An almost empty crop, that of a thin object, has at least one pixel for
    every pixel of the full image's mask in the box.

    Args:
        outlines: of N instances.
        boxes: N 4, x1 y1 x2 y2, inside the image and at least LEAST_SIDE wide and high: the areas
            of the crops.
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
            continue
        for part in outline:
            moved = (part.reshape(-1, 2) * scales[n] + shifts[n]).ravel()
            moved = near_window(moved, side, side)
            if len(moved) >= 6:
                parts.append(moved)
                owners.append(n)
    if parts:  # one call for all: M M parts, in Fortran order
        drawn = coco_mask.decode(coco_mask.frPyObjects(parts, side, side)).transpose(2, 0, 1)
        for n, mask in zip(owners, drawn, strict=True):
            crops[n] |= mask
    for n in np.flatnonzero(crops.sum((1, 2), dtype=np.int64) < _THIN * side).tolist():
        crops[n] |= _exact_pixels(outlines[n], boxes[n], size, side)
    return crops


_THIN = 2  # crops with fewer pixels than this many rows are compared to the exact mask


def _exact_pixels(
    outline: Outline, box: NDArray[np.float64], size: tuple[int, int], side: int
) -> NDArray[np.uint8]:
    """M M: the pixels of the crop that contain the center of a pixel of the full image's mask."""
    if isinstance(outline, np.ndarray):
        runs = outline.astype(np.int64)
    else:
        runs = expand_counts(polygons_rle(outline, *size)["counts"])
    crop = np.zeros((side, side), np.uint8)
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2][: len(ends)]
    first, last = int(np.floor(box[0])) * size[0], int(np.ceil(box[2])) * size[0]
    near = (ends > first) & (ends - lengths < last)  # runs in the columns of the box
    begins, stops = (ends - lengths)[near].clip(first, last), ends[near].clip(first, last)
    lengths = stops - begins
    if not lengths.sum():
        return crop
    pixels = np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    centers = np.stack(np.divmod(pixels, size[0]), 1) + 0.5  # x, y
    cells = np.floor((centers - box[:2]) / (box[2:] - box[:2]) * side).astype(np.int64)
    x, y = cells[((cells >= 0) & (cells < side)).all(1)].T
    crop[y, x] = 1
    return crop


def _from_runs(
    runs: NDArray[np.uint32],
    size: tuple[int, int],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    side: int,
) -> NDArray[np.uint8]:
    """M M: for each pixel of the crop the file's pixel at its center; only columns of the box are
    decoded.
    """
    centers = (np.arange(side)[:, None] + 0.5 - shift) / scale  # M 2, in the file's pixels
    return sample_runs(runs, size, centers[:, 1], centers[:, 0])


def sample_runs(
    runs: NDArray[np.uint32],
    size: tuple[int, int],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Y X: the pixels of a mask of this size (height, width), 0 or 1, in which the points lie."""
    height, width = size
    columns = np.floor(x).astype(np.int64).clip(0, width - 1)
    rows = np.floor(y).astype(np.int64).clip(0, height - 1)
    first, last = int(columns.min()), int(columns.max()) + 1
    ends = np.cumsum(runs, dtype=np.int64)
    left, right = np.searchsorted(ends, [first * height, last * height], side="right")
    cuts = np.r_[first * height, ends[left:right], last * height]
    lengths = np.diff(cuts)
    values = (np.arange(left, left + len(lengths)) & 1).astype(np.uint8)
    pixels = np.repeat(values, lengths).reshape(last - first, height)
    return pixels[columns - first][:, rows].T


def visible_boxes(
    crops: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    cut: NDArray[np.float64],
    covered: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """N 4: the boxes `cut` (the parts of `boxes` inside the image; crops cover `boxes`) shrunk to
    the masks inside.

    Otherwise the box of a bent object would include space for the part outside. Exact to one pixel
    of the crop, 1/M of the uncut box. Only boxes that were cut change, and those of objects that
    are `covered` (N) in part; a box without mask inside gets area 0.
    """
    side = crops.shape[-1]
    result = cut.copy()
    changed = (np.abs(cut - boxes) > 1e-6).any(1)
    for n in np.flatnonzero(changed if covered is None else changed | covered):
        start, cell = boxes[n, :2], (boxes[n, 2:] - boxes[n, :2]) / side
        limits = ((cut[n].reshape(2, 2) - start) / cell).clip(
            0, side
        )  # begin, end in pixels of the crop
        first = (
            np.ceil(limits[0] - 0.5).astype(int).clip(0, side - 1)
        )  # pixels with the center inside, at least one
        last = np.maximum(np.floor(limits[1] - 0.5).astype(int), first)
        inside = crops[n, first[1] : last[1] + 1, first[0] : last[0] + 1]
        for axis in (0, 1):
            occupied = np.flatnonzero(inside.any(axis)) + first[axis]
            if not len(occupied):
                result[n, 2:] = result[n, :2]
                break
            if occupied[0] > first[axis]:  # else the mask extends to the cut
                result[n, axis] = start[axis] + cell[axis] * occupied[0]
            if occupied[-1] < last[axis]:
                result[n, axis + 2] = start[axis] + cell[axis] * (occupied[-1] + 1)
    return result


def expand_counts(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of a compressed RLE: numbers with 5 bits per character, from the fourth on stored
    as the difference to the one two before (`rleFrString` of pycocotools' maskApi.c). ValueError:
    invalid.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("not a compressed RLE")
    starts = np.flatnonzero(np.r_[True, (digits[:-1] & 32) == 0])
    lengths = np.diff(np.r_[starts, len(digits)])
    if lengths.max() > 12:
        raise ValueError("a number of more than 60 bits")
    digit = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 31) << (5 * digit), starts)
    negative = (digits[starts + lengths - 1] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * lengths), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def compress_runs(runs: NDArray[np.uint32], size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE, {"size": [h, w], "counts": bytes}, of run lengths."""
    return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def inverted(mask: dict[str, Any]) -> dict[str, Any]:
    """The pixels that a compressed RLE, with counts as bytes or text, does not have."""
    counts = mask["counts"]
    runs = expand_counts(counts if isinstance(counts, bytes) else counts.encode())
    runs = runs[1:] if not runs[0] else np.r_[0, runs]
    height, width = mask["size"]
    return compress_runs(runs.astype(np.uint32), (int(height), int(width)))
