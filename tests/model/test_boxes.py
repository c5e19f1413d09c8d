import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_area, box_iou, clip_boxes_to_image, nms
from torchvision.ops.boxes import _batched_nms_vanilla

from maskrcnn_lit.model import boxes as boxes_module
from maskrcnn_lit.model.boxes import (
    area,
    batched_nms,
    clip,
    decode,
    encode,
    full_precision,
    intersection,
    iou,
    nms_per_level,
)

BOX_HEAD = (10.0, 10.0, 5.0, 5.0)


def random_boxes(*shape: int, extent: float = 100, side: float = 60) -> torch.Tensor:
    corner = torch.rand(*shape, 2, dtype=torch.float64) * extent
    return torch.cat(
        [corner, corner + 0.5 + torch.rand(*shape, 2, dtype=torch.float64) * side], dim=-1
    )


def test_full_precision_lifts_halves_only():
    kinds = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    kinds |= {torch.float32: torch.float32, torch.float64: torch.float64}
    for kind, expected in kinds.items():
        assert full_precision(torch.ones(2, dtype=kind)).dtype == expected


def test_overlap_by_hand():
    first = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 4, 2]]])
    second = torch.tensor([[[5.0, 5, 15, 15], [20, 20, 30, 30], [0, 0, 10, 10]]])
    assert area(first).tolist() == [[100, 8]]
    assert intersection(first, second).tolist() == [[[25, 0, 100], [0, 0, 8]]]
    assert torch.allclose(iou(first, second), torch.tensor([[[25 / 175, 0, 1], [0, 0, 0.08]]]))


def test_iou_equals_torchvision_for_each_image():
    first, second = random_boxes(3, 20), random_boxes(3, 30)
    expected = torch.stack([box_iou(a, b) for a, b in zip(first, second, strict=True)])
    assert (expected > 0.3).any()
    assert torch.allclose(iou(first, second), expected, rtol=1e-14, atol=0)
    assert torch.equal(area(first[0]), box_area(first[0]))


def test_boxes_without_area_overlap_nothing():
    flat = torch.tensor([[[5.0, 5, 5, 5], [0, 0, 0, 0]]])
    assert iou(flat, flat).tolist() == [[[0, 0], [0, 0]]]
    assert iou(flat, torch.tensor([[[0.0, 0, 10, 10]]])).tolist() == [[[0], [0]]]


def test_encode_by_hand():
    reference, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 10, 25, 50])
    # center (5, 10) -> (15, 30): one width and one height; both sides double
    expected = torch.tensor([1, 1, math.log(2), math.log(2)])
    assert torch.allclose(encode(box, reference, (1, 1, 1, 1)), expected)
    assert torch.allclose(encode(box, reference, BOX_HEAD), expected * torch.tensor(BOX_HEAD))


sides = st.floats(0.5, 500)
corners = st.floats(-100, 1000)
box_of = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], corners, corners, sides, sides)


@given(reference=box_of, target=box_of, weights=st.sampled_from([(1.0, 1.0, 1.0, 1.0), BOX_HEAD]))
@settings(max_examples=200, deadline=None)
def test_decode_is_the_inverse_of_encode(reference: Any, target: Any, weights: Any):
    reference, target = (torch.tensor(b, dtype=torch.float64) for b in (reference, target))
    deltas = encode(target, reference, weights)
    if (
        target[2:] - target[:2] < 62 * (reference[2:] - reference[:2])
    ).all():  # more than that is cut off
        assert torch.allclose(decode(deltas, reference, weights), target, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), BOX_HEAD])
def test_deltas_equal_torchvision(weights: tuple[float, float, float, float]):
    coder = BoxCoder(weights)
    reference, target = random_boxes(50), random_boxes(50)
    assert torch.allclose(
        encode(target, reference, weights),
        coder.encode_single(target, reference),
        rtol=1e-12,
        atol=1e-12,
    )
    deltas = torch.randn(50, 4, dtype=torch.float64) * 30  # many beyond the largest scale
    decoded = coder.decode_single(deltas, reference)
    assert torch.allclose(decode(deltas, reference, weights), decoded, rtol=1e-12, atol=1e-9)


def test_a_side_grows_at_most_62_times():
    decoded = decode(torch.tensor([0.0, 0, 50, 50]), torch.tensor([0.0, 0, 16, 32]), (1, 1, 1, 1))
    assert torch.allclose(decoded[2:] - decoded[:2], torch.tensor([1000.0, 2000]))


def test_clip_cuts_each_image_to_its_own_size():
    boxes = random_boxes(2, 40, extent=200, side=200) - 80
    sizes = torch.tensor([[60, 150], [150, 60]])
    expected = torch.stack(
        [clip_boxes_to_image(b, s) for b, s in zip(boxes, [(60, 150), (150, 60)], strict=True)]
    )
    assert torch.equal(clip(boxes, sizes), expected)
    assert clip(torch.tensor([[[-5.0, 70, 200, 80]]]), sizes[:1]).tolist() == [[[0, 60, 150, 60]]]


def as_elsewhere(boxes: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """As a GPU does it: the fixed number of rounds."""
    return batched_nms(boxes, *args, **options, static_shapes=True)


def greedy(
    boxes: torch.Tensor, threshold: float, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """Torchvision's answer for rows sorted by falling score."""
    keep = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for i, row in enumerate(boxes):
        scores = torch.linspace(1, 0, len(row), dtype=row.dtype)
        chosen = nms(row, scores, threshold)
        if groups is not None:
            chosen = _batched_nms_vanilla(row, scores, groups[i], threshold)
        keep[i, chosen] = True
    return keep


def crowded(seed: int) -> torch.Tensor:
    """Two images of boxes in clusters: many suppress each other, in chains."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(2, 6, 1, 2, generator=generator, dtype=torch.float64) * 100
    center = center + torch.randn(2, 6, 20, 2, generator=generator, dtype=torch.float64) * 8
    half = 5 + torch.rand(2, 6, 20, 2, generator=generator, dtype=torch.float64) * 15
    boxes = torch.cat([center - half, center + half], dim=-1).flatten(1, 2)
    return boxes[:, torch.randperm(120, generator=generator)]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_suppression_equals_torchvision(threshold: float):
    for seed in range(40):
        boxes = crowded(seed)
        expected = greedy(boxes, threshold)
        assert 0.02 < expected.double().mean() < 0.98, "the comparison needs boxes of both kinds"
        assert torch.equal(batched_nms(boxes, threshold), expected)
        assert torch.equal(as_elsewhere(boxes, threshold), expected)


def test_suppression_by_group_equals_torchvision():
    for seed in range(40):
        boxes, groups = crowded(seed), torch.randint(0, 4, (2, 120))
        expected = greedy(boxes, 0.4, groups)
        assert not torch.equal(expected, greedy(boxes, 0.4))
        assert torch.equal(batched_nms(boxes, 0.4, groups=groups), expected)
        assert torch.equal(as_elsewhere(boxes, 0.4, groups), expected)


@pytest.mark.parametrize("static_shapes", [False, True])
def test_lists_of_several_lengths_are_settled_together_as_each_alone(static_shapes: bool):
    levels = [crowded(seed)[:, :count] for seed, count in enumerate((120, 64, 33, 1, 97))]
    found = nms_per_level(levels, 0.5, static_shapes=static_shapes)
    for boxes, keep in zip(levels, found, strict=True):
        assert torch.equal(keep, greedy(boxes, 0.5))


@pytest.mark.parametrize("count", [31, 32, 33, 64])
def test_every_bit_of_a_word_is_read(count: int):
    """One box a time suppresses the last one; the others are far away."""
    far = 10.0 * torch.arange(count)[:, None]
    boxes = torch.cat([far, far, far + 1, far + 1], dim=1)[None]
    assert as_elsewhere(boxes, 0.5).all()
    for rival in range(count - 1):
        near = boxes.clone()
        near[0, -1] = near[0, rival]
        assert as_elsewhere(near, 0.5)[0].tolist() == [True] * (count - 1) + [False]


def chain(length: int) -> torch.Tensor:
    """Each box overlaps the next with an IoU of 0.6 and the one after it with 1/3: the answer is
    every second one, and a box's fate hangs on all before it.
    """
    x = torch.arange(length, dtype=torch.float64)
    return torch.stack([x, torch.zeros(length), x + 4, torch.ones(length)], dim=-1)[None]


def test_a_chain_is_settled_link_by_link():
    for length in (2, 3, 10, 24, 60):
        boxes = chain(length)
        every_second = torch.arange(length)[None] % 2 == 0
        assert torch.equal(greedy(boxes, 0.5), every_second)
        assert torch.equal(batched_nms(boxes, 0.5), every_second)
        if length <= 24:
            assert torch.equal(as_elsewhere(boxes, 0.5), every_second)
    unsettled = as_elsewhere(
        chain(60), 0.5
    )  # too long for 24 rounds: the end keeps duplicates, and loses nothing
    assert torch.equal(unsettled[:, :24], greedy(chain(60), 0.5)[:, :24])
    assert unsettled[greedy(chain(60), 0.5)].all()


def test_rounds_after_the_last_change_change_nothing():
    for seed in range(5):
        boxes = crowded(seed)
        assert torch.equal(as_elsewhere(boxes, 0.5), as_elsewhere(boxes, 0.5, iterations=100))


def test_only_the_cpu_asks_an_operator_whose_shape_hangs_on_the_data(
    monkeypatch: pytest.MonkeyPatch,
):
    def read(*_: Any) -> torch.Tensor:
        raise AssertionError("a number that the host must wait for")

    monkeypatch.setattr(boxes_module, "nms", read)
    as_elsewhere(crowded(0), 0.5)
    with pytest.raises(AssertionError, match="must wait"):
        batched_nms(crowded(0), 0.5)


def test_an_overlap_of_exactly_the_threshold_stays():
    boxes = torch.tensor(
        [[[0.0, 0, 2, 1], [1, 0, 2, 1], [0, 0, 2, 1.125]]]
    )  # IoU with the first: 0.5 and 8/9
    assert batched_nms(boxes, 0.5).tolist() == [[True, True, False]]
