"""Aspect-ratio bucketing: the padded sizes of batches, and the images of each. Letters: I
images.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.image_size import ImageSize

Ints = NDArray[np.int64]

Shape = tuple[int, int]  # height, width

_STEP = 32  # the stride of the backbone's coarsest stage

LENGTHS = 3  # maximum number of sizes for each orientation


def bucket_shapes(sizes: Ints, image_size: ImageSize, most: int = LENGTHS) -> list[list[Shape]]:
    """The padded sizes for images of `sizes` (I 2: height, width after the resize): for each
    orientation in the data, landscape first, at most `most` sizes in ascending order. A square
    `image_size` has a single padded size.

    All have the same short side. The last long side is the longest that `image_size` allows; the
    others minimize the padded area.
    """
    both = (image_size, image_size) if isinstance(image_size, int) else image_size
    short, longest = (-(-side // _STEP) * _STEP for side in both)
    if short == longest:
        return [[(short, short)]]
    landscape = sizes[:, 1] >= sizes[:, 0]
    shapes = []
    for chosen, turned in ((landscape, False), (~landscape, True)):
        if chosen.any():
            lengths = _lengths(-(-sizes[chosen].max(1) // _STEP) * _STEP, longest, most)
            shapes.append([(length, short) if turned else (short, length) for length in lengths])
    return shapes


def _lengths(needed: Ints, longest: int, most: int) -> list[int]:
    """At most `most` lengths up to `longest` that minimize padding; an image uses the first that is
    long enough.
    """
    candidates, counts = np.unique(needed, return_counts=True)
    best: tuple[float, list[int]] = (np.inf, [])
    for several in itertools.combinations_with_replacement(candidates.tolist(), most - 1):
        lengths = sorted({*several, longest})
        area = float((counts * np.array(lengths)[np.searchsorted(lengths, candidates)]).sum())
        best = min(best, (area, lengths))
    used = np.searchsorted(best[1], candidates)
    return [length for k, length in enumerate(best[1]) if k in used or k == len(best[1]) - 1]


def bucket_groups(sizes: Ints, shapes: Sequence[Sequence[Shape]]) -> list[list[Ints]]:
    """For each orientation and each of its shapes, the positions of the images whose smallest shape
    it is. An image may also be padded to any later shape of its orientation.
    """
    landscape = sizes[:, 1] >= sizes[:, 0]
    orientations = [landscape, ~landscape] if len(shapes) == 2 else [np.ones(len(sizes), bool)]
    result = []
    for chain, mine in zip(shapes, orientations, strict=True):
        first = np.full(len(sizes), -1)
        for k, (height, width) in reversed(list(enumerate(chain))):
            first[mine & (sizes[:, 0] <= height) & (sizes[:, 1] <= width)] = k
        result.append([np.flatnonzero(first == k) for k in range(len(chain))])
    return result


def padding_overhead(sizes: Ints, shapes: Sequence[Sequence[Shape]]) -> float:
    """The ratio of padded to real pixels, with each image in the smallest shape that fits."""
    area = 0
    for chain, groups in zip(shapes, bucket_groups(sizes, shapes), strict=True):
        area += sum(
            height * width * len(group)
            for (height, width), group in zip(chain, groups, strict=True)
        )
    return area / int(sizes.prod(1).sum()) - 1
