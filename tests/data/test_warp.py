"""`augment.transforms`: image, boxes and masks follow one affine map."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from maskrcnn_lit.data.warp import (
    MAX_PERSPECTIVE,
    Blur,
    Noise,
    Perspective,
    QuarterTurns,
    Rotation,
    Transform,
    VerticalFlip,
    draw_transforms,
    homography,
    map_points,
    warp_bitmap,
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
    assert not shifted[:, :, :2].any()
    assert not shifted[:, -1].any()


def test_maps_are_joined_in_order_and_pixels_come_after():
    image, matrix = draw_transforms(
        picture(), [Inverted(), Turned(), Moved(), Turned()], np.random.default_rng(3)
    )
    x, y = np.random.default_rng(3).integers(-3, 4, 2)
    by_hand = np.eye(3)
    for step in (QUARTER, np.array([[1.0, 0, x], [0, 1.0, y]]), QUARTER):
        by_hand = np.vstack([step, [0, 0, 1]]) @ by_hand
    assert matrix is not None
    assert np.allclose(matrix, by_hand[:2])
    assert torch.equal(image, 255 - warp_image(picture(), by_hand[:2]))


def test_without_transforms_nothing_is_drawn():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    image = picture()
    assert draw_transforms(image, [], generator) == (image, None)
    assert generator.bit_generator.state == before


def test_pixels_alone_move_nothing():
    image, matrix = draw_transforms(picture(), [Inverted()], np.random.default_rng(0))
    assert matrix is None
    assert torch.equal(image, 255 - picture())


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
    assert not moved.any()
    assert (places[:, 2:] - places[:, :2] == 0).all()


@pytest.mark.parametrize(
    ("matrix", "fault"),
    [
        (np.eye(4), "2 x 3 or 3 x 3"),
        (np.full((2, 3), np.nan), "2 x 3"),
        (np.zeros((2, 3)), "no inverse"),
        (np.array([[1.0, 0, 0], [0, 1, 0], [-1 / SIZE, 0, 1]]), "to infinity"),
    ],
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
    assert matrix is None
    assert torch.equal(unchanged, picture())


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
    assert np.allclose(places, [[2, SIZE - 6, 10, SIZE - 4]])
    assert moved.all()


GEOMETRY: dict[str, tuple[Transform, ...]] = {
    "vertical flip": (VerticalFlip(1.0),),
    "rot90": (QuarterTurns(1.0),),
    "rotation": (Rotation(180.0),),
    "perspective": (Perspective(0.2),),
    "all": (VerticalFlip(0.5), QuarterTurns(0.75), Perspective(0.2), Rotation(180.0)),
}


def raster(points: NDArray[np.float64], side: int, finer: int = 1) -> NDArray[np.bool_]:
    """The pixels of a side x side image, each divided into finer x finer, whose centers are in a
    polygon (P 2: x, y), by the even-odd rule.
    """
    steps = (np.arange(side * finer) + 0.5) / finer
    x, y = np.meshgrid(steps, steps)
    inside = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, 0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def outline_distance(points: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The distance of each pixel's center from the outline of a polygon."""
    centers = np.stack(np.meshgrid(*[np.arange(side) + 0.5] * 2), -1)
    nearest = np.full((side, side), np.inf)
    for begin, end in zip(points, np.roll(points, -1, 0), strict=True):
        along = ((centers - begin) @ (end - begin) / ((end - begin) ** 2).sum()).clip(0, 1)
        gap = np.linalg.norm(centers - begin - along[..., None] * (end - begin), axis=-1)
        nearest = np.minimum(nearest, gap)
    return nearest


L_POINTS = np.array([[30.0, 20], [44, 20], [44, 60], [70, 60], [70, 80], [30, 80]])


@pytest.mark.parametrize("name", GEOMETRY)
def test_masks_are_the_raster_of_the_moved_polygon_up_to_a_cell(name: str):
    """The bound: pixels differ only where their center is nearer to the moved outline than one cell
    of the crop, before plus after; without these the IoU is 1.0. A cell is 1/112 of the box.
    """
    box = np.array([[30.0, 20, 70, 80]])
    cells = (L_POINTS - box[0, :2]) * 112 / (box[0, 2:] - box[0, :2])
    crops = raster(cells, 112)[None].astype(np.uint8)
    ious = []
    for seed in range(12):
        image = torch.zeros(3, 128, 128, dtype=torch.uint8)
        transforms = GEOMETRY[name]
        _, matrix = draw_transforms(image, transforms, np.random.default_rng(seed))
        if matrix is None:
            continue
        moved, places = warp_crops(crops, box, matrix, (128, 128))
        points = map_points(L_POINTS, matrix)
        ours, truth = painted(moved[0], places[0], 128), raster(points, 128)
        old = np.linalg.norm((box[0, 2:] - box[0, :2]) / 112)
        new = np.linalg.norm((places[0, 2:] - places[0, :2]) / 112)
        stretched = np.linalg.norm(
            map_points(L_POINTS + old / 2, matrix) - map_points(L_POINTS - old / 2, matrix), axis=1
        ).max()
        bound = max(stretched, old) + new
        assert bound < 4
        sure = outline_distance(points, 128) > bound
        assert np.array_equal(ours[sure], truth[sure])
        ious.append((ours & truth).sum() / max((ours | truth).sum(), 1))
        low, high = points.min(0), points.max(0)
        assert np.abs(places[0] - np.r_[low, high]).max() <= bound
    assert len(ious) > 5
    assert np.mean(ious) > 0.975


@pytest.mark.parametrize("name", GEOMETRY)
def test_pixels_masks_and_void_move_alike(name: str):
    box = np.array([[30.0, 20, 70, 80]])
    cells = (L_POINTS - box[0, :2]) * 112 / (box[0, 2:] - box[0, :2])
    crops = raster(cells, 112)[None].astype(np.uint8)
    white = torch.from_numpy(raster(L_POINTS, 128)).byte()
    for seed in range(6):
        image, matrix = draw_transforms(
            (255 * white).expand(3, -1, -1), GEOMETRY[name], np.random.default_rng(seed)
        )
        if matrix is None:
            continue
        seen = image[0].numpy() > 127
        moved, places = warp_crops(crops, box, matrix, (128, 128))
        mask = painted(moved[0], places[0], 128)
        assert (mask & seen).sum() / (mask | seen).sum() > 0.95
        void = warp_bitmap(white.numpy(), matrix) > 0
        assert (void & seen).sum() / (void | seen).sum() > 0.95


def test_what_lies_outside_of_the_image_has_no_mask_after_a_turn():
    """Half of the object is left of the image; after half a turn it would be inside."""
    crops = np.ones((1, 20, 20), np.uint8)
    box = np.array([[-20.0, 40, 20, 80]])
    angle = np.deg2rad(45)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([turn, [50, 50] - turn @ [50, 50]])
    image = warp_image(torch.full((3, 100, 100), 255, dtype=torch.uint8), matrix)[0].numpy()
    moved, places = warp_crops(crops, box, matrix, (100, 100))
    mask = painted(moved[0], places[0], 100)
    assert mask.sum() > 300
    assert (mask & (image < 100)).sum() < 0.05 * mask.sum()
    without, places = warp_crops(crops, box, matrix)
    assert (painted(without[0], places[0], 100) & (image < 100)).sum() > 100


def test_a_homography_sends_four_points_to_four():
    points = np.array([[0.0, 0], [10, 0], [10, 8], [0, 8]])
    moved = points + np.array([[1, 1], [-1, 0.5], [0.3, -1], [0, 0.7]])
    assert np.allclose(map_points(points, homography(points, moved)), moved)
    scaled = -2 * homography(points, moved)  # the same map

    class Scaled(Transform):
        def geometry(self, generator: np.random.Generator, size: tuple[int, int]) -> Any:
            return scaled

    _, matrix = draw_transforms(
        torch.zeros(3, 8, 10, dtype=torch.uint8), [Scaled()], np.random.default_rng(0)
    )
    assert matrix is not None
    assert np.allclose(map_points(points, matrix), moved)


def test_angles_and_corners_cover_their_range():
    turns = [Rotation(30).geometry(np.random.default_rng(k), (64, 64)) for k in range(200)]
    angles = np.rad2deg([np.arctan2(turn[1, 0], turn[0, 0]) for turn in turns if turn is not None])
    assert -30 <= angles.min() < -27
    assert 27 < angles.max() <= 30
    corners = np.array([[0.0, 0], [80, 0], [80, 40], [0, 40]])
    shifts = []
    for k in range(200):
        matrix = Perspective(0.1).geometry(np.random.default_rng(k), (40, 80))
        assert matrix is not None
        shifts.append((map_points(corners, matrix) - corners) / [80, 40])
    assert 0.098 < np.abs(shifts).max() <= 0.1 + 1e-9
    assert abs(np.mean(shifts)) < 0.01


def test_a_perspective_never_sends_the_image_to_infinity():
    for k in range(300):
        draw_transforms(
            torch.zeros(3, 20, 30, dtype=torch.uint8),
            [Perspective(MAX_PERSPECTIVE), Rotation(180)],
            np.random.default_rng(k),
        )


def test_blur_keeps_the_mean_and_spreads_a_point():
    image = torch.zeros(3, 41, 41, dtype=torch.uint8)
    image[:, 10:31, 10:31] = 200
    for seed in range(20):
        deviation = np.random.default_rng(seed).uniform(0, 3)
        blurred = Blur(3.0).pixels(np.random.default_rng(seed), image)
        if deviation < 1e-3:
            continue
        assert blurred is not None
        expected = v2.functional.gaussian_blur(
            image, [2 * int(np.ceil(3 * deviation)) + 1] * 2, [deviation] * 2
        )
        assert (blurred.int() - expected.int()).abs().max() <= 1
        assert abs(blurred.float().mean() - image.float().mean()) < 0.5
    tiny = torch.zeros(3, 1, 5, dtype=torch.uint8)
    assert Blur(3.0).pixels(np.random.default_rng(0), tiny) is None


def test_noise_has_its_deviation_and_stays_in_range():
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    deviations = []
    for seed in range(30):
        noisy = Noise(0.1).pixels(np.random.default_rng(seed), image)
        assert noisy is not None
        assert noisy.dtype == torch.uint8
        expected = 255 * np.random.default_rng(seed).uniform(0, 0.1)
        assert float(noisy.float().std()) == pytest.approx(expected, abs=0.4)
        assert abs(float(noisy.float().mean()) - 128) < 1
        deviations.append(expected)
    assert max(deviations) > 20
    dark = Noise(1.0).pixels(np.random.default_rng(1), torch.zeros_like(image))
    assert dark is not None
    assert 0.4 < float((dark == 0).float().mean()) < 0.6
