"""The point head against its equations written plainly, and what it changes in the model."""

from typing import Any

import numpy as np
import pytest
import torch
from models import make_batch, make_model
from torch import Tensor
from wrong_values import COUNT, cases

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.losses import mask_loss
from maskrcnn_lit.model.mask_head import mask_targets
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.point_head import (
    STEPS,
    TEST_POINTS,
    TRAIN_POINTS,
    PointHead,
    enlarged,
    logits_at,
    places,
)
from maskrcnn_lit.model.roi_align import RoIs
from maskrcnn_lit.model.suppression import Suppression

DOUBLE = torch.float64


def head(channels: int = 4, num_classes: int = 5) -> PointHead:
    """With weights far from those of the first step."""
    built = PointHead(channels=channels, num_classes=num_classes).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built


def by_hand(own: PointHead, features: np.ndarray, coarse: float, label: int) -> float:
    """Section 4.1, for one point: each of three layers, and the last one, sees the coarse logit."""
    hidden = np.append(features, coarse)
    for layer in own.fcs:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        hidden = np.append((weight @ hidden + bias).clip(min=0), coarse)
    last = own.logits
    return float(last.weight.detach().numpy()[label - 1] @ hidden + last.bias[label - 1].item())


def test_it_is_the_equations_of_the_paper():
    own, labels = head(), torch.tensor([1, 5, 2])
    features, coarse = torch.randn(3, 6, 4, dtype=DOUBLE), torch.randn(3, 6, dtype=DOUBLE)
    found = own(features, coarse, labels)
    for r, label in enumerate(labels.tolist()):
        expected = [
            by_hand(own, features[r, n].numpy(), coarse[r, n].item(), label) for n in range(6)
        ]
        assert found[r].tolist() == pytest.approx(expected, rel=1e-12)


def test_its_sizes_are_those_of_the_paper():
    built = PointHead(channels=256, num_classes=80)
    layers = [*built.fcs, built.logits]
    assert [tuple(layer.weight.shape) for layer in layers] == [*[(256, 257)] * 3, (80, 257)]
    assert (TRAIN_POINTS, TEST_POINTS, 28 * 2**STEPS) == (196, 784, 224)


def test_its_gradients_are_those_of_finite_differences():
    own, labels = head(), torch.tensor([1, 4])
    features = torch.randn(2, 5, 4, dtype=DOUBLE, requires_grad=True)
    masks = torch.randn(2, 6, 6, dtype=DOUBLE, requires_grad=True)
    points, targets = torch.rand(2, 5, 2, dtype=DOUBLE), torch.rand(2, 5, dtype=DOUBLE)
    positive = torch.tensor([True, True])

    def loss(features: Tensor, masks: Tensor) -> Tensor:
        logits = own(features, logits_at(masks, points), labels)
        return own.losses(logits, targets, positive)["mask_points"]

    assert torch.autograd.gradcheck(loss, (features, masks))


def bilinear(mask: np.ndarray, x: float, y: float) -> float:
    """At x, y from 0 to 1, where the first cell's center is at 0.5 / m."""
    side = len(mask)
    column, row = (min(max(v * side - 0.5, 0), side - 1) for v in (x, y))
    left, top = int(column), int(row)
    right, bottom = min(left + 1, side - 1), min(top + 1, side - 1)
    a, b = column - left, row - top
    above = (1 - a) * mask[top, left] + a * mask[top, right]
    return (1 - b) * above + b * ((1 - a) * mask[bottom, left] + a * mask[bottom, right])


def test_the_mask_head_is_read_bilinearly():
    masks, points = torch.randn(2, 6, 6, dtype=DOUBLE), torch.rand(2, 30, 2, dtype=DOUBLE)
    points[:, 0], points[:, 1] = 0, 1
    found = logits_at(masks, points)
    for r in range(2):
        expected = [bilinear(masks[r].numpy(), x, y) for x, y in points[r].tolist()]
        assert found[r].tolist() == pytest.approx(expected, abs=1e-12)
    fine = enlarged(masks, 24)
    center = (torch.arange(24, dtype=DOUBLE) + 0.5) / 24
    grid = torch.stack(torch.meshgrid(center, center, indexing="xy"), -1).view(1, -1, 2)
    torch.testing.assert_close(fine.flatten(1), logits_at(masks, grid.expand(2, -1, -1)))


def test_the_finest_map_is_read_bilinearly_at_the_pixels_of_a_point():
    model = make_model().double()
    finest = torch.randn(2, 16, 12, 20, dtype=DOUBLE)  # of 48 x 80 pixels
    boxes = torch.tensor([[3.0, 5, 70, 40], [0, 0, 80, 48]], dtype=DOUBLE)
    points = torch.rand(2, 7, 2, dtype=DOUBLE)
    found = model.features_at([finest], RoIs(boxes, torch.tensor([1, 0]), 1), points)
    assert found.shape == (2, 7, 16)
    for r, image in enumerate((1, 0)):
        x1, y1, x2, y2 = boxes[r].tolist()
        for n, (x, y) in enumerate(points[r].tolist()):
            at = torch.tensor([[[(x1 + x * (x2 - x1)) / 80, (y1 + y * (y2 - y1)) / 48]]])
            grid = (2 * at - 1)[None].double()
            expected = torch.nn.functional.grid_sample(
                finest[image][None], grid, padding_mode="border", align_corners=False
            )
            torch.testing.assert_close(found[r, n], expected[0, :, 0, 0], rtol=1e-6, atol=1e-6)


def test_points_of_training_are_uncertain_ones_and_a_quarter_anywhere():
    """The mask is sure but for a stripe at its left."""
    coarse = torch.full((2, 28, 28), 9.0)
    coarse[:, :, :3] = 0.1
    seeds = torch.tensor([5, 6])
    points = head().training_points(coarse, seeds)
    assert points.shape == (2, 196, 2)
    assert not points.requires_grad
    assert ((points >= 0) & (points <= 1)).all()
    important = logits_at(coarse, points)[:, :147].abs()
    everywhere = points[:, 147:, 0]
    # A stripe of 3 / 28 has about 60 of 588 points: all of them are taken.
    assert ((important < 1).sum(dim=1) > 35).all()
    assert (everywhere > 0.5).sum() > 30
    again = head().training_points(coarse[1:], seeds[1:])
    assert torch.equal(again[0], points[1]), "and they depend on the seed alone"
    assert not torch.equal(points[0], points[1])


def test_targets_of_points_are_the_crop_there():
    crop = torch.zeros(2, 28, 28, dtype=torch.uint8)
    crop[1, :, 14:] = 1  # the right half
    mask_boxes = torch.tensor([[0.0, 0, 5, 5], [10, 20, 66, 48]])
    boxes = torch.tensor([[0.0, 0, 100, 50]])
    points = torch.tensor([[[0.2, 0.5], [0.5, 0.5], [0.5, 0.1], [0.9, 0.9], [0.38, 0.6]]])
    at = places(boxes, points)
    assert torch.allclose(at[0], torch.tensor([20.0, 25, 20, 25]))
    found = mask_targets(at, crop, mask_boxes, torch.ones(5, dtype=torch.int64), 1, samples=1)
    # Left half; right half; above; right of it; at the edge between the halves.
    expected = torch.tensor([0.0, 1, 0, 0, 0.5])
    assert torch.allclose(found.view(-1), expected, atol=1e-5)


def refined_by_hand(coarse: np.ndarray, predict: Any) -> np.ndarray:
    """Section 3.1, inference: twice as fine, then the most uncertain points are predicted."""
    logits = coarse
    for _ in range(3):
        side = 2 * len(logits)
        fine = np.array(
            [
                [bilinear(logits, (x + 0.5) / side, (y + 0.5) / side) for x in range(side)]
                for y in range(side)
            ]
        )
        order = np.argsort(np.abs(fine).flatten(), kind="stable")[:TEST_POINTS]
        for y, x in zip(*np.divmod(order, side), strict=True):
            fine[y, x] = predict((x + 0.5) / side, (y + 0.5) / side)
        logits = fine
    return logits


def test_refinement_is_the_subdivision_of_the_paper():
    own, labels = head(), torch.tensor([2])
    coarse = torch.randn(1, 16, 16, dtype=DOUBLE)

    def sample(points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        return torch.stack([x, y, x * y, x - y], dim=-1)

    def predict(x: float, y: float) -> float:
        features = np.array([x, y, x * y, x - y])
        return by_hand(own, features, bilinear(coarse[0].numpy(), x, y), 2)

    found = own.refine(coarse, labels, sample)
    assert found.shape == (1, 128, 128)
    expected = torch.from_numpy(refined_by_hand(coarse[0].numpy(), predict))
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)


def test_a_mask_with_few_points_is_predicted_again_everywhere():
    own = head()
    points: list[Tensor] = []

    def sample(at: Tensor) -> Tensor:
        points.append(at)
        return torch.zeros(*at.shape[:2], 4, dtype=DOUBLE)

    own.refine(torch.randn(3, 14, 14, dtype=DOUBLE), torch.tensor([1, 2, 3]), sample)
    assert [at.shape[1] for at in points] == [784, 784, 784]
    grid = {(round(28 * x - 0.5), round(28 * y - 0.5)) for x, y in points[0][0].tolist()}
    assert len(grid) == 784


def lively(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    model = make_model(**options)
    for layer in (model.rpn.objectness, model.box_head.classes, model.mask_head.logits):
        torch.nn.init.normal_(layer.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def test_without_it_the_model_is_the_same_and_with_it_all_other_losses_are():
    plain, refined = lively(), lively(mask_refine="points")
    state = refined.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert {name.split(".")[0] for name in state.keys() - plain.state_dict().keys()} == {
        "mask_refine"
    }
    batch = make_batch()
    expected, found = plain(batch), refined(batch)
    assert list(found.losses) == [*expected.losses, "mask_points"]
    assert all(torch.equal(found.losses[name], loss) for name, loss in expected.losses.items())
    assert found.counts["mask_points"] == found.counts["mask"] > 0
    sum(found.losses.values()).backward()
    for name, parameter in refined.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("static_shapes", [False, True])
def test_its_loss_is_that_of_the_points_of_each_positive(static_shapes: bool):
    """The logits of all points are 0 at first, so the loss is that of a coin, but for an image
    without objects, where it is 0.
    """
    model = lively(mask_refine="points")
    torch.nn.init.zeros_(model.mask_refine.logits.weight)
    losses = model(make_batch(), static_shapes).losses
    assert losses["mask_points"].item() == pytest.approx(np.log(2))
    output = model(make_batch(objects=0), static_shapes)
    assert output.losses["mask_points"] == 0
    sum(output.losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_static_shapes_give_the_same_loss_and_other_images_do_not_matter():
    model = lively(mask_refine="points", norm="frozen")
    batch = make_batch(2)
    both = model(batch).losses["mask_points"]
    assert both.item() == pytest.approx(model(batch, True).losses["mask_points"].item(), rel=1e-5)
    alone, sizes = [], []
    for i in range(2):
        output = model({key: value[i : i + 1] for key, value in batch.items()})
        alone.append(output.losses["mask_points"]), sizes.append(output.counts["mask_points"])
    mean = (alone[0] * sizes[0] + alone[1] * sizes[1]) / (sizes[0] + sizes[1])
    assert both.item() == pytest.approx(mean.item(), rel=1e-5)


def test_void_points_have_no_loss():
    model = lively(mask_refine="points", norm="frozen")
    batch = make_batch(1)
    void = torch.zeros(1, 64, 64, dtype=torch.uint8)
    plain, none = (model(b).losses["mask_points"] for b in (batch, batch | {"void": void}))
    torch.testing.assert_close(plain, none)
    output = model(batch | {"void": void + 1})
    assert output.losses["mask_points"] == 0
    assert output.counts["mask_points"] == 0


def test_the_loss_of_points_is_that_of_masks_of_one_column():
    logits, targets, share = torch.randn(3, 7), torch.rand(3, 7), torch.rand(3, 7)
    positive = torch.tensor([True, False, True])
    found = head().losses(logits, targets, positive, share)["mask_points"]
    assert found == mask_loss(logits[..., None], targets[..., None], positive, share[..., None])


def without_targets(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in TARGET_KEYS}


def test_detections_are_the_same_with_masks_of_224():
    plain, refined = lively().eval(), lively(mask_refine="points").eval()
    assert (plain.mask_size, refined.mask_size) == (28, 224)
    batch = without_targets(make_batch())
    with torch.no_grad():
        expected, found, static = (
            plain(batch).detections,
            refined(batch).detections,
            refined(batch, True).detections,
        )
    for key in ("boxes", "scores", "labels", "valid"):
        assert torch.equal(found[key], expected[key])
    count = found["valid"].shape[1]
    assert found["masks"].shape == (2, count, 224, 224)
    valid = found["valid"]
    assert valid.sum() > 5
    torch.testing.assert_close(
        static["masks"][:, :count][valid], found["masks"][valid], atol=1e-4, rtol=0
    )
    again = expected["masks"].logit()[valid]
    for side in (56, 112, 224):
        again = enlarged(again, side)
    again = again.sigmoid()
    same = (found["masks"][valid] - again).abs() < 1e-4
    assert 0.3 < same.double().mean() < 1, "sure pixels are those of the mask head"


def test_masks_are_suppressed_before_they_are_refined():
    """So that the overlaps are those of 28 x 28, and only what stays is predicted again."""
    plain, refined = lively().eval(), lively(mask_refine="points").eval()
    sides: list[tuple[int, ...]] = []
    head: Any = refined.mask_refine
    refine = head.refine

    def watched(coarse: Tensor, *rest: Any) -> Tensor:
        sides.append(tuple(coarse.shape))
        return refine(coarse, *rest)

    head.refine = watched
    batch = without_targets(make_batch())
    with torch.no_grad():
        for model in (plain, refined):
            model.set_suppression(Suppression("mask"))
        expected, found = plain(batch).detections, refined(batch).detections
    assert found.keys() == expected.keys()
    assert found["valid"].sum() > 5
    for key in ("boxes", "scores", "labels", "valid"):
        assert torch.equal(found[key], expected[key])
    assert sides == [(found["valid"].numel(), 28, 28)]
    assert found["masks"].shape[-2:] == (224, 224)


@pytest.mark.parametrize(("option", "value"), cases(num_classes=COUNT))
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError, match=r"^model\..* must be "):
        PointHead(**{"channels": 4, "num_classes": 2, option: value})


@pytest.mark.parametrize("value", ["", "point", True, 1, []])
def test_another_refinement_is_named(value: Any):
    with pytest.raises(UserError, match=r"^model\.mask_refine="):
        make_model(mask_refine=value)
