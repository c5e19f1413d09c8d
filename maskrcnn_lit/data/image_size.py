"""data.image_size: the size that images are resized to. Without torch, which commands that only
count need not load.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError

ImageSize = int | tuple[int, int]  # the side of a square, or (short, long) as in the paper

MIN_SIDE, MAX_SIDE = 32, 16_384  # of data.image_size: pixels


def read_image_size(value: int | Sequence[int]) -> ImageSize:
    """Check `data.image_size`. UserError: neither a number nor [short, long], or out of range."""
    sides: list[Any] = [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        sides = list(value)
    valid = all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in sides)
    if len(sides) not in (1, 2) or not valid or sides != sorted(sides):
        raise UserError(
            f"data.image_size={value} must be one side of {MIN_SIDE} to {MAX_SIDE} pixels, such as "
            "256, or [short, long] sides, such as [800, 1333]"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def fit(sizes: NDArray[Any], image_size: ImageSize) -> NDArray[np.float64]:
    """The scale factors (...) that make images of `sizes` (... 2) as large as `image_size` allows,
    at a fixed aspect ratio.

    (short, long) as in Mask R-CNN, section 3.1: the short side becomes 800 pixels, unless the long
    one would be too long.
    """
    if isinstance(image_size, int):
        return image_size / sizes.max(-1)
    short, long = image_size
    return np.minimum(short / sizes.min(-1), long / sizes.max(-1))


def fitted_sizes(sizes: NDArray[Any], image_size: ImageSize) -> NDArray[np.int64]:
    """... 2: height, width of full images of `sizes` after the resize. Training images are never
    larger.
    """
    return np.maximum(np.rint(sizes * fit(sizes, image_size)[..., None]), 1).astype(np.int64)
