"""Test-time augmentation against what is known exactly: one view, mirror images, NumPy."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from models import make_model
from torch import Tensor

from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.box_head import BoxHead
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.suppression import Suppression
from maskrcnn_lit.model.tta import (
    View,
    WithViews,
    check_tta,
    detect_views,
    merge,
    mirror,
    view_sizes,
    with_mirrored,
)

MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # suppression, and options
    "plain": ("box", {}),
    "boxes": ("box", {"masks": False}),
    "cascade": ("box", {"cascade": (0.5, 0.6)}),
    "occluder": ("box", {"occluder": True}),
    "softmax": ("box", {"mask": {"activation": "softmax"}}),
    "mask_iou": ("box", {"mask_iou": True}),
    "mask_iou_matrix": ("matrix", {"mask_iou": True}),
    "points": ("box", {"mask_refine": "points"}),
    "points_mask": ("mask", {"mask_refine": "points"}),
    "containment": ("containment", {}),
}


def ready(nms: str = "box", **options: Any) -> MaskRCNN:
    """A model with random heads that are sure of something: many detections of several classes."""
    torch.manual_seed(3)
    model = make_model(**options).eval()
    for head in (model.box_head, *model.box_head.later):
        torch.nn.init.normal_(head.classes.weight, std=0.3)
        torch.nn.init.normal_(head.deltas.weight, std=0.05)
    if model.mask_head is not None:
        torch.nn.init.normal_(model.mask_head.logits.weight, std=1.0)
    model.set_suppression(Suppression(nms))
    return model


def pictures(widths: tuple[int, ...] = (64, 52), height: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width in widths]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", MODELS)
def test_one_view_gives_what_the_model_gives_to_the_last_bit(kind: str):
    model = ready(MODELS[kind][0], **MODELS[kind][1])
    batch = image_batch(pictures(), (1, 2), 64)
    with torch.no_grad():
        expected = model(batch).detections
    merged = detect_views(model, with_mirrored([batch])[:1])
    assert expected is not None
    assert expected["valid"].sum(1).min() > 5
    assert_equal(merged.detections, expected)
    assert_equal(merged.plain, expected)


def mirrored_result(found: dict[str, Tensor], widths: Tensor) -> dict[str, Tensor]:
    x1, y1, x2, y2 = found["boxes"].unbind(-1)
    boxes = torch.stack([widths - x2, y1, widths - x1, y2], -1) * found["valid"][..., None]
    masks = {"masks": found["masks"].flip(-1)} if "masks" in found else {}
    return found | {"boxes": boxes} | masks


@pytest.mark.parametrize("kind", ["plain", "boxes", "mask_iou_matrix", "points_mask"])
def test_a_mirrored_image_gives_the_mirrored_result(kind: str):
    """A convolution is not symmetric; the two views together are."""
    model = ready(MODELS[kind][0], **MODELS[kind][1])
    images = pictures()
    results = []
    for shown in (images, [np.ascontiguousarray(image[:, ::-1]) for image in images]):
        batches = [image_batch(shown, (1, 2), size) for size in (64, 96)]
        results.append(detect_views(model, with_mirrored(batches)))
    widths = torch.tensor([[64.0], [52 * 64 / 60]]).round()
    expected = mirrored_result(results[0].detections, widths)
    for name, value in results[1].detections.items():
        assert value.dtype == expected[name].dtype
        assert torch.allclose(value.double(), expected[name].double(), atol=2e-3), name
    assert not torch.allclose(results[1].plain["boxes"], results[0].plain["boxes"], atol=1)


def test_masks_are_averaged_over_views_and_mirrored_ones_mirrored_back():
    """Against NumPy: the mask head on the merged boxes in each view by itself."""
    model = ready()
    batches = [image_batch(pictures(), (1, 2), size) for size in (64, 96)]
    views = with_mirrored(batches)
    found = detect_views(model, views).detections
    total = np.zeros(found["masks"].shape)
    for view in views:
        with torch.no_grad():
            pyramid, _ = model.trunk(view.images, view.sizes)
            ratio = (view.sizes / views[0].sizes).numpy()[:, None, [1, 0, 1, 0]]
            boxes = found["boxes"].numpy() * ratio
            if view.mirrored:
                right = view.sizes[:, 1, None].numpy() - boxes[..., 0]
                left = view.sizes[:, 1, None].numpy() - boxes[..., 2]
                boxes = np.stack([left, boxes[..., 1], right, boxes[..., 3]], -1)
            own = model.predict_masks(pyramid, torch.from_numpy(boxes).float(), found["labels"])
        masks = own["masks"].numpy()
        total += masks[..., ::-1] if view.mirrored else masks
    valid = found["valid"].numpy()
    assert valid.sum() > 20
    assert np.abs(total / 4 - found["masks"].numpy())[valid].max() < 1e-4


def boxes_of(*rows: tuple[tuple[int, int, int, int], float, int]) -> dict[str, Tensor]:
    """Detections of one image, box, score and class each, and an empty slot."""
    return {
        "boxes": torch.tensor([[*(row[0] for row in rows), (0, 0, 0, 0)]], dtype=torch.float32),
        "scores": torch.tensor([[*(row[1] for row in rows), 0.0]]),
        "labels": torch.tensor([[*(row[2] for row in rows), 0]]),
        "valid": torch.tensor([[*(True for _ in rows), False]]),
    }


def test_the_union_of_views_is_merged_within_each_class():
    model = ready()
    first = boxes_of(((0, 0, 10, 10), 0.9, 1), ((20, 0, 30, 10), 0.4, 2))
    second = boxes_of(((0, 0, 10, 11), 0.8, 1), ((20, 0, 30, 11), 0.7, 2), ((0, 0, 10, 10), 0.3, 2))
    merged = merge(model, [first, second])
    count = int(merged["valid"].sum())
    assert merged["boxes"][0, :count].tolist() == [
        [0, 0, 10, 10],
        [20, 0, 30, 11],
        [0, 0, 10, 10],
    ]
    assert merged["scores"][0].tolist() == pytest.approx([0.9, 0.7, 0.3, 0, 0, 0, 0])
    assert merged["labels"][0].tolist() == [1, 2, 2, 0, 0, 0, 0]
    model.box_head.max_detections = 2
    assert merge(model, [first, second])["scores"].tolist() == [pytest.approx([0.9, 0.7])]
    model.set_suppression(Suppression("box", agnostic_nms=True))
    assert merge(model, [second, first])["labels"].tolist() == [[1, 2]]


def test_mirror_leaves_the_padding():
    images = torch.arange(12, dtype=torch.uint8).view(2, 1, 1, 6)
    sizes = torch.tensor([[1, 6], [1, 4]])
    assert mirror(images, sizes)[:, 0, 0].tolist() == [[5, 4, 3, 2, 1, 0], [9, 8, 7, 6, 10, 11]]
    assert torch.equal(mirror(mirror(images, sizes), sizes), images)


@pytest.mark.parametrize(
    ("kind", "image_size", "sizes"),
    [
        ("flip", 64, [64]),
        ("flip", (800, 1333), [(800, 1333)]),
        ("scales", 64, [64, 32, 96]),
        ("scales", 1024, [1024, 768, 1280]),
        ("scales", 32, [32, 64]),
        ("scales", (800, 1333), [(800, 1333), (576, 992), (1024, 1696)]),
        ("scales", 16_384, [16_384, 12_288]),
    ],
)
def test_sizes_of_views(kind: str, image_size: Any, sizes: list[Any]):
    assert view_sizes(kind, image_size) == sizes


@pytest.mark.parametrize(
    ("kind", "make", "part"),
    [
        ("rotate", ready, "tta=rotate"),
        ("flip", partial(torch.nn.Linear, 1, 1), "exported file"),
        ("scales", partial(ready, "soft"), "model.nms=soft"),
    ],
)
def test_what_it_does_not_go_with(kind: str, make: Callable[[], Any], part: str):
    model = make()
    with pytest.raises(UserError, match=part) as said:
        check_tta(kind, model)
    assert "\n" not in str(said.value)
    check_tta(None, model)


def test_a_box_head_that_cannot_merge_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = ready()
    monkeypatch.setattr(BoxHead, "suppress", None)
    with pytest.raises(UserError, match="BoxHead lacks"):
        check_tta("flip", model)


def test_the_model_of_an_evaluation_reads_other_sizes_and_measures_both():
    model = ready()
    images, asked = pictures(), []

    def read(ids: Any, size: Any) -> Any:
        asked.append((ids, size))
        return image_batch(images, ids, size)

    wrapped = WithViews(model, [64, 96], read)
    batch = image_batch(images, (7, 8), 64)
    boxes = torch.tensor([[[4.0, 4, 30, 40]], [[10.0, 20, 40, 50]]])
    output = wrapped(batch | {"boxes": boxes})
    assert asked == [([7, 8], 96)]
    assert wrapped.images == 2
    assert wrapped.seconds > wrapped.plain_seconds > 0
    both = [batch, image_batch(images, (7, 8), 96)]
    assert_equal(output.detections, detect_views(model, with_mirrored(both)).detections)
    with torch.no_grad():
        expected = model(batch)
        pyramid, _ = model.trunk(batch["images"], batch["image_sizes"])
        labels = model.classify(pyramid, boxes, batch["image_sizes"])
    assert_equal(output.plain, expected.detections)
    assert torch.equal(output.box_labels, labels)
    assert not output.losses
    assert wrapped(batch).box_labels is None


def test_a_view_keeps_what_the_batch_says():
    batch = image_batch(pictures(), (1, 2), 64)
    plain, other = with_mirrored([batch])
    assert isinstance(plain, View)
    assert (plain.mirrored, other.mirrored) == (False, True)
    assert plain.images is batch["images"]
    assert other.sizes is batch["image_sizes"]
    assert torch.equal(other.images, mirror(batch["images"], batch["image_sizes"]))
