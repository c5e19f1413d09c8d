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

from maskrcnn_lit.model.postprocess import mask_to_rle, original_boxes, run_lengths, to_original


def encoded(image: np.ndarray) -> dict[str, Any]:
    return pycocotools.mask.encode(np.asfortranarray(image.astype(np.uint8)))


def pasted(mask: torch.Tensor, box: torch.Tensor, height: int, width: int) -> dict[str, Any]:
    """Torchvision's way: the whole image."""
    return encoded((paste_masks_in_image(mask[None, None], box[None], (height, width))[0, 0] > 0.5).numpy())


def probabilities(kind: str, seed: int, size: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, size, generator=generator)
    if kind == "noise":
        return noise
    if kind in ("full", "half"):  # exactly the threshold is background
        return torch.full((size, size), 1.0 if kind == "full" else 0.5)
    if kind == "empty":
        return noise * 0.4
    smooth = torch.nn.functional.avg_pool2d(noise[None, None], 7, 1, 3)[0, 0]
    return ((smooth - smooth.mean()) * 20).sigmoid()


kinds = st.sampled_from(["noise", "blob", "blob", "full", "half", "empty"])
seeds = st.integers(0, 2**31)


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[list[float], int, int]:
    """Inside, over the border on any side, of a pixel or less, the whole image, its whole height or width."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    spans = []
    for side in (width, height):
        low = draw(st.floats(-30, side - 0.5, width=32))
        high = draw(st.floats(max(low, 0.0), side + 30, width=32))
        spans.append(
            draw(st.sampled_from([(low, high), (0.0, float(side)), (low, max(low, 0.0) + 0.25), (-30.0, side + 30.0)]))
        )
    return [spans[0][0], spans[1][0], spans[0][1], spans[1][1]], height, width


@given(place=boxes_in_images(), kind=kinds, seed=seeds)
@settings(max_examples=600, deadline=None)
def test_masks_equal_torchvision_bit_for_bit(place: tuple[list[float], int, int], kind: str, seed: int):
    corners, height, width = place
    box, mask = torch.tensor(corners), probabilities(kind, seed)
    assert mask_to_rle(mask, box, height, width) == pasted(mask, box, height, width)


def test_masks_of_large_boxes_equal_torchvision():
    found = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(2, generator=generator) * 300
        box = torch.cat([corner, corner + torch.rand(2, generator=generator) * 300])
        mask = probabilities("blob", seed)
        ours = mask_to_rle(mask, box, 427, 640)
        assert ours == pasted(mask, box, 427, 640)
        found += pycocotools.mask.area(ours) > 100
    assert found > 40


@pytest.mark.parametrize(
    "box", [[-50, 5, -20, 20], [70, 5, 90, 20], [5, -50, 20, -20], [5, 70, 20, 90], [-9, -9, -5, -5]]
)
def test_a_box_outside_of_the_image_is_an_empty_mask(box: list[float]):
    rle = mask_to_rle(torch.ones(28, 28), torch.tensor(box, dtype=torch.float32), 60, 50)
    assert rle == encoded(np.zeros((60, 50)))


def test_columns_that_touch_are_one_run():
    """The whole height: one column's run ends where the next one's begins."""
    rle = mask_to_rle(torch.ones(28, 28), torch.tensor([10.0, -40, 20, 100]), 50, 40)
    image = pycocotools.mask.decode(rle)
    columns = image.any(axis=0).nonzero()[0]
    assert image[:, columns].all() and len(columns) >= 10
    crop = np.ones((50, 7), dtype=bool)
    assert run_lengths(crop, 3, 0, 50, 40) == [150, 350, 1500]


@st.composite
def crops_in_images(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int, int]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    rows, columns = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    share = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    crop = np.random.default_rng(draw(seeds)).random((rows, columns)) < share
    return crop, left, top, height, width


@given(place=crops_in_images())
@settings(max_examples=500, deadline=None)
def test_run_lengths_equal_pycocotools(place: tuple[np.ndarray, int, int, int, int]):
    crop, left, top, height, width = place
    image = np.zeros((height, width), dtype=bool)
    image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    counts = run_lengths(crop, left, top, height, width)
    assert sum(counts) == height * width
    size = {"size": [height, width], "counts": counts}
    assert pycocotools.mask.frPyObjects(size, height, width) == encoded(image)


def test_run_lengths_by_hand():
    crop = np.array([[1, 0], [1, 1]], dtype=bool)
    # 4 x 3 image, crop at column 1, row 1; down the columns: 0000 0110 0010
    assert run_lengths(crop, 1, 1, 4, 3) == [5, 2, 3, 1, 1]
    assert run_lengths(np.zeros((2, 2), dtype=bool), 1, 1, 4, 3) == [12]
    assert run_lengths(np.ones((4, 3), dtype=bool), 0, 0, 4, 3) == [0, 12]
    assert run_lengths(np.zeros((0, 0), dtype=bool), 0, 0, 4, 3) == [12]


def test_boxes_go_back_to_the_original_image():
    scale = torch.tensor([0.5, 0.25])  # y, x
    boxes = original_boxes(torch.tensor([[10.0, 10, 20, 20], [-3, 90, 30, 200]]), scale, 100, 110)
    assert boxes.tolist() == [[40, 20, 80, 40], [0, 100, 110, 100]]


def detections() -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([[[2.0, 4, 10, 20], [4, 4, 8, 8], [0, 0, 0, 0]], [[0.0, 0, 30, 10], [0] * 4, [0] * 4]]),
        "scores": torch.tensor([[0.9, 0.4, 0], [0.8, 0, 0]]),
        "labels": torch.tensor([[2, 1, 0], [3, 0, 0]]),
        "masks": torch.ones(2, 3, 28, 28),
        "valid": torch.tensor([[True, True, False], [True, False, False]]),
    }


def test_to_original():
    batch = {
        "image_ids": torch.tensor([7, 2**40]),
        "scales": torch.tensor([[0.5, 0.5], [2.0, 1.0]]),
        "original_sizes": torch.tensor([[50, 60], [5, 30]]),
    }
    first, second = to_original(detections(), batch)
    assert (first["image_id"], second["image_id"]) == (7, 2**40)
    assert first["boxes"].tolist() == [[4, 8, 20, 40], [8, 8, 16, 16]]
    assert second["boxes"].tolist() == [[0, 0, 30, 5]]
    assert first["boxes"].dtype == np.float32
    assert first["labels"].tolist() == [2, 1] and second["labels"].tolist() == [3]
    assert first["scores"].tolist() == pytest.approx([0.9, 0.4])
    assert [len(first["masks"]), len(second["masks"])] == [2, 1]
    assert first["masks"][0]["size"] == [50, 60] and isinstance(first["masks"][0]["counts"], bytes)
    inside = pycocotools.mask.decode(first["masks"][0])
    assert inside[9:39, 5:19].all() and inside.sum() <= 35 * 19
    assert pycocotools.mask.decode(second["masks"][0]).all(), "a full mask over the whole image"


def test_an_image_without_detections():
    empty = detections()
    empty["valid"][:] = False
    sizes = {"scales": torch.ones(2, 2), "original_sizes": torch.full((2, 2), 20), "image_ids": torch.tensor([1, 2])}
    for image in to_original(empty, sizes):
        assert image["boxes"].shape == (0, 4) and image["masks"] == [] and len(image["scores"]) == 0


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
    found = {"boxes": boxes, "scores": torch.ones(1, count), "labels": torch.ones(1, count, dtype=torch.int64),
             "masks": masks - masks.mean() + 0.5, "valid": torch.ones(1, count, dtype=torch.bool)}
    return to_original(found, batch)[0]["masks"]
def kilobytes(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))
found(10, 2)
open("/proc/self/clear_refs", "w").write("5")  # the peak is that of this process, from here on (Linux)
before = kilobytes("VmRSS")
assert len(found(1000, 100)) == 100
print((kilobytes("VmHWM") - before) / 1024)
"""


def test_memory_is_that_of_one_mask():
    """100 detections on 12 megapixels, one of them as large as the image. As canvases: 4.8 GB of floats, 1.2 GB of
    bytes; one canvas of floats is 48 MB."""
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert 20 < float(run.stdout) < 200  # MB
