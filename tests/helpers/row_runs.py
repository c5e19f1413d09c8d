"""Runs of a mask along rows, as the page of a browser has them."""

import numpy as np


def pixels_of(runs: list[int], height: int, width: int) -> np.ndarray:
    """height x width bool of runs y, x, count, which may not overlap or leave the picture."""
    mask = np.zeros((height, width), bool)
    for y, x, count in np.array(runs, int).reshape(-1, 3).tolist():
        assert 0 <= x < x + count <= width
        assert not mask[y, x : x + count].any()
        mask[y, x : x + count] = True
    return mask
