"""Converts a mask to a COCO annotation that every rasterizer turns back into exactly its pixels.

Polygons run along pixel edges, between corners with integer coordinates. So every pixel center is
clearly inside or outside, and pycocotools (which rounds to fifths of a pixel), OpenCV and Pillow
agree.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Corner = tuple[int, int]  # x, y

# Right, down, left, up: clockwise on a screen, where y points down.
_MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))


def annotate(mask: np.ndarray, crowd: bool) -> dict[str, Any]:
    """`bbox`, `area`, `iscrowd` and `segmentation` of an H W bool mask with at least one pixel.

    The segmentation is uncompressed RLE for a crowd region, as in COCO; else one polygon for each
    part; or compressed RLE if the mask has a hole, which COCO's polygons (a union of areas) cannot
    express.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
    return {
        "bbox": [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1],
        "area": int(mask.sum()),
        "iscrowd": int(crowd),
        "segmentation": run_lengths(mask) if crowd else _polygons_or_rle(mask),
    }


def _polygons_or_rle(mask: np.ndarray) -> Any:
    loops = outlines(mask)
    if all(signed_area(loop) > 0 for loop in loops):
        return [[number for corner in loop for number in corner] for loop in loops]
    return compressed(mask)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """Compressed COCO RLE of an H W bool mask, with counts as text."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed COCO RLE of an H W bool mask: lengths of its runs of 0, 1, 0, ..., column by
    column.
    """
    pixels = np.concatenate(
        [[False], mask.ravel(order="F")]
    )  # the first run counts zeros; it may be empty
    ends = np.append((pixels[1:] != pixels[:-1]).nonzero()[0], mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def outlines(mask: np.ndarray) -> list[list[Corner]]:
    """The closed paths along pixel edges around an H W bool mask: clockwise around parts,
    anticlockwise around holes.

    Pixels that touch only at a corner belong to two parts.
    """
    edges = _edges(mask)
    loops = []
    while edges:
        start = x, y, direction = next(iter(edges))
        loop: list[Corner] = []
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            x, y = x + _MOVES[direction][0], y + _MOVES[direction][1]
            # Where two paths meet at a corner, turn right to stay with the part on the right.
            turns = ((direction + 1) % 4, direction, (direction - 1) % 4)
            onward = next((turn for turn in turns if (x, y, turn) in edges), start[2])
            if onward != direction:
                loop.append((x, y))
            direction = onward
        loops.append(loop)
    return loops


def _edges(mask: np.ndarray) -> dict[tuple[int, int, int], None]:
    """Edges between inside and outside as (x, y, direction), starting at x, y, with the inside on
    their right.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    down, across = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    edges: dict[tuple[int, int, int], None] = {}  # a dict keeps the order, a set would not
    for direction, (step, sign) in enumerate(((down, 1), (across, -1), (down, -1), (across, 1))):
        y, x = (step == sign).nonzero()
        x, y = (
            x + (direction == 2),
            y + (direction == 3),
        )  # an edge to the left or up starts at its far end
        edges.update(dict.fromkeys(zip(x.tolist(), y.tolist(), [direction] * len(x), strict=True)))
    return edges


def signed_area(loop: Sequence[Any]) -> float:
    """Twice the area inside of `loop`, a list of x, y; negative where it runs anticlockwise on a
    screen.
    """
    following = [*loop[1:], loop[0]]
    return sum(x * v - u * y for (x, y), (u, v) in zip(loop, following, strict=True))
