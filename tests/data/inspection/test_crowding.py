"""Covered shares against counting pixels."""

import tracemalloc

import numpy as np
import pytest

from maskrcnn_lit.data.inspection.crowding import covered_shares


@pytest.mark.parametrize(("count", "tolerance"), [(1, 0), (2, 1e-12), (40, 1e-12), (500, 0.05)])
def test_shares_are_those_of_the_pixels(count: int, tolerance: float) -> None:
    """Exact below 200 overlaps, near beyond."""
    rng = np.random.default_rng(count)
    start, size = rng.integers(0, 60, (count, 2)), rng.integers(1, 40, (count, 2))
    corners = np.hstack([start, start + size])
    times = np.zeros((100, 100), int)
    for x1, y1, x2, y2 in corners:
        times[y1:y2, x1:x2] += 1
    expected = [(times[y1:y2, x1:x2] > 1).mean() for x1, y1, x2, y2 in corners]
    assert covered_shares(corners.astype(float)) == pytest.approx(expected, abs=tolerance)


def test_shares_of_equal_touching_and_empty_boxes() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 21, 0], [12, 2, 13, 3]]
    assert covered_shares(np.array(boxes, float)).tolist() == [1, 1, 0.01, 0, 1]
    assert covered_shares(np.zeros((0, 4))).shape == (0,)


@pytest.mark.long
def test_an_image_of_many_objects_takes_little_memory() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 90, (3000, 2))
    boxes = np.hstack([corners, corners + rng.uniform(3, 40, (3000, 2))])
    tracemalloc.start()
    shares = covered_shares(boxes)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6
    assert shares.min() > 0.5
