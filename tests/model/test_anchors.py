from typing import Any

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from wrong_values import FLAG, SHARE, cases, positive_list

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.anchors import Anchors

RATIOS = (0.5, 1.0, 2.0)
SIZES = (32, 64, 128, 256, 512)


def pyramid(height: int, width: int) -> list[torch.Tensor]:
    """Empty p2..p6 of an image, each level half of the one before, rounded up, as strided
    convolutions give it.
    """
    maps = [torch.zeros(1, 1, -(-height // 4), -(-width // 4))]
    for _ in range(4):
        maps.append(torch.zeros(1, 1, -(-maps[-1].shape[2] // 2), -(-maps[-1].shape[3] // 2)))
    return maps


def test_boxes_of_one_cell_by_hand():
    made = Anchors(sizes=(32,), ratios=RATIOS)([torch.zeros(1, 1, 1, 1)], (4, 4))
    # 32 * sqrt(2) = 45.25 and 32 / sqrt(2) = 22.63, halved and rounded
    assert made.tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_corners_are_exact_and_centers_moved_where_asked():
    (made,) = Anchors(sizes=(32,), ratios=(0.5,), round_corners=False)(
        [torch.zeros(1, 1, 1, 1)], (4, 4)
    ).tolist()
    assert made == pytest.approx([-(2**4.5), -(2**3.5), 2**4.5, 2**3.5])
    maps = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]
    moved = Anchors(sizes=(32, 64), ratios=(1.0,), offset=0.5)(maps, (4, 8))
    assert ((moved[:, :2] + moved[:, 2:]) / 2).tolist() == [
        [2, 2],
        [6, 2],
        [4, 4],
    ]  # half of strides 4 and 8


def test_a_ratio_is_height_over_width():
    wide, high = Anchors(sizes=(128,), ratios=(0.25, 4.0))([torch.zeros(1, 1, 1, 1)], (4, 4))
    assert wide.tolist() == [-128, -32, 128, 32]
    assert high.tolist() == [-32, -128, 32, 128]


def test_order_is_level_row_column_ratio():
    maps = [torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)]
    made = Anchors(sizes=(32, 64), ratios=RATIOS)(maps, (8, 12))
    centers = ((made[:, :2] + made[:, 2:]) / 2).tolist()
    first = [[4 * column, 4 * row] for row in range(2) for column in range(3) for _ in RATIOS]
    second = [[8 * column, 0] for column in range(2) for _ in RATIOS]
    assert centers == first + second
    areas = (made[:, 2:] - made[:, :2]).prod(dim=1)
    assert areas[1::3].tolist() == [32**2] * 6 + [64**2] * 2


def strides(made: torch.Tensor, maps: list[torch.Tensor]) -> list[list[float]]:
    """Steps in x and y from the first cell of each level to the next."""
    steps = []
    for level, cells in zip(made.split([3 * m[0, 0].numel() for m in maps]), maps, strict=True):
        grid = level.view(*cells.shape[-2:], 3, 4)
        steps.append(
            [float(grid[0, 1, 0, 0] - grid[0, 0, 0, 0]), float(grid[1, 0, 0, 1] - grid[0, 0, 0, 1])]
        )
    return steps


def test_strides_are_nominal_unless_measured():
    maps = pyramid(800, 1344)
    assert tuple(maps[-1].shape[-2:]) == (13, 21)
    nominal = Anchors(sizes=SIZES, ratios=RATIOS)(maps, (800, 1344))
    assert strides(nominal, maps) == [[4, 4], [8, 8], [16, 16], [32, 32], [64, 64]]
    measured = Anchors(sizes=SIZES, ratios=RATIOS, measured_strides=True)(maps, (800, 1344))
    assert strides(measured, maps) == [[4, 4], [8, 8], [16, 16], [32, 32], [64, 61]]


@pytest.mark.parametrize("size", [(800, 1344), (416, 288), (96, 224)])
def test_measured_strides_equal_torchvision(size: tuple[int, int]):
    maps = pyramid(*size)
    theirs = AnchorGenerator(tuple((s,) for s in SIZES), (RATIOS,) * 5)
    (expected,) = theirs(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    assert torch.equal(
        Anchors(sizes=SIZES, ratios=RATIOS, measured_strides=True)(maps, size), expected
    )


def test_nominal_strides_equal_torchvision_where_the_side_is_a_multiple_of_64():
    maps = pyramid(192, 320)
    theirs = AnchorGenerator(tuple((s,) for s in SIZES), (RATIOS,) * 5)
    (expected,) = theirs(ImageList(torch.zeros(1, 3, 192, 320), [(192, 320)]), maps)
    assert torch.equal(Anchors(sizes=SIZES, ratios=RATIOS)(maps, (192, 320)), expected)


def test_a_size_is_made_once_and_another_size_anew():
    anchors = Anchors(sizes=SIZES, ratios=RATIOS)
    small = anchors(pyramid(128, 128), (128, 128))
    assert len(anchors(pyramid(128, 192), (128, 192))) > len(small)
    assert anchors(pyramid(128, 128), (128, 128)) is small


def test_one_size_for_each_level():
    with pytest.raises(ValueError, match="longer"):
        Anchors(sizes=(32, 64), ratios=RATIOS)(pyramid(64, 64), (64, 64))


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        sizes=[*positive_list(5)[2:], [0.5] * 5, [20_000]],
        ratios=[*positive_list(3)[2:], [1e-9], [1e9]],
        offset=SHARE,
        round_corners=FLAG,
        measured_strides=FLAG,
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    options: dict[str, Any] = {"sizes": [8, 16, 32, 64, 128], "ratios": [0.5, 1, 2], option: value}
    with pytest.raises(UserError) as caught:
        Anchors(**options)
    assert str(caught.value).startswith(f"model.anchors.{option}={value} must be ")


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": [1, 2, 4, 8, 16], "ratios": [0.5, 1, 2]},
        {"sizes": [8, 16, 32, 64, 128], "ratios": [0.01, 100]},
        {"sizes": [1], "ratios": [1]},
    ],
)
def test_anchors_without_area_are_refused(options: dict[str, Any]):
    """torchvision divides by their sides; half a pixel is rounded to 0."""
    with pytest.raises(UserError, match=r"model.anchors.sizes=.* must give anchors with an area"):
        Anchors(**options)
    exact = Anchors(**options, round_corners=False)
    boxes = exact([torch.zeros(1, 1, 2, 2)] * len(options["sizes"]), (64, 64))
    assert (boxes[:, 2:] > boxes[:, :2]).all()
