"""Pictures of shapes in pairs of a set overlap: data=shapes data.overlap=0..0.9.

The overlap is the share of the smaller shape's area that is hidden: the two shapes of a pair have
one class, the smaller lies below, and the larger covers this share of its pixels (to the nearest
position on the pixel grid, within 0.04 at 128 pixels). Overlap 0: the two touch, and no pixel is
shared. A shape overlaps no other shape than that of its pair, and none is cut off by the border.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.datasets.shape_drawing import OUTLINES, STEPS, Dice, Stamp, stamp

TURN = 16  # up to 28 degrees each way, as in other pictures
LARGER = 112  # percent of the lower's radius that the upper has at most
TWIST = 3  # up to 5 degrees between the two of a pair
MOST_PAIRS = 3
TRIES = 12  # positions of a pair
TOLERANCE = 0.01  # of the overlap; without such a position, the nearest counts

Ints = NDArray[np.int64]


class Pair(NamedTuple):
    """Two shapes of one class, the first below the second."""

    name: str
    stamps: tuple[Stamp, Stamp]


def draw_pairs(dice: Dice, size: int, overlap: float) -> list[Pair]:
    """One to three pairs in a picture of `size` x `size` pixels; no two pairs touch."""
    free = np.ones((size, size), dtype=bool)
    pairs: list[Pair] = []
    for _ in range(dice.number(1, MOST_PAIRS)):
        pair = _draw_pair(dice, size, overlap, free)
        if pair is not None:
            pairs.append(pair)
    return pairs


def _draw_pair(dice: Dice, size: int, overlap: float, free: NDArray[np.bool_]) -> Pair | None:
    """A pair on pixels that are True in `free` (size size), where they become False. None if all
    tries fail, which the first pair of a picture cannot.
    """
    pixel = size * STEPS // 128  # lengths below refer to a picture of 128 x 128 pixels
    name = dice.pick(tuple(OUTLINES))
    radius, turn = dice.number(13 * pixel, 24 * pixel), dice.number(-TURN, TURN)
    below = _centered(name, radius, turn)
    larger, twist = dice.number(100, LARGER), dice.number(-TWIST, TWIST)
    above = _centered(name, radius * larger // 100, max(-TURN, min(TURN, turn + twist)))
    if above.mask.sum() < below.mask.sum():
        below, above = above, below
    down, right, error = _offset(dice, below.mask, above.mask, overlap)
    if error > TOLERANCE:  # arms that are thin and turned do not cover so much
        above = _centered(name, radius * LARGER // 100, turn)
        down, right, _ = _offset(dice, below.mask, above.mask, overlap)
    tops, lefts = (min(0, down), min(0, right))
    height = max(below.cover.shape[0], down + above.cover.shape[0]) - tops
    width = max(below.cover.shape[1], right + above.cover.shape[1]) - lefts
    for _ in range(TRIES):
        y, x = dice.number(0, size - height) - tops, dice.number(0, size - width) - lefts
        stamps = (_moved(below, y, x), _moved(above, y + down, x + right))
        taken = stamps[0].mask_of(size) | stamps[1].mask_of(size)
        if free[taken].all():
            free &= ~_grown(taken)
            return Pair(name, stamps)
    return None


def _centered(name: str, radius: int, turn: int) -> Stamp:
    """A shape without the empty rows and columns around it."""
    room = 4 * (radius // STEPS + 2)
    whole = stamp(
        name, size=room, x=room * STEPS // 2, y=room * STEPS // 2, radius=radius, turn=turn
    )
    rows, columns = (np.flatnonzero((whole.cover > 0).any(axis)) for axis in (1, 0))
    cover = whole.cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _moved(Stamp((slice(0, 0), slice(0, 0)), cover), 0, 0)


def _moved(shape: Stamp, y: int, x: int) -> Stamp:
    height, width = shape.cover.shape
    return Stamp((slice(y, y + height), slice(x, x + width)), shape.cover)


def _offset(
    dice: Dice, below: NDArray[np.bool_], above: NDArray[np.bool_], overlap: float
) -> tuple[int, int, float]:
    """How far down and right of the first mask the second lies, for this overlap (negative: up and
    left), and the error of the overlap there.
    """
    shared, first = _shared(below, above)
    error = np.abs(shared / below.sum() - overlap)
    if overlap == 0:
        near = (shared == 0) & _grown(shared > 0)  # one pixel further, and they overlap
    else:
        near = error <= max(TOLERANCE, float(error.min()))
    rows, columns = near.nonzero()
    chosen = dice.number(0, len(rows) - 1)
    y, x = int(rows[chosen]), int(columns[chosen])
    return y + first[0], x + first[1], float(error[y, x])


def _shared(below: NDArray[np.bool_], above: NDArray[np.bool_]) -> tuple[Ints, tuple[int, int]]:
    """The shared pixels for every offset of the second mask, with a border of zeros, and the offset
    of the first entry.
    """
    shape = tuple(a + b + 1 for a, b in zip(below.shape, above.shape, strict=True))
    # a correlation, by way of the Fourier transform; counts are whole numbers
    product = np.fft.rfft2(below, shape) * np.conj(np.fft.rfft2(above, shape))
    shared = np.rint(np.fft.irfft2(product, shape)).astype(np.int64)
    first = (-above.shape[0], -above.shape[1])
    return np.roll(shared, (-first[0], -first[1]), (0, 1)), first


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the pixels beside it, above it and below it."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
