"""`augment.transforms`: image, boxes and masks follow one affine map."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.warp import (
    QuarterTurns,
    Transform,
    VerticalFlip,
    draw_transforms,
    warp_crops,
    warp_image,
)

SIZE = 16
QUARTER = np.array([[0.0, -1.0, SIZE], [1.0, 0.0, 0.0]])  # x, y -> SIZE - y, x: clockwise on screen


class Moved(Transform):
    """By a whole number of pixels, drawn."""

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        x, y = generator.integers(-3, 4, 2)
        return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


class Turned(Transform):
    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        return QUARTER


class Inverted(Transform):
    def pixels(self, generator: np.random.Generator, image: Tensor) -> Tensor | None:
        return 255 - image


def picture() -> Tensor:
    return torch.randint(256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).byte()


def test_a_quarter_turn_is_exact():
    assert torch.equal(warp_image(picture(), QUARTER), picture().rot90(-1, (1, 2)))


def test_a_shift_brings_in_black():
    shifted = warp_image(picture(), np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))
    assert torch.equal(shifted[:, : SIZE - 1, 2:], picture()[:, 1:, : SIZE - 2])
    assert not shifted[:, :, :2].any() and not shifted[:, -1].any()


def test_maps_are_joined_in_order_and_pixels_come_after():
    image, matrix = draw_transforms(
        picture(), [Inverted(), Turned(), Moved(), Turned()], np.random.default_rng(3)
    )
    x, y = np.random.default_rng(3).integers(-3, 4, 2)
    by_hand = np.eye(3)
    for step in (QUARTER, np.array([[1.0, 0, x], [0, 1.0, y]]), QUARTER):
        by_hand = np.vstack([step, [0, 0, 1]]) @ by_hand
    assert matrix is not None and np.allclose(matrix, by_hand[:2])
    assert torch.equal(image, 255 - warp_image(picture(), by_hand[:2]))


def test_without_transforms_nothing_is_drawn():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    image = picture()
    assert draw_transforms(image, [], generator) == (image, None)
    assert generator.bit_generator.state == before


def test_pixels_alone_move_nothing():
    image, matrix = draw_transforms(picture(), [Inverted()], np.random.default_rng(0))
    assert matrix is None and torch.equal(image, 255 - picture())


def painted(crop: NDArray[np.uint8], box: NDArray[np.float64], side: int) -> NDArray[np.bool_]:
    """The mask of a crop on a side x side image, at pixel centers."""
    centers = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), -1)
    cells = np.floor((centers - box[:2]) / (box[2:] - box[:2]) * crop.shape[0]).astype(int)
    inside = ((cells >= 0) & (cells < crop.shape[0])).all(-1)
    x, y = (np.where(inside, cells[..., axis], 0) for axis in (0, 1))
    return (crop[y, x] > 0) & inside


def l_shape() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """An L of 112 x 112 cells over a box of 40 x 60 pixels."""
    crop = np.zeros((1, 112, 112), np.uint8)
    crop[0, :, :36] = crop[0, 80:, :] = 1
    return crop, np.array([[30.0, 20.0, 70.0, 80.0]])


def test_the_mask_of_a_quarter_turn_is_turned_and_its_box_is_exact():
    crops, boxes = l_shape()
    moved, places = warp_crops(crops, boxes, np.array([[0.0, -1.0, 128.0], [1.0, 0.0, 0.0]]))
    assert np.allclose(places, [[48, 30, 108, 70]])
    assert np.array_equal(moved[0], np.rot90(crops[0], -1))


@pytest.mark.parametrize("degrees", [10.0, -35.0, 90.0, 200.0])
def test_masks_turn_as_the_image_does_and_boxes_are_tight(degrees: float):
    crops, boxes = l_shape()
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * 0.9
    matrix = np.column_stack([turn, [64, 64] - turn @ [50, 50]])
    moved, places = warp_crops(crops, boxes, matrix)
    mask = torch.from_numpy(painted(crops[0], boxes[0], 128)).byte() * 255
    expected = warp_image(mask.expand(3, -1, -1), matrix)[0].numpy() > 127
    ours = painted(moved[0], places[0], 128)
    assert (ours & expected).sum() / (ours | expected).sum() > 0.93
    ys, xs = np.nonzero(expected)
    tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert np.abs(places[0] - tight).max() < 1.5


def test_a_mask_without_a_pixel_keeps_none():
    moved, places = warp_crops(np.zeros((1, 8, 8), np.uint8), np.array([[1.0, 1, 5, 5]]), QUARTER)
    assert not moved.any() and (places[:, 2:] - places[:, :2] == 0).all()


@pytest.mark.parametrize(
    ("matrix", "fault"),
    [(np.eye(3), "2 x 3"), (np.full((2, 3), np.nan), "2 x 3"), (np.zeros((2, 3)), "no inverse")],
)
def test_a_map_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, matrix: NDArray[np.float64], fault: str
):
    monkeypatch.setattr(Turned, "geometry", lambda *args: matrix)
    with pytest.raises(ValueError, match=f"Turned.geometry .*{fault}"):
        draw_transforms(picture(), [Turned()], np.random.default_rng(0))


def test_pixels_of_another_kind_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Inverted, "pixels", lambda self, generator, image: image.float())
    with pytest.raises(ValueError, match=r"Inverted\.pixels gave torch\.float32"):
        draw_transforms(picture(), [Inverted()], np.random.default_rng(0))


def test_a_transform_that_overrides_nothing_changes_nothing():
    assert Transform().geometry(np.random.default_rng(0), (4, 4)) is None
    assert Transform().pixels(np.random.default_rng(0), picture()) is None


def test_a_vertical_flip_is_exact_and_takes_boxes_along():
    image, matrix = draw_transforms(picture(), [VerticalFlip(1.0)], np.random.default_rng(0))
    assert torch.equal(image, picture().flip(1))
    assert matrix is not None
    assert np.allclose(matrix @ [2, 3, 1], [2, SIZE - 3])  # x, y, 1
    unchanged, matrix = draw_transforms(picture(), [VerticalFlip(0.0)], np.random.default_rng(0))
    assert matrix is None and torch.equal(unchanged, picture())


def test_quarter_turns_are_exact_and_each_as_likely():
    counts = {1: 0, 2: 0, 3: 0, 0: 0}
    for seed in range(400):
        image, _ = draw_transforms(picture(), [QuarterTurns(0.75)], np.random.default_rng(seed))
        (turns,) = (n for n in counts if torch.equal(image, picture().rot90(n, (1, 2))))
        counts[turns] += 1
    assert all(70 < count < 130 for count in counts.values()), counts


def test_an_image_that_is_not_square_turns_by_180_degrees():
    wide = picture()[:, : SIZE // 2]
    for seed in range(9):
        image, _ = draw_transforms(wide, [QuarterTurns(1.0)], np.random.default_rng(seed))
        assert torch.equal(image, wide.rot90(2, (1, 2)))


def test_masks_turn_with_the_image():
    crops = np.zeros((1, 8, 8), np.uint8)
    crops[0, :2, :] = 1  # the upper quarter of its box
    boxes = np.array([[2.0, 4, 10, 12]])
    matrix = VerticalFlip(1.0).geometry(np.random.default_rng(0), (SIZE, SIZE))
    assert matrix is not None
    moved, places = warp_crops(crops, boxes, matrix)
    assert np.allclose(places, [[2, SIZE - 6, 10, SIZE - 4]]) and moved.all()
