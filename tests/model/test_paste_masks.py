"""Each mask's RLE is the one of torchvision's paste, threshold and pycocotools' encode, bit for
bit.
"""

import subprocess
import sys
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_lit.model import paste_masks as run_lengths
from maskrcnn_lit.model.paste_masks import masks_to_rle


def encoded(image: np.ndarray) -> dict[str, Any]:
    return pycocotools.mask.encode(np.asfortranarray(image.astype(np.uint8)))


def pasted(
    masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int
) -> list[dict[str, Any]]:
    """Torchvision's way: the whole image."""
    return [
        encoded((paste_masks_in_image(m[None, None], b[None], (height, width))[0, 0] > 0.5).numpy())
        for m, b in zip(masks, boxes, strict=True)
    ]


def probabilities(kind: str, seed: int, size: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, size, generator=generator)
    if kind == "noise":
        return noise
    if kind in ("full", "half"):  # exactly the threshold is background
        return torch.full((size, size), 1.0 if kind == "full" else 0.5)
    if kind == "empty":
        return noise * 0.4
    if kind == "near":  # within some units in the last place of the threshold
        return 0.5 + (noise - 0.5) * 1e-6
    if kind == "coarse":  # as of a model in bfloat16: many values are the threshold itself
        return (noise * 8).round() / 8
    smooth = torch.nn.functional.avg_pool2d(noise[None, None], 7, 1, 3)[0, 0]
    return ((smooth - smooth.mean()) * 20).sigmoid()


kinds = st.sampled_from(["noise", "blob", "blob", "full", "half", "empty", "near", "coarse"])
seeds = st.integers(0, 2**31)


@st.composite
def boxes_in(draw: st.DrawFn, height: int, width: int) -> list[float]:
    """Inside, over the border on any side, of a pixel or less or none, the whole image, its whole
    height or width.
    """
    spans = []
    for side in (width, height):
        low = draw(st.floats(-30, side - 0.5, width=32))
        high = draw(st.floats(max(low, 0.0), side + 30, width=32))
        tiny = (low, max(low, 0.0) + 0.25)
        whole = [(0.0, float(side)), (-30.0, side + 30.0), (float(side), float(side)), (0.0, 0.0)]
        spans.append(draw(st.sampled_from([(low, high), tiny, *whole])))
    return [spans[0][0], spans[1][0], spans[0][1], spans[1][1]]


@st.composite
def images(
    draw: st.DrawFn, sides: st.SearchStrategy[int]
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    height, width, size = draw(sides), draw(sides), draw(st.sampled_from([28, 28, 28, 14, 1, 56]))
    count = draw(st.integers(1, 4))
    boxes = torch.tensor([draw(boxes_in(height, width)) for _ in range(count)])
    masks = torch.stack([probabilities(draw(kinds), draw(seeds), size) for _ in range(count)])
    return masks, boxes, height, width


@pytest.mark.long
@given(image=images(st.integers(1, 90)))
@settings(max_examples=600, deadline=None)
def test_masks_equal_torchvision_bit_for_bit(image: tuple[torch.Tensor, torch.Tensor, int, int]):
    assert masks_to_rle(*image) == pasted(*image)


@given(image=images(st.integers(100, 1500)))
@settings(max_examples=60, deadline=None)
def test_masks_of_large_images_equal_torchvision_bit_for_bit(
    image: tuple[torch.Tensor, torch.Tensor, int, int],
):
    assert masks_to_rle(*image) == pasted(*image)


def scene(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat(
        [corner, corner + 2 + torch.rand(count, 2, generator=generator) * 0.4 * width], dim=1
    )
    return torch.stack([probabilities("blob", seed) for seed in range(count)]), boxes, height, width


def test_many_masks_in_chunks(monkeypatch: pytest.MonkeyPatch):
    image = scene(60, 427, 640)
    expected = pasted(*image)
    assert sum(pycocotools.mask.area(rle) > 100 for rle in expected) > 40
    for columns in (run_lengths.CHUNK_COLUMNS, 100, 1):
        monkeypatch.setattr(run_lengths, "CHUNK_COLUMNS", columns)
        assert masks_to_rle(*image) == expected


@pytest.mark.long
@pytest.mark.parametrize("kind", ["noise", "blob", "coarse"])
def test_every_size_of_a_box(kind: str):
    """Where pixels lie on nodes, or a hair beside them, too: sizes that 30 divides, or that divide
    30 or 90.
    """
    for size in range(1, 280):
        masks = torch.stack([probabilities(kind, size), probabilities(kind, 1000 + size)])
        boxes = torch.tensor([[3.0, 2, 3 + size, 32], [2.0, 3, 32, 3 + size]])
        image = (masks, boxes, 300, 300)
        assert masks_to_rle(*image) == pasted(*image), size


def test_a_pixels_share_of_a_node_is_rounded_once_as_in_torch():
    """A scale that is off by its last bit moves a coordinate by more than the tolerance."""
    sides = torch.arange(1, 5000)
    corners = torch.stack([sides * 0, sides * 0, sides - 1, sides - 1], dim=1)
    share = run_lengths._columns(corners, 30, 1)[3].numpy()
    assert (share == (np.float32(30) / sides.numpy().astype(np.float32))).all()


def test_few_columns_are_made_of_pixels(monkeypatch: pytest.MonkeyPatch):
    """What is near to the threshold goes the slow way, the rest must not."""
    slow: list[int] = []

    def counted(*arguments: Any) -> torch.Tensor:
        mask = arguments[2]
        slow.extend(mask.tolist())
        return from_pixels(*arguments)

    from_pixels = run_lengths._changes_from_pixels
    monkeypatch.setattr(run_lengths, "_changes_from_pixels", counted)
    image = scene(60, 427, 640)
    assert masks_to_rle(*image) == pasted(*image)
    assert len(slow) < 20
    slow.clear()
    masks_to_rle(torch.full((3, 28, 28), 0.5), *scene(3, 427, 640)[1:])
    assert set(slow) == {0, 1, 2}
    assert len(slow) > 200


@pytest.mark.parametrize(
    "box",
    [[-50, 5, -20, 20], [70, 5, 90, 20], [5, -50, 20, -20], [5, 70, 20, 90], [-9, -9, -5, -5]],
)
@pytest.mark.parametrize("value", [1.0, 0.5 + 1e-7])
def test_a_box_outside_of_the_image_is_an_empty_mask(box: list[float], value: float):
    rles = masks_to_rle(
        torch.full((1, 28, 28), value), torch.tensor([box], dtype=torch.float32), 60, 50
    )
    assert rles == [encoded(np.zeros((60, 50)))]


def test_what_is_no_number_is_background():
    masks = torch.stack([probabilities("blob", 0), torch.full((28, 28), torch.nan)])
    masks[0, 10:14, 10:14] = torch.nan
    boxes = torch.tensor([[10.0, 10, 70, 60], [10, 10, 70, 60]])
    assert masks_to_rle(masks, boxes, 90, 80) == pasted(masks, boxes, 90, 80)


def test_half_precision_is_read_as_float32():
    masks, boxes, height, width = scene(8, 100, 120)
    rles = masks_to_rle(masks.bfloat16(), boxes, height, width)
    assert rles == pasted(masks.bfloat16().float(), boxes, height, width)


def test_no_masks():
    assert masks_to_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), 10, 10) == []


def test_columns_that_touch_are_one_run():
    """The whole height: one column's run ends where the next one's begins."""
    rle = masks_to_rle(torch.ones(1, 28, 28), torch.tensor([[10.0, -40, 20, 100]]), 50, 40)[0]
    image = pycocotools.mask.decode(rle)
    columns = image.any(axis=0).nonzero()[0]
    assert image[:, columns].all()
    assert len(columns) >= 10
    left, after = int(columns[0]), int(columns[-1]) + 1
    counts = [50 * left, 50 * (after - left), 50 * (40 - after)]
    assert rle == pycocotools.mask.frPyObjects({"size": [50, 40], "counts": counts}, 50, 40)


def as_image(rle: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(pycocotools.mask.decode(rle))


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920)])
def test_a_gpu_gives_the_same_but_for_values_at_the_threshold(height: int, width: int):
    masks, boxes, *size = scene(100, height, width)
    ours, there = masks_to_rle(masks, boxes, *size), masks_to_rle(masks.cuda(), boxes, *size)
    for mask, box, one, other in zip(masks, boxes, ours, there, strict=True):
        if one != other:
            values = paste_masks_in_image(mask[None, None], box[None], (height, width))[0, 0]
            assert (values[as_image(one) != as_image(other)] - 0.5).abs().max() <= 1e-6


LARGE = """
import torch
from maskrcnn_lit.model.postprocess import to_original
torch.set_num_threads(1)
def found(side, count):
    corner = torch.rand(1, count, 2) * torch.tensor([3.0, 2.0]) * side
    boxes = torch.cat([corner, corner + 0.4 * side], dim=-1)
    boxes[0, 0] = torch.tensor([0.0, 0, 4 * side, 3 * side])
    masks = torch.nn.functional.avg_pool2d(torch.rand(count, 1, 28, 28), 7, 1, 3)[:, 0][None]
    batch = {"image_ids": torch.ones(1, dtype=torch.int64), "scales": torch.ones(1, 2),
             "original_sizes": torch.tensor([[3 * side, 4 * side]])}
    found = {"boxes": boxes, "scores": torch.ones(1, count),
             "labels": torch.ones(1, count, dtype=torch.int64),
             "masks": masks - masks.mean() + 0.5, "valid": torch.ones(1, count, dtype=torch.bool)}
    return to_original(found, batch)[0]["masks"]
def kilobytes(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))
found(10, 2)
open("/proc/self/clear_refs", "w").write("5")  # the peak of this process from here on (Linux)
before = kilobytes("VmRSS")
assert len(found(1000, 100)) == 100
print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.process
def test_memory_is_that_of_one_mask():
    """100 detections on 12 megapixels, one of them as large as the image. As canvases: 4.8 GB of
    floats, 1.2 GB of bytes; one canvas of floats is 48 MB.
    """
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert 20 < float(run.stdout) < 200  # MB
