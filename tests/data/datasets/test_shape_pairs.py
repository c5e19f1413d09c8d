"""Pairs of shapes: the upper hides the share that is asked for, and nothing else is hidden."""

import numpy as np
import pytest

from maskrcnn_lit.data.datasets.shape_drawing import Dice
from maskrcnn_lit.data.datasets.shape_pairs import MOST_PAIRS, Pair, draw_pairs


def masks(pair: Pair, size: int) -> tuple[np.ndarray, np.ndarray]:
    below, above = (shape.mask_of(size) for shape in pair.stamps)
    return below, above


@pytest.mark.parametrize(
    ("size", "bound"), [(64, 0.06), (128, 0.04), (200, 0.02)], ids=["64", "128", "200"]
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_the_upper_hides_this_share_of_the_smaller(overlap: float, size: int, bound: float):
    counts, names = [], set()
    for position in range(12):
        pairs = draw_pairs(Dice(3, 1, position), size, overlap)
        counts.append(len(pairs))
        for pair in pairs:
            names.add(pair.name)
            below, above = masks(pair, size)
            assert below.sum() <= above.sum()
            share = (below & above).sum() / below.sum()
            assert abs(share - overlap) <= (bound if overlap else 0)
    assert min(counts) >= 1
    assert max(counts) <= MOST_PAIRS
    assert len(names) > 2


def test_shapes_without_overlap_touch():
    for position in range(10):
        for pair in draw_pairs(Dice(0, 1, position), 128, 0.0):
            below, above = masks(pair, 128)
            beside = np.zeros_like(below)
            for axis in (0, 1):
                for step in (-1, 1):
                    beside |= np.roll(below, step, axis)
            assert (beside & above).any()
            assert not (below & above).any()


def test_pairs_lie_inside_and_do_not_touch_one_another():
    several = 0
    for position in range(20):
        taken = np.zeros((128, 128), dtype=bool)
        for pair in draw_pairs(Dice(1, 1, position), 128, 0.5):
            below, above = masks(pair, 128)
            for shape, mask in zip(pair.stamps, (below, above), strict=True):
                assert mask.sum() == shape.mask.sum()  # nothing is cut off
            grown = (below | above) | np.roll(below | above, 1, 0) | np.roll(below | above, 1, 1)
            several += bool(taken.any())
            assert not (grown & taken).any()
            taken |= below | above
    assert several > 5


def test_the_same_dice_draw_the_same_pairs():
    one, two = (draw_pairs(Dice(5, 2, 7), 128, 0.75) for _ in range(2))
    assert [pair.name for pair in one] == [pair.name for pair in two]
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(masks(a, 128), masks(b, 128), strict=True))
