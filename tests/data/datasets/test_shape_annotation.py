"""An annotation means exactly the pixels of its mask, to pycocotools and to a rasteriser of another
kind.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.datasets.shape_annotation import annotate, outlines, run_lengths

masks = arrays.arrays(
    bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()
).filter(np.any)


def decoded(segmentation: Any, shape: tuple[int, int]) -> np.ndarray:
    encoded = (
        coco_mask.frPyObjects(segmentation, *shape) if uncompressed(segmentation) else segmentation
    )
    encoded = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
    return coco_mask.decode(encoded).astype(bool)


def uncompressed(segmentation: Any) -> bool:
    return isinstance(segmentation, list) or isinstance(segmentation["counts"], list)


@settings(max_examples=300, deadline=None)
@given(mask=masks, crowd=st.booleans())
def test_any_mask_survives(mask: np.ndarray, crowd: bool) -> None:
    entry = annotate(mask, crowd)
    np.testing.assert_array_equal(decoded(entry["segmentation"], mask.shape), mask)
    rows, columns = mask.nonzero()
    x, y, width, height = entry["bbox"]
    assert (x, y) == (columns.min(), rows.min())
    assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    assert (entry["area"], entry["iscrowd"]) == (mask.sum(), crowd)


@settings(max_examples=100, deadline=None)
@given(mask=masks)
def test_outlines_enclose_the_mask_for_another_rasteriser(mask: np.ndarray) -> None:
    """Each loop drawn ten times as large: what lies within an odd number of loops is the mask."""
    count = np.zeros(mask.shape, int)
    for loop in outlines(mask):
        large = Image.new("1", (mask.shape[1] * 10 + 1, mask.shape[0] * 10 + 1))
        ImageDraw.Draw(large).polygon([(10 * x, 10 * y) for x, y in loop], fill=1)
        count += np.array(large)[5::10, 5::10]
    np.testing.assert_array_equal(count % 2 == 1, mask)


def test_polygons_where_they_can_say_it_and_rle_where_not() -> None:
    mask = np.zeros((8, 10), bool)
    mask[1:4, 1:4] = mask[5:7, 6:9] = True
    parts = annotate(mask, crowd=False)["segmentation"]
    assert parts == [[4, 1, 4, 4, 1, 4, 1, 1], [9, 5, 9, 7, 6, 7, 6, 5]]  # a list a part, clockwise
    mask[2, 2] = False
    hole = annotate(mask, crowd=False)["segmentation"]
    assert isinstance(hole["counts"], str)
    crowd = annotate(mask, crowd=True)["segmentation"]
    assert crowd == {"size": [8, 10], "counts": [9, 3, 5, 1, 1, 1, 5, 3, 25, 2, 6, 2, 6, 2, 9]}


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    assert len(outlines(np.eye(2, dtype=bool))) == 2
    assert len(outlines(~np.eye(3, dtype=bool))) == 2


@pytest.mark.parametrize("fill", [True, False])
def test_runs_begin_with_zeros(fill: bool) -> None:
    assert run_lengths(np.full((2, 3), fill))["counts"] == ([0, 6] if fill else [6])
