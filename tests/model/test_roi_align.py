import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_lit.model.roi_align import RoIs, index_type, level_of, roi_align, sample_points

STRIDES = (4, 8, 16, 32)
HEIGHT, WIDTH = 96, 160


def pyramid(images: int = 2, channels: int = 3) -> list[torch.Tensor]:
    shapes = [(images, channels, HEIGHT // s, WIDTH // s) for s in STRIDES]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def regions() -> list[torch.Tensor]:
    """For two images: ordinary regions, and those at and over the border, tiny, empty, huge, long
    and thin.
    """
    corner = torch.rand(60, 2, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT]) - 10
    ordinary = torch.cat([corner, corner + torch.rand(60, 2, dtype=torch.float64) * 120], dim=1)
    special = [
        [0, 0, WIDTH, HEIGHT],
        [-4, -4, 20, 20],
        [WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT],
        [WIDTH - 20, HEIGHT - 20, WIDTH + 30, HEIGHT + 30],
        [-200, -200, -100, -100],  # outside
        [WIDTH + 50, 0, WIDTH + 90, 40],
        [10, 10, 10, 10],  # without area
        [0, 0, 0, 0],
        [20.3, 30.7, 20.301, 30.701],
        [-2000, -2000, 2000, 2000],
        [0, 40, WIDTH, 40.5],
        [50, 0, 50.5, HEIGHT],
        [0, 0, 112, 112],  # exactly where the level changes
        [0, 0, 224, 224],
        [0, 0, 448, 448],
    ]
    return [ordinary, torch.tensor(special, dtype=torch.float64)]


def pooled(boxes: list[torch.Tensor], size: int) -> RoIs:
    image = torch.cat([torch.full((len(b),), i) for i, b in enumerate(boxes)])
    return RoIs(torch.cat(boxes), image, size)


def torchvisions(
    maps: list[torch.Tensor], boxes: list[torch.Tensor], size: int, points: int
) -> torch.Tensor:
    pool = MultiScaleRoIAlign([str(s) for s in STRIDES], size, points)
    features = OrderedDict(zip(map(str, STRIDES), maps, strict=True))
    return pool(features, boxes, [(HEIGHT, WIDTH)] * len(boxes))


@pytest.mark.parametrize(("size", "points"), [(7, 2), (14, 2), (3, 1), (5, 3)])
def test_equals_torchvision_forward_and_backward(size: int, points: int):
    maps, boxes = pyramid(), regions()
    assert level_of(torch.cat(boxes), 4).unique().tolist() == [0, 1, 2, 3]
    (ours,) = roi_align(maps, [pooled(boxes, size)], strides=STRIDES, points=points)
    theirs = torchvisions(maps, boxes, size, points)
    assert ours.shape == theirs.shape == (75, 3, size, size)
    assert (ours - theirs).abs().max() < 1e-12
    incoming = torch.randn_like(ours)
    for own, expected in zip(
        torch.autograd.grad(ours, maps, incoming),
        torch.autograd.grad(theirs, maps, incoming),
        strict=True,
    ):
        assert expected.any()
        assert (own - expected).abs().max() < 1e-12


def aligned(
    maps: list[torch.Tensor], boxes: list[torch.Tensor], size: int, points: int
) -> torch.Tensor:
    """Torchvision's operator at the pixels' centers, each region on the level that equation 1
    says.
    """
    image = torch.cat([torch.full((len(b), 1), i, dtype=b.dtype) for i, b in enumerate(boxes)])
    rois = torch.cat([image, torch.cat(boxes)], dim=1)
    levels = level_of(rois[:, 1:], 4)
    every = [
        torchvision_roi_align(m, rois, size, 1 / s, points, True)
        for m, s in zip(maps, STRIDES, strict=True)
    ]
    return torch.stack(every)[levels, torch.arange(len(rois))]


@pytest.mark.parametrize("points", [2, 3, 0])
def test_aligned_and_as_many_samples_as_cells(points: int):
    maps, boxes = pyramid(), regions()
    (ours,) = roi_align(maps, [pooled(boxes, 7)], strides=STRIDES, points=points, aligned=True)
    theirs = aligned(maps, boxes, 7, points)
    assert (ours - theirs).abs().max() < 1e-12
    incoming = torch.randn_like(ours)
    grads = (torch.autograd.grad(out, maps, incoming) for out in (ours, theirs))
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*grads, strict=True))


def test_two_sizes_in_one_call_equal_two_calls():
    maps, boxes = pyramid(), regions()
    few = [boxes[0][:5], boxes[1][3:4]]
    wanted = [pooled(boxes, 7), pooled(few, 14)]
    together = roi_align(maps, wanted, strides=STRIDES)
    alone = [roi_align(maps, [w], strides=STRIDES)[0] for w in wanted]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    incoming = [torch.randn_like(t) for t in together]
    gradients = torch.autograd.grad(together, maps, incoming)
    for own, *parts in zip(
        gradients,
        *(torch.autograd.grad(a, maps, i) for a, i in zip(alone, incoming, strict=True)),
        strict=True,
    ):
        assert torch.allclose(own, sum(parts), rtol=1e-12, atol=1e-12)


def test_rows_are_numbered_by_the_smaller_type(monkeypatch: pytest.MonkeyPatch):
    """A GPU sorts the numbers in the backward pass: of 32 bits it is half the work."""
    types, plain = [], F.embedding_bag

    def seen(index: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        types.append(index.dtype)
        return plain(index, *rest, **more)

    monkeypatch.setattr(F, "embedding_bag", seen)
    wanted = [RoIs(torch.tensor([[0.0, 0, 40, 40]]), torch.zeros(1, dtype=torch.int64), 7)]
    roi_align([torch.randn(1, 3, 24, 40)], wanted, strides=(4,))
    assert types == [torch.int32]
    assert index_type(2**31 - 1) == torch.int32
    assert index_type(2**31) == torch.int64


def test_maps_that_are_no_multiple_of_their_stride():
    """An image of 100 x 140: 25 x 35, 13 x 18, 7 x 9, 4 x 5 cells."""
    shapes = [(25, 35), (13, 18), (7, 9), (4, 5)]
    maps = [torch.randn(1, 2, *shape, dtype=torch.float64) for shape in shapes]
    boxes = regions()[0] * torch.tensor([140 / WIDTH, 100 / HEIGHT] * 2)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = pool(OrderedDict(zip("0123", maps, strict=True)), [boxes], [(100, 140)])
    (ours,) = roi_align(maps, [pooled([boxes], 7)], strides=STRIDES)
    assert (ours - expected).abs().max() < 1e-12


def test_a_region_reads_its_own_image_and_level():
    maps = [
        torch.stack([torch.full((1, 64 >> i, 64 >> i), 10.0 * i + image) for image in (1, 2)])
        for i in range(4)
    ]
    sides = [20, 111, 113, 223, 225, 250]
    boxes = torch.tensor([[0.0, 0, side, side] for side in sides])
    image = torch.tensor([0, 1, 0, 1, 0, 1])
    (out,) = roi_align(maps, [RoIs(boxes, image, 2)], strides=STRIDES)
    assert out.flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 11, 12, 21, 22]


def test_level_by_hand():
    sides = torch.tensor([0, 1e-3, 111.9, 112, 223.9, 224, 447, 448, 5000])
    boxes = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    assert level_of(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert level_of(boxes, 2).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_a_ramp_is_read_where_the_samples_lie():
    """Bilinear samples of a linear map are exact: the mean of a bin is the ramp at its center."""
    column = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    boxes = torch.tensor([[8.0, 8, 40, 24]], dtype=torch.float64)  # cells 2..10 by 2..6
    (out,) = roi_align([column], [RoIs(boxes, torch.tensor([0]), 4)], strides=(4,))
    assert torch.allclose(out[0, 0], torch.tensor([3.0, 5, 7, 9], dtype=torch.float64).expand(4, 4))


def test_the_output_is_laid_out_by_rows_of_channels():
    """The box head flattens it as row, column, channel: without a copy."""
    (out,) = roi_align(pyramid(), [pooled(regions(), 7)], strides=STRIDES)
    assert out.permute(0, 2, 3, 1).is_contiguous()


def test_a_point_is_one_sample_of_an_aligned_region_without_area():
    features = torch.randn(2, 3, 10, 14, dtype=torch.float64, requires_grad=True)
    at = torch.rand(40, 2, dtype=torch.float64) * torch.tensor([14 * 4, 10 * 4])
    at[:4] = torch.tensor([[0.0, 0], [56, 40], [56, 0], [2, 38]])
    where = RoIs(at.repeat(1, 2), torch.arange(40) % 2, 1)
    found = sample_points(features, where, 4)
    (expected,) = roi_align([features], [where], strides=[4], points=1, aligned=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    incoming = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(f, features, incoming)[0] for f in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def by_definition(maps: list[torch.Tensor], wanted: RoIs, kind: str, points: int) -> torch.Tensor:
    """RoIPool and RoIWarp, region by region: the region is rounded to whole cells, RoIPool takes
    the largest cell of each bin of whole cells, and RoIWarp the mean of bilinear samples.
    """
    rows = []
    levels = level_of(wanted.boxes, 4).tolist()
    for box, image, level in zip(wanted.boxes, wanted.image.tolist(), levels, strict=True):
        cells = torch.floor(box / STRIDES[level] + 0.5).long().tolist()
        form = largest if kind == "pool" else mean_samples
        rows.append(form(maps[level][image], cells, wanted.size, points))
    return torch.stack(rows)


def largest(features: torch.Tensor, cells: list[int], s: int, points: int) -> torch.Tensor:
    (x1, y1, x2, y2), (height, width) = cells, features.shape[1:]
    high, wide = max(y2 - y1 + 1, 1) / s, max(x2 - x1 + 1, 1) / s
    bins = torch.zeros(len(features), s, s, dtype=features.dtype)
    for row in range(s):
        for column in range(s):
            top, low = math.floor(row * high) + y1, math.ceil((row + 1) * high) + y1
            left, right = math.floor(column * wide) + x1, math.ceil((column + 1) * wide) + x1
            top, low = max(top, 0), max(min(low, height), 0)
            left, right = max(left, 0), max(min(right, width), 0)
            part = features[:, top:low, left:right]
            if part.numel():
                bins[:, row, column] = part.amax((1, 2))
    return bins


def mean_samples(features: torch.Tensor, cells: list[int], s: int, points: int) -> torch.Tensor:
    (x1, y1, x2, y2), (height, width) = cells, features.shape[1:]
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    x2, y2 = min(max(x2, x1), width - 1), min(max(y2, y1), height - 1)
    bins = torch.zeros(len(features), s, s, dtype=features.dtype)
    steps = [(n + 0.5) / points for n in range(points)]
    for row in range(s):
        for column in range(s):
            ys = [y1 - 0.5 + (row + step) * (y2 - y1 + 1) / s for step in steps]
            xs = [x1 - 0.5 + (column + step) * (x2 - x1 + 1) / s for step in steps]
            samples = [bilinear(features, y, x) for y in ys for x in xs]
            bins[:, row, column] = torch.stack(samples).mean(0)
    return bins


def bilinear(features: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """C h w at one point, whose cell centers are whole numbers; the edge counts beyond it."""
    height, width = features.shape[1:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    low, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = features[:, top, left] * (1 - dx) + features[:, top, right] * dx
    lower = features[:, low, left] * (1 - dx) + features[:, low, right] * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize(("kind", "points"), [("pool", 2), ("warp", 2), ("warp", 3)])
def test_pooling_of_whole_cells_is_as_defined(kind: str, points: int):
    maps = pyramid()
    wanted = pooled(regions(), 3)
    (found,) = roi_align(maps, [wanted], strides=STRIDES, points=points, kind=kind)
    expected = by_definition(maps, wanted, kind, points)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-12
    incoming = torch.randn_like(found)
    for own, theirs in zip(
        torch.autograd.grad(found, maps, incoming),
        torch.autograd.grad(expected, maps, incoming),
        strict=True,
    ):
        assert own.any()
        assert (own - theirs).abs().max() < 1e-12


def test_warping_with_as_many_samples_as_cells_is_a_mean_over_whole_cells():
    """A bin of two cells has two samples an axis, each at the center of a cell."""
    maps = pyramid(images=1)
    box = torch.tensor([[8.0, 4.0, 8 + 4 * 5, 4 + 4 * 3]], dtype=torch.float64)  # cells 2..7, 1..4
    wanted = RoIs(box, torch.zeros(1, dtype=torch.int64), 2)
    (found,) = roi_align(maps[:1], [wanted], strides=(4,), points=0, kind="warp")
    cells = maps[0][0, :, 1:5, 2:8]
    expected = cells.unflatten(2, (2, 3)).unflatten(1, (2, 2)).mean((2, 4))
    assert (found[0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["align", "warp", "pool"])
@pytest.mark.parametrize("points", [0, 2])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_reads_the_same_cells(kind: str, points: int, autocast: bool):
    """Features of bfloat16 are read where those of float32 are: regions beyond 256 px are not whole
    numbers of bfloat16, whose step is 4 px from 512 to 1024.
    """
    maps = [torch.randn(1, 3, 1024 // s, 1024 // s).bfloat16() for s in STRIDES]
    corner = torch.rand(60, 2) * 900
    boxes = torch.cat([corner, corner + 4 + torch.rand(60, 2) * 300], dim=1)
    wanted = pooled([boxes], 7)
    (expected,) = roi_align(
        [m.float() for m in maps], [wanted], strides=STRIDES, points=points, kind=kind
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (found,) = roi_align(maps, [wanted], strides=STRIDES, points=points, kind=kind)
    assert found.dtype == torch.bfloat16
    # 8 bits of mantissa of the weights and of the sum
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.03)
