"""Tiles cover an image, and the parts of an object in several tiles become one."""

import logging
from typing import Any

import numpy as np
import pytest
from colored import colors_of, detect_colors
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.tiles import (
    Tiling,
    detect_tiles,
    encode_runs,
    merge_tiles,
    shrink_mask,
    tile_runs,
    unite,
)

RED, ALSO_RED, BLUE = (1, 0, 200), (1, 200, 0), (2, 0, 200)  # two of one class, one of another


def encoded(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def tiled(image: np.ndarray, tile: int, overlap: float = 0.2, masks: bool = True) -> dict[str, Any]:
    """What `detect_colors` finds in tiles of `image`."""
    windows = Tiling(tile, overlap).windows(image.shape[:2])
    found = detect_colors([image[y : y + h, x : x + w] for y, x, h, w in windows])
    if not masks:
        found = [{key: value for key, value in one.items() if key != "masks"} for one in found]
    return merge_tiles(found, windows, image.shape[:2])


def disc(image: np.ndarray, center: tuple[int, int], radius: int, color: tuple[int, ...]) -> None:
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    image[(y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2] = color


def iou(one: dict[str, Any], other: dict[str, Any]) -> float:
    return float(coco_mask.iou([one], [other], [0])[0, 0])


def same_as_whole(found: dict[str, Any], image: np.ndarray) -> None:
    """As many objects as in the image as a whole, with masks of the same pixels."""
    (whole,) = detect_colors([image])
    assert len(found["scores"]) == len(whole["scores"])
    for mask, label in zip(whole["masks"], whole["labels"], strict=True):
        overlaps = [iou(mask, own) for own in found["masks"]]
        best = int(np.argmax(overlaps))
        assert overlaps[best] == 1
        assert found["labels"][best] == label


def test_a_plan_covers_the_image_evenly_with_tiles_of_one_size():
    windows = Tiling(1024, 0.2).windows((10_000, 2500))
    assert {window[2:] for window in windows} == {(1024, 1024)}
    rows, columns = sorted({w[0] for w in windows}), sorted({w[1] for w in windows})
    assert (rows[0], rows[-1], columns) == (0, 10_000 - 1024, [0, 738, 1476])
    assert windows == [(y, x, 1024, 1024) for y in rows for x in columns]
    assert min(1024 - np.diff(rows)) >= 0.2 * 1024
    assert len(rows) == 12


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), [(0, 0, 1, 1)]),
        ((1024, 1024), [(0, 0, 1024, 1024)]),
        ((300, 1025), [(0, 0, 300, 1024), (0, 1, 300, 1024)]),
    ],
)
def test_small_images_have_few_tiles(size: tuple[int, int], expected: list[Any]):
    assert Tiling(1024, 0.2).windows(size) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(32, 600), st.floats(0, 0.5))
def test_every_pixel_is_in_a_tile_and_neighbors_share_enough(side: int, tile: int, overlap: float):
    windows = Tiling(tile, overlap).windows((side, 1))
    begins, ends = np.array([w[0] for w in windows]), np.array([w[0] + w[2] for w in windows])
    assert begins[0] == 0
    assert ends[-1] == side
    assert (ends[:-1] - begins[1:] >= np.floor(overlap * tile) - 1).all()


def test_the_plan_of_900_megapixels_is_quick_and_one_of_more_than_32_bits_is_refused():
    assert len(Tiling(1024, 0.2).windows((30_000, 30_000))) == 37**2
    with pytest.raises(UserError, match=r"4294967296 x 1 pixels is too large .* 4294967295 pixels"):
        Tiling(1024).windows((1, 2**32))


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        (Tiling(31), "tile=31 must be a whole number, 32 or more"),
        (Tiling(20_000), "tile=20000"),
        (Tiling(64, 0.6), "overlap=0.6 must be a number from 0 to 0.5"),
        (Tiling(64, -0.1), "overlap=-0.1"),
    ],
)
def test_values_out_of_range(tiling: Tiling, message: str):
    with pytest.raises(UserError, match=message):
        tiling.check()


def test_an_object_that_four_tiles_cut_is_one_with_its_whole_mask():
    image = np.zeros((180, 180, 3), np.uint8)
    disc(image, (90, 90), 60, RED)
    image[90, 90] = 0  # a hole
    found = tiled(image, 100)
    same_as_whole(found, image)
    assert found["boxes"].tolist() == [[31, 31, 150, 150]]
    windows = Tiling(100).windows((180, 180))
    parts = detect_colors([image[y : y + h, x : x + w] for y, x, h, w in windows])
    assert [len(part["scores"]) for part in parts] == [1, 1, 1, 1]
    assert found["scores"] == max(part["scores"][0] for part in parts)


def test_two_touching_objects_of_one_class_stay_two():
    """Their border runs through the shared strips, along it and across it."""
    image = np.zeros((180, 180, 3), np.uint8)
    image[20:160, 20:90], image[20:160, 90:160] = RED, ALSO_RED
    same_as_whole(tiled(image, 100), image)
    same_as_whole(
        tiled(np.ascontiguousarray(image.transpose(1, 0, 2)), 100), image.transpose(1, 0, 2)
    )


def test_an_object_that_one_tile_sees_as_a_whole_is_there_once():
    """Between 80 and 100 both tiles see: cut by the left one, by the right one, by none."""
    for first, last in ((70, 95), (85, 110), (84, 96)):
        image = np.zeros((100, 180, 3), np.uint8)
        image[30:70, first:last] = RED
        same_as_whole(tiled(image, 100), image)


def test_objects_of_two_classes_are_not_merged():
    image = np.zeros((100, 180, 3), np.uint8)
    image[20:80, 30:150] = RED
    windows = Tiling(100).windows((100, 180))
    found = detect_colors([image[y : y + h, x : x + w] for y, x, h, w in windows])
    found[1]["labels"] = found[1]["labels"] + 1
    assert sorted(merge_tiles(found, windows, (100, 180))["labels"].tolist()) == [1, 2]


def test_an_object_with_two_ends_in_the_next_tile_is_one():
    image = np.zeros((100, 180, 3), np.uint8)
    image[10:90, 10:60], image[10:30, 60:170], image[70:90, 60:170] = RED, RED, RED
    windows = Tiling(100).windows((100, 180))
    found = [detect_colors([image[y : y + h, x : x + w]])[0] for y, x, h, w in windows]
    upper, lower = image[:, 80:].copy(), image[:, 80:].copy()
    upper[50:], lower[:50] = 0, 0
    ends = detect_colors([upper, lower])
    found[1] = {
        key: [*ends[0][key], *ends[1][key]]
        if key == "masks"
        else np.concatenate([ends[0][key], ends[1][key]])
        for key in ends[0]
    }
    same_as_whole(merge_tiles(found, windows, (100, 180)), image)


def test_views_that_differ_a_little_are_one_with_the_better_mask():
    """Whole in both tiles; the second one saw it a pixel larger, with a higher score."""
    image = np.zeros((100, 180, 3), np.uint8)
    image[30:70, 85:95] = RED
    windows = Tiling(100).windows((100, 180))
    found = detect_colors([image[y : y + h, x : x + w] for y, x, h, w in windows])
    larger = image[:, 80:].copy()
    larger[29:71, 5:15] = RED
    found[1] = detect_colors([larger])[0]
    merged = merge_tiles(found, windows, (100, 180))
    assert merged["boxes"].tolist() == [[85, 29, 95, 71]]
    assert merged["scores"].tolist() == found[1]["scores"].tolist()


def test_a_neighbor_that_reaches_a_few_pixels_into_the_strip_stays():
    """The left one ends 2 pixels inside of the strip, over the right one, which both tiles cut."""
    windows = [(0, 0, 100, 100), (0, 80, 100, 100), (0, 160, 100, 100)]
    left, right = (np.zeros((100, 260), bool) for _ in range(2))
    left[20:80, 0:82], right[20:80, 80:250] = True, True
    found = []
    for _, x, _, w in windows:
        seen = [m[:, x : x + w] for m in (left, right) if m[:, x : x + w].sum() > 200]
        image = np.zeros((100, w, 3), np.uint8)
        parts = []
        for part in seen:
            image[:] = 0
            image[part] = RED
            parts.append(detect_colors([image])[0])
        found.append(
            {
                key: [mask for part in parts for mask in part[key]]
                if key == "masks"
                else np.concatenate([part[key] for part in parts])
                for key in parts[0]
            }
        )
    merged = merge_tiles(found, windows, (100, 260))
    areas = sorted(coco_mask.area(merged["masks"]).tolist())
    assert areas == [left.sum(), right.sum()]


def test_boxes_alone_are_merged_as_boxes():
    image = np.zeros((180, 180, 3), np.uint8)
    image[30:150, 40:160], image[160:175, 5:25] = RED, BLUE
    found = tiled(image, 100, masks=False)
    assert found["boxes"].tolist() == [[40, 30, 160, 150], [5, 160, 25, 175]]
    assert "masks" not in found


def test_nothing_in_any_tile():
    found = tiled(np.zeros((180, 180, 3), np.uint8), 100)
    assert found["boxes"].shape == (0, 4)
    assert found["masks"] == []


@pytest.mark.parametrize("overlap", [0.2, 0.5])
def test_many_random_objects_are_those_of_the_whole_image(overlap: float):
    rng = np.random.default_rng(0)
    image = np.zeros((400, 500, 3), np.uint8)
    for number in range(25):
        center = int(rng.integers(0, 400)), int(rng.integers(0, 500))
        disc(image, center, int(rng.integers(3, 60)), (number % 2 + 1, 10 * number + 5, 9))
    # an object in several parts may be one in the whole image and two in a tile: leave these out
    for color in colors_of(image)[1:]:
        mask = (image == color).all(2)
        if mask.sum() < 60:
            image[mask] = 0
    found = tiled(image, 150, overlap)
    (whole,) = detect_colors([image])
    matched = [max(iou(mask, own) for own in found["masks"]) for mask in whole["masks"]]
    assert np.mean(np.array(matched) >= 0.95) >= 0.95


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
def test_runs_of_a_tile_are_its_pixels_in_the_image(seed: int, height: int, width: int):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    y, x = int(rng.integers(0, 4)), int(rng.integers(0, 4))
    full = np.zeros((y + height + int(rng.integers(0, 3)), x + width + int(rng.integers(0, 3))))
    full[y : y + height, x : x + width] = mask
    runs = tile_runs(encoded(mask), (y, x, height, width), full.shape[0])
    rle = encode_runs(unite([runs]), full.shape)
    assert rle == encoded(full)


def test_a_mask_of_a_smaller_picture_has_the_pixels_at_its_centers():
    mask = np.zeros((90, 120), bool)
    disc_image = np.zeros((90, 120, 3), np.uint8)
    disc(disc_image, (40, 70), 25, RED)
    mask = disc_image.any(2)
    small = shrink_mask(encoded(mask), np.array([45, 15, 95, 65]), (30, 40))
    assert np.array_equal(coco_mask.decode(small), mask[1::3, 1::3])


def test_tiles_go_in_batches_and_a_long_image_says_how_far_it_is(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "maskrcnn_lit")
    image = np.zeros((64, 64 * 40, 3), np.uint8)
    image[10:50, 100:140] = RED
    windows = Tiling(64, 0.0).windows(image.shape[:2])
    batches = []

    def detect(images: list[np.ndarray]) -> list[dict[str, Any]]:
        batches.append(len(images))
        return detect_colors(images)

    pixels = ((i, image[y : y + h, x : x + w]) for i, (y, x, h, w) in enumerate(windows))
    found = detect_tiles(detect, pixels, windows, image.shape[:2], batch_size=16, name="long.png")
    assert batches == [16, 16, 8]
    assert caplog.messages == ["long.png: 16 of 40 tiles", "long.png: 32 of 40 tiles"]
    assert found["boxes"][:, 1::2].tolist() == [[10, 50]] * len(found["scores"])
