import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv
from wrong_values import SHARE, cases, positive_list

from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.data.transforms import (
    Augment,
    CopyPaste,
    color_jitter,
    full_view,
    map_boxes,
    read_augment,
    resample,
    sample_transform,
)
from maskrcnn_lit.data.warp import (
    Blur,
    Noise,
    Perspective,
    QuarterTurns,
    Rotation,
    Transform,
    VerticalFlip,
)
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.images import decode

STRONG = Augment(flip=0.5, scale=(0.4, 2.0), crop=0.5)
sides = st.integers(20, 700)
sizes = st.one_of(st.integers(32, 300), st.tuples(st.integers(64, 200), st.integers(200, 400)))


def view_of(
    height: int, width: int, size: ImageSize, augment: Augment | None = None, seed: int = 0
):
    return sample_transform(height, width, size, augment, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (480, 640, (800, 1333), (800, 1067)),  # the numbers of the paper
        (640, 480, (800, 1333), (1067, 800)),
        (300, 1000, (800, 1333), (400, 1333)),  # the long side decides
        (480, 640, 128, (96, 128)),
        (50, 40, 128, (128, 102)),
        (1, 4000, 128, (1, 128)),
    ],
)
def test_sizes_without_augmentation(
    height: int, width: int, size: ImageSize, expected: tuple[int, int]
):
    view = view_of(height, width, size)
    assert view.size == expected
    assert view.window == (0, 0, height, width)
    assert not view.flip
    assert np.allclose(view.matrix, [[expected[1] / width, 0, 0], [0, expected[0] / height, 0]])


@given(sides, sides, st.one_of(sizes, st.just((800, 1333))))
@settings(max_examples=300, deadline=None)
def test_without_augmentation_no_row_is_cut(height: int, width: int, size: ImageSize):
    view = full_view(height, width, size)
    assert view.window == (0, 0, height, width)
    assert view.size == tuple(fitted_sizes(np.array([[height, width]]), size)[0])


@given(sides, sides, sizes, st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_a_view_stays_inside_the_image_and_the_size(
    height: int, width: int, size: ImageSize, seed: int
):
    view = view_of(height, width, size, STRONG, seed)
    y, x, tall, wide = view.window
    assert min(y, x) >= 0
    assert y + tall <= height
    assert x + wide <= width
    assert min(tall, wide) >= 1
    assert y % 8 == x % 8 == 0
    room = (size, size) if isinstance(size, int) else size
    assert max(view.size) <= room[1] + 1
    assert min(view.size) <= room[0] + 1
    assert min(view.size) >= 1
    window = np.array([[x, y, x + wide, y + tall]], float)
    assert np.allclose(map_boxes(window, view.matrix), [[0, 0, view.size[1], view.size[0]]])


def test_what_is_drawn_covers_its_range():
    views = [
        view_of(400, 600, 200, Augment(flip=0.5, scale=(0.5, 1.5), crop=1.0), seed)
        for seed in range(300)
    ]
    factors = np.array([view.matrix[1, 1] for view in views]) / (200 / 600)
    assert 0.5 <= factors.min() < 0.55
    assert 1.45 < factors.max() <= 1.52
    assert 110 < sum(view.flip for view in views) < 190
    assert all(
        view.window == (0, 0, 400, 600)
        for view, factor in zip(views, factors, strict=True)
        if factor < 0.98
    )
    assert (
        len({view.window[:2] for view, factor in zip(views, factors, strict=True) if factor > 1.3})
        > 10
    )
    shares = [
        view_of(400, 600, 200, Augment(crop=0.5), seed).window[2] / 400 for seed in range(300)
    ]
    assert 0.5 <= min(shares) < 0.52
    assert 0.98 < max(shares) <= 1
    assert 0.7 < np.mean(shares) < 0.8


def test_boxes_go_with_the_map():
    matrix = np.array([[-2.0, 0, 100], [0, 0.5, 3]])
    assert map_boxes(np.array([[10.0, 4, 30, 8]]), matrix).tolist() == [[40, 5, 80, 7]]


@pytest.mark.parametrize("seed", range(6))
def test_pixels_boxes_and_map_agree(seed: int):
    """A white rectangle on black lies, after any view, where the map sends its box: to half a
    pixel.
    """
    pixels = np.zeros((203, 301, 3), np.uint8)
    pixels[90:130, 130:200] = 255
    view = view_of(203, 301, 160, Augment(flip=0.5, scale=(0.5, 1.2), crop=0.9), seed)
    image = resample(pixels, 1, view).float().mean(0) / 255
    x1, y1, x2, y2 = map_boxes(np.array([[130.0, 90, 200, 130]]), view.matrix)[0]
    rows, columns = image.amax(1), image.amax(0)
    found = [float((torch.arange(len(line)) * (line > 0.5)).amax()) + 1 for line in (columns, rows)]
    assert found == pytest.approx([min(x2, view.size[1]), min(y2, view.size[0])], abs=0.75)
    assert float(image.sum()) == pytest.approx(
        (min(x2, view.size[1]) - max(x1, 0)) * (min(y2, view.size[0]) - max(y1, 0)), rel=0.02
    )


@pytest.mark.parametrize("size", [(800, 1333), 256, 100])
def test_resampling_is_torchvisions_of_the_window(test_data: Path, size: ImageSize):
    file = sorted((test_data / "coco_mini/val2017").glob("*.jpg"))[3]
    pixels, _ = decode(file.read_bytes())
    for seed in range(3):
        view = view_of(*pixels.shape[:2], size, STRONG, seed)
        y, x, height, width = view.window
        part = torch.from_numpy(pixels).permute(2, 0, 1)[:, y : y + height, x : x + width]
        expected = tv.resize(part.float(), list(view.size), antialias=True)
        expected = expected.flip(-1) if view.flip else expected
        image = resample(pixels, 1, view)
        assert image.dtype == torch.uint8
        assert tuple(image.shape[1:]) == view.size
        assert (image.float() - expected).abs().max() <= 1.5  # 8-bit weights and roundings


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_pixels_keep_their_place(factor: int):
    """A ramp over a side that the factor does not divide: reduced first or not, each pixel shows
    the same place.
    """
    height, width = 8 * 37 + 3, 8 * 41 + 5
    ramp = np.repeat(np.linspace(0, 255, width)[None], height, 0)
    padded = np.pad(ramp, ((0, -height % factor), (0, -width % factor)), "edge")
    small = padded.reshape(padded.shape[0] // factor, factor, -1, factor).mean((1, 3))
    for seed in range(4):
        view = view_of(height, width, 40, Augment(flip=0.5, scale=(0.5, 1.1), crop=0.8), seed)
        images = [
            resample(
                np.repeat(values[..., None], 3, 2).round().astype(np.uint8), reduced, view
            ).float()
            for values, reduced in ((ramp, 1), (small, factor))
        ]
        inner = [
            image[:, :, 2:-2] for image in images
        ]  # at the edges the two see different neighbors
        assert images[0].shape == images[1].shape
        assert (inner[0] - inner[1]).abs().max() <= 3


def test_colors_are_those_of_torchvision():
    image = torch.randint(60, 190, (3, 12, 17), dtype=torch.uint8)
    augment = Augment(brightness=0.2, contrast=0.3, saturation=0.4)
    brightness, contrast, saturation = 1 + np.array([0.2, 0.3, 0.4]) * np.random.default_rng(
        1
    ).uniform(-1, 1, 3)
    ours = color_jitter(image, augment, np.random.default_rng(1))
    theirs = tv.adjust_saturation(
        tv.adjust_contrast(tv.adjust_brightness(image / 255, brightness), contrast), saturation
    )
    assert (ours.float() - theirs * 255).abs().max() < 1
    assert isinstance(v2.ColorJitter(), torch.nn.Module)
    assert not torch.equal(ours, image)


def test_colors_stay_when_nothing_is_asked_for():
    image = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8)
    rng = np.random.default_rng(0)
    assert color_jitter(image, Augment(flip=1.0), rng) is image
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"flips": 0.5}, "augment.flips is unknown: use flip, scale"),
        ({"flip": 2}, "augment.flip=2 must be a number from 0 to 1"),
        (
            {"scale": [1.2, 0.8]},
            "augment.scale=[1.2, 0.8] must be [low, high] with low at most high",
        ),
        ({"crop": 0}, "augment.crop=0 must be a number from 0.01 to 1"),
        ({"saturation": -1}, "augment.saturation=-1 must be a number from 0 to 1"),
        ({"scale": 1.5}, "augment.scale=1.5 must be a list of 2 numbers from 0.01 to 4"),
        ({"flip": "often"}, "augment.flip=often must be a number"),
        ({1: 2}, "augment.1 is unknown"),
        ({"copy_paste": 0.5}, "augment.copy_paste=0.5 must have values for p, occlude, visible"),
        ({"copy_paste": {"q": 1}}, "augment.copy_paste.q is unknown: use p, occlude, visible"),
        ({"copy_paste": {"p": 2}}, "augment.copy_paste.p=2 must be a number from 0 to 1"),
        ({"copy_paste": {"occlude": "on"}}, "augment.copy_paste.occlude=on must be a number"),
        ({"copy_paste": {"visible": -1}}, "augment.copy_paste.visible=-1 must be a number"),
        ({"copy_paste": {"objects": 0}}, "augment.copy_paste.objects=0 must be a whole number"),
    ],
)
def test_wrong_augmentation_is_told(values: dict, said: str):
    with pytest.raises(UserError) as caught:
        read_augment(values)
    assert said in str(caught.value)


def test_augmentation_is_read():
    assert read_augment({}) == Augment()
    assert read_augment({"flip": 0.5, "scale": [0.8, 1]}) == Augment(flip=0.5, scale=(0.8, 1.0))
    given = read_augment({"copy_paste": {"p": 0.5, "objects": 2}}).copy_paste
    assert given == CopyPaste(p=0.5, occlude=0.3, visible=0.05, objects=2)


class Still:
    """A transform by its methods alone."""

    def geometry(self, generator: np.random.Generator, size: tuple[int, int]) -> None:
        return None

    def pixels(self, generator: np.random.Generator, image: torch.Tensor) -> None:
        return None


def test_transforms_are_read():
    still = Still()
    assert read_augment({"flip": 0.5, "transforms": [still]}).transforms == (still,)
    assert read_augment({"transforms": []}) == Augment()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "augment.transforms=0.5 must be a list"),
        ({"degrees": 5}, "must be a list"),
        (["rotate"], "augment.transforms[0] is 'rotate', which has no methods geometry"),
        ([Still(), {"degrees": 5}], "augment.transforms[1] is {'degrees': 5}"),
    ],
)
def test_what_is_no_transform_is_named(value: Any, said: str):
    with pytest.raises(UserError) as caught:
        read_augment({"transforms": value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        **dict.fromkeys(("flip", "brightness", "contrast", "saturation", "noise"), SHARE),
        **dict.fromkeys(("perspective", "rotation", "blur"), (-1, 200, None, "much", [1, 2], True)),
        crop=[*SHARE, 0],
        scale=[*positive_list(2), "12", [0.5, 5], [1, 0.5]],
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        read_augment({option: value})
    assert str(caught.value).startswith(f"augment.{option}={value} must be ")


@pytest.mark.parametrize("value", [None, 1, True, "flip", ["flip"], [], math.nan])
def test_augment_has_values_by_name(value: Any):
    with pytest.raises(UserError, match=r"augment=.* must have values for flip, scale, crop"):
        read_augment(value)


def test_each_option_is_a_transform_in_a_fixed_order():
    given = {"noise": 0.1, "blur": 2, "rotation": 15, "perspective": 0.1, "rot90": 1}
    augment = read_augment(given | {"vertical_flip": 0.5})
    kinds = (VerticalFlip, QuarterTurns, Perspective, Rotation, Blur, Noise)
    assert tuple(map(type, augment.transforms)) == kinds
    assert read_augment(dict.fromkeys(given, 0)).transforms == ()


def test_flips_and_turns_come_before_ones_own_transforms():
    own = Transform()
    augment = read_augment({"vertical_flip": 0.5, "rot90": 0.25, "transforms": [own]})
    flip, turn, last = augment.transforms
    assert isinstance(flip, VerticalFlip)
    assert flip.probability == 0.5
    assert isinstance(turn, QuarterTurns)
    assert turn.probability == 0.25
    assert last is own
    with pytest.raises(UserError, match=r"augment\.rot90=2"):
        read_augment({"rot90": 2})
