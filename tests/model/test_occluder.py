"""The occluder branch against its equations written plainly, and what it changes in the model."""

from typing import Any

import numpy as np
import pytest
import torch
from models import make_batch, make_model
from torch import Tensor
from wrong_values import COUNT, FLAG, cases

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.occluder import (
    OTHERS,
    OccluderHead,
    balanced,
    boundaries,
    occluder_targets,
)

DOUBLE = torch.float64


def head(channels: int = 3) -> OccluderHead:
    """With weights far from those of the first step, and few units that are 0 for all inputs."""
    built = OccluderHead(channels=channels).double()
    for name, parameter in built.named_parameters():
        torch.nn.init.normal_(parameter, mean=0.3 * name.endswith("bias"), std=0.3)
    return built


def numbers(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def convolved(layer: Any, hidden: np.ndarray) -> np.ndarray:
    """3x3, at each pixel the sum over its neighbors, then ReLU: C p p -> C p p."""
    (weight, bias), side = numbers(layer), hidden.shape[-1]
    padded = np.pad(hidden, ((0, 0), (1, 1), (1, 1)))

    def sums(kernel: np.ndarray, y: int) -> list[float]:
        return [(padded[:, y : y + 3, x : x + 3] * kernel).sum() for x in range(side)]

    rows = [[sums(kernel, y) for y in range(side)] for kernel in weight]
    return (np.array(rows) + bias[:, None, None]).clip(min=0)


def doubled(deconv: Any, last: Any, hidden: np.ndarray) -> np.ndarray:
    """2x2 with stride 2: each pixel becomes four. Then ReLU and one channel: C p p -> 2p 2p."""
    (weight, bias), side = numbers(deconv), hidden.shape[-1]
    fine = np.zeros((weight.shape[1], 2 * side, 2 * side))
    for y in range(2 * side):
        for x in range(2 * side):
            fine[:, y, x] = hidden[:, y // 2, x // 2] @ weight[:, :, y % 2, x % 2] + bias
    row, offset = numbers(last)
    return np.tensordot(row[0, :, 0, 0], fine.clip(min=0), axes=1) + offset[0]


def test_it_is_the_equations_written_plainly():
    own, features = head(), torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    hidden = own(features)
    mask, boundary = own.predict(hidden)
    for r in range(2):
        expected = features[r].numpy()
        for layer in own.convs:
            expected = convolved(layer, expected)
        for found, by_hand in (
            (hidden[r], expected),
            (mask[r], doubled(own.mask_deconv, own.mask_logits, expected)),
            (boundary[r], doubled(own.boundary_deconv, own.boundary_logits, expected)),
        ):
            assert by_hand.std() > 0.01
            np.testing.assert_allclose(found.detach().numpy(), by_hand, rtol=1e-10, atol=1e-12)


def test_its_sizes_are_those_of_the_authors_code():
    built = OccluderHead(channels=256)
    assert [tuple(layer.weight.shape) for layer in built.convs] == [(256, 256, 3, 3)] * 4
    for deconv, last in (
        (built.mask_deconv, built.mask_logits),
        (built.boundary_deconv, built.boundary_logits),
    ):
        assert tuple(deconv.weight.shape) == (256, 256, 2, 2)
        assert tuple(last.weight.shape) == (1, 256, 1, 1)


def square(side: int = 8) -> Tensor:
    """With pixels 2 to 4 in both directions."""
    mask = torch.zeros(1, side, side, dtype=DOUBLE)
    mask[:, 2:5, 2:5] = 1
    return mask


def test_a_boundary_is_the_pixels_at_both_sides_of_a_contour():
    picture = [
        "........",
        "..###...",
        ".#####..",
        ".##.##..",
        ".#####..",
        "..###...",
        "........",
        "........",
    ]
    expected = torch.tensor([[float(c == "#") for c in row] for row in picture], dtype=DOUBLE)
    assert torch.equal(boundaries(0.7 * square())[0], expected)
    half = torch.zeros(1, 6, 6)
    half[:, :, :3] = 1
    assert boundaries(half)[0].tolist() == [[0, 0, 1, 1, 0, 0]] * 6, (
        "the edge of a region is not a contour"
    )
    for value in (0.0, 0.4, 1.0):
        assert not boundaries(torch.full((1, 6, 6), value)).any()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    probability = logits.sigmoid()
    return -(targets * probability.log() + (1 - targets) * (1 - probability).log())


def test_the_losses_are_means_with_as_much_weight_without_an_occluder_as_with_one():
    """Of five positives, one has an occluder, three have none, and of the last nothing counts."""
    own, hidden = head(), torch.randn(6, 3, 4, 4, dtype=DOUBLE)
    targets, counted = torch.zeros(6, 8, 8, dtype=DOUBLE), torch.ones(6, 8, 8, dtype=DOUBLE)
    targets[[1, 4, 5]] = square()
    counted[5], counted[1, :, 6:] = 0, 0.25
    positive = torch.tensor([True, True, True, True, False, True])
    weight = balanced(targets, counted, positive)
    assert weight.tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3, 0, 0])
    losses, size = own.losses(hidden, targets, counted, positive)
    assert list(losses) == ["occluder", "occluder_boundary"]
    assert size.item() == pytest.approx(2)
    truths = (targets, boundaries(targets))
    for loss, logits, truth, factor in zip(
        losses.values(), own.predict(hidden), truths, (0.25, 0.5), strict=True
    ):
        pixels = (cross_entropy(logits, truth) * counted).sum((1, 2)) / counted.sum((1, 2))
        expected = factor * (pixels[1] + pixels[[0, 2, 3]].mean()) / 2
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_an_occluder_there_is_no_loss_and_where_they_are_many_all_weigh_the_same():
    empty, ones = torch.zeros(3, 8, 8, dtype=DOUBLE), torch.ones(3, 8, 8, dtype=DOUBLE)
    positive = torch.ones(3, dtype=torch.bool)
    losses, size = head().losses(torch.randn(3, 3, 4, 4, dtype=DOUBLE), empty, ones, positive)
    assert [loss.item() for loss in (*losses.values(), size)] == [0, 0, 0]
    assert balanced(torch.cat([square(), square(), empty[:1]]), ones, positive).tolist() == [1] * 3


def test_its_gradients_are_those_of_finite_differences():
    own = head()
    features = torch.randn(3, 3, 4, 4, dtype=DOUBLE, requires_grad=True)
    targets = torch.cat([square(), 0 * square(), square()])
    counted = torch.rand(3, 8, 8, dtype=DOUBLE)
    positive = torch.tensor([True, True, False])

    def loss(features: Tensor) -> Tensor:
        losses, _ = own.losses(own(features), targets, counted, positive)
        return torch.stack(list(losses.values()))

    assert torch.autograd.gradcheck(loss, features)
    gradient = torch.autograd.grad(loss(features).sum(), features)[0]
    assert gradient[0].any()
    assert gradient[1].any()
    assert not gradient[2].any()


def scene() -> Batch:
    """Two images of three boxes, each a full mask but for the last ones: discs of radius 4."""
    boxes = torch.tensor(
        [
            [[0.0, 0, 16, 16], [8, 0, 24, 8], [12, 12, 20, 20], [0, 0, 0, 0]],
            [[0, 0, 16, 16], [40, 40, 48, 48], [4, 4, 12, 12], [0, 0, 0, 0]],
        ]
    )
    valid = boxes[..., 2] > 0
    places = torch.arange(28) + 0.5 - 14
    disc = (places**2 + places[:, None] ** 2 < 14**2).to(torch.uint8)
    masks = valid[..., None, None].expand(-1, -1, 28, 28).to(torch.uint8).clone()
    masks[:, 2] = disc
    return {
        "boxes": boxes,
        "valid": valid,
        "crowd": torch.zeros_like(valid),
        "masks": masks,
        "mask_boxes": boxes.clone(),
    }


REGIONS = torch.tensor([[0.0, 0, 16, 16], [2, 2, 18, 18], [36, 36, 52, 52], [6, 6, 22, 22]])
OWN = torch.tensor([0, 4, 5, 2])  # into 2 images of 4 slots


def painted(region: list[float], batch: Batch, image: int, slots: list[int]) -> Tensor:
    """The union of masks at the centers of 32 x 32 pixels of a region, one after the other."""
    side = 32
    found = torch.zeros(side, side)
    for row in range(side):
        for column in range(side):
            x = region[0] + (column + 0.5) / side * (region[2] - region[0])
            y = region[1] + (row + 0.5) / side * (region[3] - region[1])
            for slot in slots:
                x1, y1, x2, y2 = batch["mask_boxes"][image, slot].tolist()
                if x1 <= x < x2 and y1 <= y < y2:
                    at = int((y - y1) / (y2 - y1) * 28), int((x - x1) / (x2 - x1) * 28)
                    found[row, column] = max(found[row, column], batch["masks"][image, slot][at])
    return found


def assert_painted(found: Tensor, expected: Tensor) -> None:
    """Masks are read bilinearly, so pixels at their contours may differ."""
    inner = boundaries(expected[None])[0] == 0
    assert torch.equal((found >= 0.5)[inner], (expected >= 0.5)[inner])
    assert ((found >= 0.5).float() - expected).abs().mean() < 0.03


def test_the_target_is_the_union_of_the_other_objects_of_the_image_in_the_region():
    batch = scene()
    targets, counted = occluder_targets(REGIONS, OWN, batch, 32)
    assert targets.shape == counted.shape == (4, 32, 32)
    assert (counted == 1).all()
    assert targets.min() >= 0
    assert targets.max() <= 1
    for r, (image, others) in enumerate([(0, [1, 2]), (1, [2]), (1, []), (0, [0, 1])]):
        assert_painted(targets[r], painted(REGIONS[r].tolist(), batch, image, others))
    assert [target.any().item() for target in targets] == [True, True, False, True]


def test_crowds_and_objects_without_a_mask_may_be_occluders_or_not():
    plain = scene()
    crowd, boxed = dict(plain), dict(plain)
    crowd["crowd"], crowd["valid"] = plain["crowd"].clone(), plain["valid"].clone()
    crowd["crowd"][0, 1], crowd["valid"][0, 1] = True, False
    boxed["masked"] = plain["valid"].clone()
    boxed["masked"][0, 1] = False
    disc, block = (painted(REGIONS[0].tolist(), plain, 0, [slot]) for slot in (2, 1))
    for batch in (crowd, boxed):
        targets, counted = occluder_targets(REGIONS[:1], OWN[:1], batch, 32)
        assert_painted(targets[0], disc)
        assert_painted(1 - counted[0], block)


def test_of_many_others_those_that_cover_most_of_the_region_are_its_occluders():
    """20 bars of 1 to 20 pixels' width, one below the other: the last 16 of them."""
    count = 20
    rows, widths = torch.arange(count) * 2.0, torch.arange(count) + 1.0
    boxes = torch.stack([0 * rows, rows, widths, rows + 2], dim=1)
    boxes = torch.cat([torch.tensor([[0.0, 0, 40, 40]]), boxes])[None]
    filled = torch.ones(1, count + 1, dtype=torch.bool)
    batch = {
        "boxes": boxes,
        "valid": filled,
        "crowd": ~filled,
        "masks": torch.ones(1, count + 1, 28, 28, dtype=torch.uint8),
        "mask_boxes": boxes,
    }
    targets, _ = occluder_targets(boxes[0, :1], torch.tensor([0]), batch, 40)
    seen = (targets[0] >= 0.5).any(dim=1).view(count, 2).all(dim=1)
    assert seen.tolist() == [False] * (count - OTHERS) + [True] * OTHERS


def lively(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    model = make_model(**options)
    for layer in (model.rpn.objectness, model.box_head.classes, model.mask_head.logits):
        torch.nn.init.normal_(layer.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def overlapping(objects: int = 2) -> Batch:
    """With objects of which each covers a part of the next."""
    batch = make_batch(objects=objects)
    for n in range(objects):
        corner = 8.0 + 10 * n
        batch["boxes"][:, n] = torch.tensor([corner, corner, corner + 24, corner + 24])
    batch["mask_boxes"] = batch["boxes"].clone()
    return batch


ALL = {"mask_iou": True, "mask_refine": "points", "cascade": (0.5, 0.6, 0.7)}
NEW = ["occluder", "occluder_boundary"]


@pytest.mark.parametrize("parts", [{}, ALL], ids=["alone", "all_parts"])
def test_without_it_the_model_is_the_same_and_with_it_all_but_the_masks_are(parts: dict[str, Any]):
    plain, branched = lively(**parts), lively(occluder=True, **parts)
    state = branched.state_dict()
    assert {name for name in state if not name.startswith("occluder.")} == set(plain.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    batch = overlapping()
    expected, found = plain(batch), branched(batch)
    assert list(found.losses) == [*expected.losses, *NEW]
    for name, loss in expected.losses.items():
        assert torch.equal(found.losses[name], loss) != name.startswith("mask"), name
    assert all(found.losses[name] > 0 and found.counts[name] > 0 for name in NEW)
    sum(found.losses.values()).backward()
    for name, parameter in branched.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or not name.startswith("occluder."), name


def test_the_mask_head_sees_the_sum_of_both_features_and_the_mask_iou_head_the_region():
    model = lively(occluder=True, mask_iou=True)
    seen: dict[str, Any] = {}
    for name in ("occluder", "mask_head", "mask_iou"):
        getattr(model, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    for batch in (overlapping(), without_targets(overlapping())):
        model.train("boxes" in batch)(batch)
        features, hidden = seen["occluder"]
        assert hidden.shape == features.shape
        assert hidden.any()
        assert torch.equal(seen["mask_head"][0], features + hidden)
        assert seen["mask_iou"][0] is features


def without_targets(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in TARGET_KEYS}


def test_detections_differ_in_their_masks_alone():
    plain, branched = lively().eval(), lively(occluder=True).eval()
    batch = without_targets(make_batch())
    with torch.no_grad():
        expected, found, static = (
            plain(batch).detections,
            branched(batch).detections,
            branched(batch, True).detections,
        )
    valid = expected["valid"]
    assert valid.sum() > 5
    for key in ("boxes", "scores", "labels", "valid"):
        assert torch.equal(found[key], expected[key])
    assert not torch.allclose(found["masks"][valid], expected["masks"][valid])
    torch.testing.assert_close(
        static["masks"][:, : valid.shape[1]][valid], found["masks"][valid], atol=1e-5, rtol=0
    )


def test_static_shapes_give_the_same_losses():
    model, batch = lively(occluder=True), overlapping()
    found, static = model(batch), model(batch, True)
    for name in NEW:
        torch.testing.assert_close(static.losses[name], found.losses[name])
        torch.testing.assert_close(static.counts[name], found.counts[name])


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("objects", [0, 1])
def test_a_step_without_occluders_has_a_loss_of_zero_and_a_gradient_everywhere(
    objects: int, static_shapes: bool
):
    model = lively(occluder=True)
    output = model(make_batch(objects=objects), static_shapes)
    assert all(output.losses[name] == 0 and output.counts[name] == 0 for name in NEW)
    sum(output.losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_void_pixels_have_no_loss():
    model, batch = lively(occluder=True), overlapping()
    expected = model(batch)
    batch["void"] = torch.zeros(2, 64, 64, dtype=torch.uint8)
    same = model(batch)
    for name in NEW:
        torch.testing.assert_close(same.losses[name], expected.losses[name])
    batch["void"][1] = 1  # the other image decides
    other = model(batch)
    assert all(0 < other.counts[name] < expected.counts[name] for name in NEW)
    batch["void"][:] = 1
    assert all(model(batch).losses[name] == 0 for name in NEW)


def test_its_losses_fall_on_one_batch_that_it_sees_again_and_again():
    """The heads alone learn, from the features of a random backbone and one sample of regions."""
    model, batch = make_model(occluder=True, channels=32), overlapping(3)
    for n, gray in enumerate((200, 120, 60)):
        x1, y1, x2, y2 = batch["boxes"][0, n].int().tolist()
        batch["images"][:, :, y1:y2, x1:x2] = gray
    with torch.no_grad():
        pyramid, prediction = model.trunk(batch["images"], batch["image_sizes"])
        anchors = model.anchors(pyramid, batch["images"].shape[-2:])
        _, regions = model.targets(prediction, anchors, batch)
    steps = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        losses, _, _ = model.head_losses(pyramid, regions, batch)
        steps.zero_grad()
        sum(losses.values()).backward()
        steps.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in (*NEW, "mask"):
        assert 0 < history[-1][name] < 0.3 * history[0][name], name


@pytest.mark.parametrize(("option", "value"), cases(channels=COUNT, occluder=FLAG))
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError, match=r"^model\.occluder.* must be "):
        OccluderHead(channels=value) if option == "channels" else make_model(occluder=value)


def test_half_precision_features_give_float32_logits():
    own, features = head().float(), torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = own.predict(own(features.bfloat16()))
    for found, exact in zip(logits, own.predict(own(features)), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, atol=0.1, rtol=0.1)
