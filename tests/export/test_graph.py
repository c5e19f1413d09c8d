"""The forms that are exported give what the model gives."""

from typing import Any

import pytest
import torch
from exported import lively
from models import make_model
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import (
    OUTPUTS,
    Graph,
    align_on_canvas,
    operator_graph,
    pack,
    plain_graph,
    suppress,
    traced,
)
from maskrcnn_lit.export.parity import SWAPPED_POINTS, Parity
from maskrcnn_lit.model.boxes import batched_nms
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.roi_align import RoIs, roi_align
from maskrcnn_lit.model.suppression import KINDS, Suppression

STRIDES = (4, 8, 16, 32)
HEIGHT, WIDTH = 96, 160


def images(count: int = 2) -> tuple[Tensor, Tensor]:
    """Of which all but the first are smaller than the padded size."""
    pixels = torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    sizes = torch.tensor([[HEIGHT - 20 * n, WIDTH - 30 * n] for n in range(count)])
    for own, (height, width) in zip(pixels, sizes.tolist(), strict=True):
        own[:, height:], own[:, :, width:] = 0, 0
    return pixels, sizes


def assert_same(graph: Graph, model: MaskRCNN) -> None:
    pixels, sizes = images()
    with torch.no_grad():
        expected = model.infer(pixels, sizes, True)
        found = dict(zip(OUTPUTS, graph(pixels, sizes), strict=True))
    assert expected["valid"].sum() > 20
    for name, bound in {"valid": 0, "labels": 0, "boxes": 1e-3, "scores": 1e-5}.items():
        torch.testing.assert_close(found[name], expected[name], atol=bound, rtol=0)
    there = expected["valid"]
    swapped = 0.0 if model.mask_refine is None else SWAPPED_POINTS
    parity = Parity()
    parity.add(expected, found, 0.0, swapped)
    assert parity.detections == there.sum()
    assert parity.masks <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("points", [1, 2])
def test_both_graphs_equal_the_model(aligned: bool, points: int):
    model = lively(roi_align={"points": points, "aligned": aligned}, head_norm="batch")
    assert_same(plain_graph(model), model)
    assert_same(operator_graph(model), model)


# `agnostic` gives all boxes one group before any kind looks at them: with one kind it is enough.
AGNOSTIC = [
    pytest.param(kind, True, marks=[pytest.mark.slow] if kind != "box" else []) for kind in KINDS
]


@pytest.mark.long
@pytest.mark.parametrize(("nms", "agnostic"), [*((kind, False) for kind in KINDS), *AGNOSTIC])
def test_every_suppression_is_in_both_graphs(nms: str, agnostic: bool):
    model = lively()
    model.set_suppression(Suppression(nms, agnostic))
    assert_same(plain_graph(model), model)
    assert_same(operator_graph(model), model)


@pytest.mark.long
@pytest.mark.parametrize(
    "parts",
    [
        {"mask_iou": True, "mask_refine": "points", "cascade": (0.5, 0.6, 0.7), "occluder": True},
        {"mask_refine": "points"},
        {"cascade": (0.5, 0.6, 0.7)},
        {"occluder": True},
    ],
)
def test_both_graphs_have_the_optional_parts(parts: dict[str, Any]):
    model = lively(**parts)
    assert_same(plain_graph(model), model)
    assert_same(operator_graph(model), model)


def test_the_model_itself_stays_as_it_is():
    model = lively()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator_graph(model)
    assert model.state_dict().keys() == before.keys()
    assert "align" not in vars(model)
    assert "suppress" not in vars(model.rpn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def boxes_inside(count: int) -> Tensor:
    """In the image: of all sizes, and slivers at its borders and corners."""
    corner = torch.rand(count, 2, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT])
    other = corner + torch.rand(count, 2, dtype=torch.float64) ** 3 * WIDTH
    limit = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    special = [
        [0, 0, WIDTH, HEIGHT],
        [WIDTH - 0.01, 10, WIDTH, 60],
        [20, HEIGHT - 0.3, 90, HEIGHT],
        [WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT],
        [0, 0, 0.2, HEIGHT],
        [0, 0, WIDTH, 1],
        [0, 0, 0, 0],  # an empty slot
        [WIDTH / 2, 0, WIDTH, HEIGHT],
    ]
    inside = torch.cat([corner, torch.minimum(other, limit)], dim=1)
    return torch.cat([inside, torch.tensor(special, dtype=torch.float64)])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "points"), [(7, 2), (14, 1), (3, 3)])
def test_one_map_of_all_levels_gives_the_same_features(aligned: bool, size: int, points: int):
    pyramid = [torch.randn(2, 3, HEIGHT // s, WIDTH // s, dtype=torch.float64) for s in STRIDES]
    boxes = boxes_inside(200)
    image = torch.arange(len(boxes)) % 2
    wanted = [RoIs(boxes, image, size), RoIs(boxes[:5], image[:5], 2 * size)]
    found = align_on_canvas(pyramid, wanted, STRIDES, points, aligned)
    expected = roi_align(pyramid, wanted, strides=STRIDES, points=points, aligned=aligned)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "maps"), [(80, 80, 1), (48, 16, 1), (16, 200, 1), (8, 8, 2)]
)
def test_levels_lie_apart_on_as_few_maps_as_they_need(height: int, width: int, maps: int):
    sizes = [(height // s + 2, width // s + 2) for s in (2, 4, 8)]
    corners = pack(sizes, height, width)
    assert max(corner.map for corner in corners) + 1 == maps
    filled = torch.zeros(maps, height, width)
    for corner, (tall, wide) in zip(corners, sizes, strict=True):
        area = filled[corner.map, corner.y : corner.y + tall, corner.x : corner.x + wide]
        assert area.shape == (tall, wide)
        area += 1
    assert filled.max() == 1


def test_the_operator_suppresses_as_the_model():
    boxes = torch.rand(2, 60, 4) * 50
    boxes[..., 2:] += boxes[..., :2]
    groups = torch.randint(1, 4, (2, 60))
    found = suppress(boxes, groups, 0.3, 3)
    assert torch.equal(found, batched_nms(boxes, 0.3, groups))
    assert 0 < found.sum() < 120


def test_a_model_whose_shapes_depend_on_the_image_is_refused():
    with pytest.raises(UserError, match=r"roi_align\.points=0 cannot be exported"):
        plain_graph(make_model(roi_align={"points": 0, "aligned": True}))


@pytest.mark.long
def test_tracing_leaves_the_caches_of_the_model_as_they_are():
    model = lively()
    with torch.no_grad():
        before = model.infer(*images(1), True)
        traced(plain_graph(model), (HEIGHT, WIDTH), 1)
        after = model.infer(*images(1), True)
    assert {type(value) for value in after.values()} == {Tensor}
    assert before["boxes"].shape == after["boxes"].numpy().shape
