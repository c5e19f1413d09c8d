"""Boundaries against an erosion of the whole image, step by step, as the authors' code has it."""

import math
import tracemalloc

import numpy as np
import pytest
from box_scenes import rle, slow_boundary
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.analysis.boundary import (
    Crop,
    boundary,
    boundary_crop,
    boundary_distance,
    crop_iou,
    mask_crop,
    with_boundaries,
)


def blobs(seed: int, height: int, width: int) -> np.ndarray:
    """A few discs and bars, some over the image's edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, height / 2)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    mask[: rng.integers(0, height), rng.integers(0, width)] = True
    return mask & (rng.random((height, width)) > 0.001)


def on_canvas(crop: Crop, height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), bool)
    canvas[
        crop.top : crop.top + crop.pixels.shape[0], crop.left : crop.left + crop.pixels.shape[1]
    ] = crop.pixels
    return canvas


@pytest.mark.parametrize("size", [(40, 60), (200, 300), (480, 640)])
@pytest.mark.parametrize("seed", range(4))
def test_a_crop_holds_the_boundary_pixel_by_pixel(seed: int, size: tuple[int, int]) -> None:
    mask = blobs(seed, *size)
    expected = slow_boundary(mask, boundary_distance(*size))
    assert np.array_equal(on_canvas(boundary_crop(rle(mask)), *size), expected)
    assert expected.any()


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_holds_the_mask(seed: int) -> None:
    mask = blobs(seed, 70, 90)
    for made in (rle(mask), rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))):
        crop = mask_crop(made)
        assert np.array_equal(on_canvas(crop, 70, 90), mask)
        assert crop.pixels.any(0)[[0, -1]].all()  # no column too many
    for mask in (np.zeros((5, 7), bool), np.ones((5, 7), bool)):
        assert np.array_equal(on_canvas(mask_crop(rle(mask)), 5, 7), mask)


@settings(max_examples=60, deadline=None)
@given(
    arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()),
    st.integers(1, 4),
)
def test_any_small_mask(mask: np.ndarray, distance: int) -> None:
    assert np.array_equal(boundary(mask, distance), slow_boundary(mask, distance))


def test_the_distance_is_two_percent_of_the_diagonal_and_at_least_a_pixel() -> None:
    assert boundary_distance(480, 640) == 16
    assert boundary_distance(10, 10) == 1
    assert boundary_distance(1000, 1000) == round(0.02 * math.hypot(1000, 1000)) == 28


@pytest.mark.parametrize("seed", range(6))
def test_iou_of_crops_is_that_of_the_whole_masks(seed: int) -> None:
    masks = [blobs(seed + n, 90, 120) for n in (0, 100)]
    a, b = (slow_boundary(mask, boundary_distance(90, 120)) for mask in masks)
    found = crop_iou(*(boundary_crop(rle(mask)) for mask in masks))
    assert found == (a & b).sum() / (a | b).sum()


def test_apart_and_empty_masks_have_no_iou() -> None:
    far = [np.zeros((50, 50), bool) for _ in range(3)]
    far[0][:5, :5] = far[1][40:, 40:] = True
    crops = [boundary_crop(rle(mask)) for mask in far]
    assert (
        crop_iou(crops[0], crops[1])
        == crop_iou(crops[0], crops[2])
        == crop_iou(crops[2], crops[2])
        == 0
    )
    assert crop_iou(crops[0], crops[0]) == 1


def test_a_hollow_shape_is_not_a_filled_one_and_only_what_is_wanted_is_made() -> None:
    full = np.zeros((300, 300), bool)
    full[50:250, 50:250] = True
    moved = np.roll(full, 4, axis=1)
    iou = np.array([[1.0, 192 / 208], [192 / 208, 1.0]])
    wanted = np.array([[True, True], [False, True]])
    masks = [rle(full), rle(moved)]
    result = with_boundaries(iou, wanted, masks, masks)
    a, b = (slow_boundary(mask, 8) for mask in (full, moved))
    assert result.tolist() == [[1.0, (a & b).sum() / (a | b).sum()], [0.0, 1.0]]
    assert result[0, 1] < 0.7 < iou[0, 1]  # a move of 4 pixels, half of the distance
    thin = [(full & ~np.roll(full, 3, axis=0)) | np.roll(full, -300), full]
    assert (
        with_boundaries(np.ones((1, 1)) * 0.9, np.ones((1, 1), bool), [rle(thin[0])], [rle(full)])
        <= 0.9
    )


@pytest.mark.long
def test_of_many_large_detections_one_boundary_is_held_at_a_time() -> None:
    height, width = 3000, 4000  # 12 megapixels, of which each mask takes a quarter: 3 MB a boundary
    rows = [500, 1500, 1000]  # outside, inside and below, of a column
    counts = [
        1000 * height + rows[0],
        *([rows[1], rows[2] + rows[0]] * 1999),
        rows[1],
        rows[2] + 1000 * height,
    ]
    mask = rle_tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    count = 40
    tracemalloc.start()
    result = with_boundaries(np.ones((count, 1)), np.ones((count, 1), bool), [mask] * count, [mask])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.tolist() == [[1.0]] * count
    assert (
        peak < 100e6 < count * 1500 * 1999
    )  # the sums of one mask are 4 bytes a pixel, a few times
