"""The share of an object's box that other boxes of its image cover."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_EXACT = 200  # overlapping boxes; with more, the share is sampled at points

_POINTS = 64  # per side of the box


def covered_shares(boxes: Floats) -> Floats:
    """The share of each box that other boxes cover: N, 0..1; 0 for a box without area.

    Exact up to 200 overlapping boxes, else sampled at 64 x 64 points.

    Args:
        boxes: N 4, x1 y1 x2 y2, of one image.
    """
    starts, ends = boxes[:, :2], boxes[:, 2:]
    shares = np.zeros(len(boxes))
    for n in np.flatnonzero((ends > starts).all(1)).tolist():
        low, high = np.maximum(starts, starts[n]), np.minimum(ends, ends[n])  # cut to this box
        overlaps = (high > low).all(1)
        overlaps[n] = False
        if overlaps.sum() <= _EXACT:
            area = _union(low[overlaps], high[overlaps])
            shares[n] = area / (ends[n] - starts[n]).prod()
        else:
            shares[n] = _at_points(starts[n], ends[n], low[overlaps], high[overlaps])
    return shares


def _union(low: Floats, high: Floats) -> float:
    """Area of the union of N boxes, N 2 each: split the plane at every edge and add the areas of
    the covered cells.
    """
    covers, lengths = [], []
    for axis in (0, 1):
        cuts = np.unique(np.r_[low[:, axis], high[:, axis]])
        covers.append((low[:, axis, None] <= cuts[:-1]) & (high[:, axis, None] >= cuts[1:]))
        lengths.append(np.diff(cuts))
    cells = covers[0].T.astype(np.float64) @ covers[1] > 0
    return float(lengths[0] @ cells @ lengths[1])


def _at_points(start: Floats, end: Floats, low: Floats, high: Floats) -> float:
    """The covered share of the box from `start` to `end`, sampled at the centers of its cells."""
    steps = (np.arange(_POINTS) + 0.5) / _POINTS
    inside = []
    for axis in (0, 1):
        points = start[axis] + steps * (end[axis] - start[axis])
        inside.append((points >= low[:, axis, None]) & (points < high[:, axis, None]))
    return float((inside[0].T.astype(np.float32) @ inside[1] > 0).mean())
