"""Numbers, shapes and paint of the synthetic set."""

import math

import numpy as np
import pytest

from maskrcnn_lit.data.datasets import shape_drawing
from maskrcnn_lit.data.datasets.shape_annotation import outlines
from maskrcnn_lit.data.datasets.shape_drawing import (
    FULL,
    MUTED,
    OUTLINES,
    STEPS,
    VIVID,
    Dice,
    Stamp,
)


def centerd(name: str, radius: int, turn: int = 0, size: int = 128) -> Stamp:
    middle = size * STEPS // 2
    return shape_drawing.stamp(
        name, size=size, x=middle, y=middle, radius=radius * STEPS, turn=turn
    )


def area(shape: Stamp) -> float:
    return float(shape.cover.sum()) / FULL


def test_dice_throw_the_same_numbers_for_ever() -> None:
    dice = Dice(0, 1, 2)
    assert [dice.number(1, 6) for _ in range(8)] == [6, 2, 6, 1, 2, 2, 2, 2]
    assert dice.numbers(-5, 5, 2, 3).tolist() == [[-4, 1, 2], [2, 2, -3]]


def test_one_number_and_many_come_from_one_stream() -> None:
    dice = Dice(7)
    assert [dice.number(0, 99) for _ in range(50)] == Dice(7).numbers(0, 99, 50).tolist()


def test_dice_cover_their_range_evenly() -> None:
    faces, counts = np.unique(Dice(5).numbers(1, 6, 60000), return_counts=True)
    assert faces.tolist() == [1, 2, 3, 4, 5, 6]
    assert (abs(counts - 10000) < 400).all()


@pytest.mark.parametrize("turn", [-64, -37, 0, 11, 64])
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("circle", math.pi),
        ("ring", math.pi * 0.75),
        ("rectangle", 4 * 920 * 500 / 1024**2),
        ("cross", 4 * 360 / 1024 * (2 * 960 - 360) / 1024),
        ("triangle", 3 * math.sqrt(3) * (560 / 1024) ** 2),
        ("star", 1.1226 * (360 / 1024 / math.cos(math.radians(72))) ** 2),
    ],
)
def test_areas_are_those_of_geometry_however_turned(name: str, share: float, turn: int) -> None:
    radius = 40
    assert area(centerd(name, radius, turn)) == pytest.approx(share * radius**2, rel=0.02)


@pytest.mark.parametrize("name", list(OUTLINES))
def test_shapes_are_cut_at_the_border_and_nowhere_else(name: str) -> None:
    whole = centerd(name, 30, turn=20)
    assert not whole.cover[[0, -1]].any()
    assert not whole.cover[:, [0, -1]].any()
    corner = shape_drawing.stamp(name, size=128, x=0, y=0, radius=30 * STEPS, turn=20)
    quarter = whole.mask_of(128)[64:, 64:]
    np.testing.assert_array_equal(corner.mask_of(128)[:64, :64], quarter)


def test_a_ring_has_a_hole_and_no_other_shape_has() -> None:
    loops = {name: len(outlines(centerd(name, 12).mask_of(128))) for name in OUTLINES}
    assert loops == {name: 2 if name == "ring" else 1 for name in OUTLINES}


def test_a_quarter_turn_turns_the_pixels() -> None:
    upright, turned = (centerd("triangle", 30, turn).mask_of(128) for turn in (0, 64))
    assert not np.array_equal(upright, turned)
    different = np.rot90(upright) != turned
    assert min(different.sum(), (np.rot90(upright, -1) != turned).sum()) < 0.02 * upright.sum()


def test_paint_changes_what_the_shape_covers_and_nothing_else() -> None:
    picture = np.full((128, 128, 3), 100, np.int32)
    shape = centerd("star", 40)
    shape_drawing.paint(picture, shape, Dice(1), (250, 10, 10))
    covered = np.zeros((128, 128), np.int32)
    covered[shape.part] = shape.cover
    assert (picture[covered == 0] == 100).all()
    assert (picture[covered == FULL] != 100).any(-1).all()
    assert picture.min() >= 0
    assert picture.max() <= 255


def test_backgrounds_are_textured_and_differ() -> None:
    pictures = [shape_drawing.background(Dice(k), 96) for k in range(12)]
    assert all(p.shape == (96, 96, 3) and p.min() >= 0 and p.max() <= 255 for p in pictures)
    assert all(p.std(axis=(0, 1)).max() > 4 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 12


def test_every_background_leaves_vivid_colors_that_stand_out() -> None:
    for muted in MUTED:
        assert (
            sum(sum(abs(a - b) for a, b in zip(muted, vivid, strict=True)) > 200 for vivid in VIVID)
            >= 5
        )
