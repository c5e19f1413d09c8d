"""Boundary IoU, the agreement of two outlines (Cheng et al. 2021, "Boundary IoU",
arXiv:2103.16562).

The boundary of a mask is the set of its pixels within a distance d of its outline; d is 2 % of the
image diagonal (section 4). Mask IoU is insensitive to the outline of large objects; boundary IoU is
sensitive at every size. Boundary AP uses min(mask IoU, boundary IoU) instead of mask IoU (section
5), so that a filled and a hollow shape do not match.

As in the authors' code, d is rounded and at least 1, the distance is that of d erosions by 3 x 3
pixels, and the image's edge counts as an outline. Letters: D detections, G objects.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.rasterize import expand_counts

DILATION_RATIO = 0.02


class Crop(NamedTuple):
    """The part of an image around a mask: its top left pixel, and h w bool."""

    top: int
    left: int
    pixels: NDArray[np.bool_]


def boundary_distance(height: int, width: int, ratio: float = DILATION_RATIO) -> int:
    """d, in pixels."""
    return max(round(ratio * math.hypot(height, width)), 1)


def boundary(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """The pixels of `mask`, h w, that `distance` erosions by 3 x 3 pixels remove. Pixels outside
    are 0.
    """
    side = 2 * distance + 1
    if min(mask.shape) < side:  # no square of that side fits
        return mask
    sums = np.zeros(
        (mask.shape[0] + 1, mask.shape[1] + 1), np.int32
    )  # sums over the pixels above and to the left
    sums[1:, 1:] = mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    inside = (
        sums[side:, side:] - sums[side:, :-side] - sums[:-side, side:] + sums[:-side, :-side]
    ) == side * side
    left = mask.copy()
    left[distance:-distance, distance:-distance] &= ~inside
    return left


def boundary_crop(rle: dict[str, Any]) -> Crop:
    """The boundary of a compressed COCO RLE."""
    top, left, mask = mask_crop(rle)
    return Crop(top, left, boundary(mask, boundary_distance(*rle["size"])))


def mask_crop(rle: dict[str, Any]) -> Crop:
    """The mask of a compressed COCO RLE, cropped to its box; only the columns of the box are
    decoded.
    """
    left, top, width, height = (int(value) for value in rle_tools.toBbox(rle))
    rows, counts = int(rle["size"][0]), rle["counts"]
    ends = np.cumsum(expand_counts(counts if isinstance(counts, bytes) else counts.encode()))
    first, last = left * rows, (left + width) * rows
    begin, end = np.searchsorted(ends, [first, last], side="right")
    lengths = np.diff(np.concatenate([[first], ends[begin:end], [last]]))
    values = (np.arange(begin, begin + len(lengths)) & 1).astype(
        bool
    )  # every second run belongs to the mask
    return Crop(top, left, np.repeat(values, lengths).reshape(width, rows)[:, top : top + height].T)


def crop_iou(a: Crop, b: Crop) -> float:
    """IoU of two masks of one image; 0 if both are empty."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.pixels.shape[0], b.top + b.pixels.shape[0])
    right = min(a.left + a.pixels.shape[1], b.left + b.pixels.shape[1])
    common = 0
    if bottom > top and right > left:
        shared = [
            c.pixels[top - c.top : bottom - c.top, left - c.left : right - c.left] for c in (a, b)
        ]
        common = int(np.count_nonzero(shared[0] & shared[1]))
    union = int(np.count_nonzero(a.pixels)) + int(np.count_nonzero(b.pixels)) - common
    return common / union if union else 0.0


def with_boundaries(
    iou: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    detections: Sequence[dict[str, Any]],
    objects: Sequence[dict[str, Any]],
) -> NDArray[np.float64]:
    """D G: min(mask IoU, boundary IoU) of the pairs in `wanted`, 0 for the others.

    iou: D G, of the masks; wanted: D G, the pairs that may match, to compute few boundaries.
    detections, objects: compressed RLEs of one image.
    """
    result = np.zeros_like(iou)
    of_objects = {g: boundary_crop(objects[g]) for g in np.flatnonzero(wanted.any(0)).tolist()}
    for d in np.flatnonzero(wanted.any(1)).tolist():
        crop = boundary_crop(
            detections[d]
        )  # one at a time, to limit memory: each may be as large as the image
        for g in np.flatnonzero(wanted[d]).tolist():
            result[d, g] = min(iou[d, g], crop_iou(crop, of_objects[g]))
    return result
