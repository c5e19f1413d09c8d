"""The mask IoU head against its equations written plainly, and what it changes in the model."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import make_batch, make_model
from torch import Tensor
from wrong_values import COUNT, cases

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_head import mask_targets
from maskrcnn_lit.model.mask_iou import MaskIoUHead, mask_iou_targets
from maskrcnn_lit.model.mask_rcnn import MaskRCNN

DOUBLE = torch.float64


def head(channels: int = 3, pool: int = 4, num_classes: int = 5) -> MaskIoUHead:
    """With weights far from those of the first step."""
    built = MaskIoUHead(channels=channels, pool=pool, num_classes=num_classes).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def inputs(regions: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(regions, 3, 4, 4, dtype=DOUBLE)
    return features, torch.randn(regions, 8, 8, dtype=DOUBLE), torch.arange(regions) % 5 + 1


def by_hand(own: MaskIoUHead, feature: Tensor, logits: Tensor, label: int) -> float:
    """Section 3.3 for one region, with numpy: the largest of 2 x 2 probabilities, joined to the
    features as a channel; four convolutions, the last with stride 2; two layers; one IoU a class.
    """
    probability = 1 / (1 + np.exp(-logits.numpy()))
    largest = probability.reshape(4, 2, 4, 2).max(axis=(1, 3))
    hidden = np.concatenate([feature.numpy(), largest[None]])
    for n, layer in enumerate(own.convs):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        stride = 2 if n == 3 else 1
        padded = np.pad(hidden, ((0, 0), (1, 1), (1, 1)))
        side = 4 // stride
        hidden = np.array(
            [
                [
                    [
                        (padded[:, stride * y :, stride * x :][:, :3, :3] * kernel).sum() + b
                        for x in range(side)
                    ]
                    for y in range(side)
                ]
                for kernel, b in zip(weight, bias, strict=True)
            ]
        ).clip(min=0)
    values = hidden.flatten()
    for layer in own.fcs:
        values = layer.weight.detach().numpy() @ values + layer.bias.detach().numpy()
        values = values.clip(min=0)
    last = own.ious
    return float(last.weight.detach().numpy()[label - 1] @ values + last.bias[label - 1].item())


def test_it_is_the_equations_of_the_paper():
    own = head()
    features, logits, labels = inputs()
    expected = [by_hand(own, *row) for row in zip(features, logits, labels.tolist(), strict=True)]
    assert own(features, logits, labels).tolist() == pytest.approx(expected, rel=1e-12)
    assert np.std(expected) > 0.01


def test_its_sizes_are_those_of_the_paper():
    built = MaskIoUHead(channels=256, pool=14, num_classes=80)
    assert [tuple(layer.weight.shape) for layer in (*built.convs, *built.fcs, built.ious)] == [
        (256, 257, 3, 3),
        *[(256, 256, 3, 3)] * 3,
        (1024, 256 * 7 * 7),
        (1024, 1024),
        (80, 1024),
    ]


def test_its_gradients_are_those_of_finite_differences():
    own = head()
    features, logits, labels = inputs(3)
    features.requires_grad_(), logits.requires_grad_()
    targets = torch.tensor([0.0, 0.3, 0.9], dtype=DOUBLE)
    positive = torch.tensor([True, True, False])

    def loss(features: Tensor, logits: Tensor) -> Tensor:
        return own.losses(own(features, logits, labels), targets, positive)[0]["mask_iou"]

    assert torch.autograd.gradcheck(loss, (features, logits))
    assert torch.autograd.grad(loss(features, logits), logits)[0][1].any()


def test_the_loss_is_the_mean_over_the_positives_whose_mask_meets_its_object():
    ious, targets = torch.tensor([0.5, 0.2, 0.9, 7.0]), torch.tensor([0.9, 0.4, 0.0, 0.5])
    losses, size = head().losses(ious, targets, torch.tensor([True, True, True, False]))
    assert losses["mask_iou"].item() == pytest.approx((0.4**2 + 0.2**2) / 2 / 2)
    assert size == 2
    losses, size = head().losses(ious, targets * 0, torch.ones(4, dtype=torch.bool))
    assert losses["mask_iou"] == 0
    assert size == 0


def target(
    region: list[float],
    predicted: Tensor,
    counted: Tensor | None = None,
    image: tuple[int, int] = (50, 50),
) -> float:
    """Of an object that fills the box 0 0 20 20, all but its lower right quarter. image: height,
    width.
    """
    crop = torch.ones(2, 28, 28, dtype=torch.uint8)
    crop[1, 14:, 14:] = 0
    mask_boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 20, 20]])
    boxes, instance = torch.tensor([region], dtype=torch.float32), torch.tensor([1])
    truth = mask_targets(boxes, crop, mask_boxes, instance, predicted.shape[-1])
    logits = (predicted.float() - 0.5)[None]
    share = None if counted is None else counted[None]
    sizes = torch.tensor([[1, 1], image])
    return mask_iou_targets(logits, truth, boxes, crop, mask_boxes, instance, sizes, share).item()


def test_the_target_is_the_iou_with_the_whole_object():
    everything = torch.ones(8, 8)
    assert target([0, 0, 20, 20], everything) == pytest.approx(300 / 400)
    right = everything.clone()
    right[4:, 4:] = 0
    assert target([0, 0, 20, 20], right) == pytest.approx(1)
    assert target([0, 0, 20, 20], 1 - right) == 0
    assert target([0, 0, 20, 20], torch.zeros(8, 8)) == 0
    # A region of the left half: the part of the object outside of it is missed.
    assert target([0, 0, 10, 20], everything) == pytest.approx(200 / 300)
    # One that is larger: what lies beside the object is too much.
    assert target([0, 0, 40, 40], everything) == pytest.approx(300 / 1600)
    # Void pixels in the lower half count neither here nor there: 200 of 200 and 100 beyond.
    void = everything.clone()
    void[4:] = 0
    assert target([0, 0, 20, 20], everything, void) == pytest.approx(200 / 300)


def test_what_is_outside_of_the_image_is_no_part_of_the_object():
    """As after a random crop: the crop of the object reaches beyond the image."""
    everything = torch.ones(8, 8)
    right = everything.clone()
    right[4:, 4:] = 0
    assert target([0, 0, 10, 20], everything, image=(20, 10)) == pytest.approx(1)
    assert target([0, 0, 20, 10], everything, image=(10, 20)) == pytest.approx(1)
    assert target([0, 0, 16, 16], everything, image=(16, 16)) == pytest.approx(220 / 256)
    # a region on the left half of what is left
    assert target([0, 0, 5, 20], everything, image=(20, 10)) == pytest.approx(1 / 2)


def test_a_perfect_mask_of_an_object_that_was_cut_has_the_target_1():
    torch.manual_seed(0)
    crop = torch.zeros(40, 28, 28, dtype=torch.uint8)
    crop[:, 3:25, 3:25] = 1
    first = torch.rand(40, 2) * 60 - 20
    whole = torch.cat([first, first + 10 + torch.rand(40, 2) * 40], dim=1)
    sizes = torch.tensor([[48, 64]]).expand(40, 2)
    limits = sizes.flip(1).repeat(1, 2)
    seen = torch.minimum(whole.clamp(min=0), limits)
    seen = torch.where((seen[:, 2:] - seen[:, :2] > 6).all(1, keepdim=True), seen, whole)
    own = torch.arange(40)
    truth = mask_targets(seen, crop, whole, own, 28)
    fits = mask_iou_targets(truth - 0.5, truth, seen, crop, whole, own, sizes)
    cut = ((seen != whole).any(1)) & (truth.sum((1, 2)) > 100)
    assert cut.sum() > 15
    assert fits[cut].min() > 0.85  # rounding to pixels of the mask
    assert fits[cut].mean() > 0.97


def lively(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    model = make_model(**options)
    for layer in (model.rpn.objectness, model.box_head.classes, model.mask_head.logits):
        torch.nn.init.normal_(layer.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def without_targets(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in TARGET_KEYS}


def test_without_it_the_model_is_the_same_and_with_it_all_other_losses_are():
    plain, scored = lively(), lively(mask_iou=True)
    state = scored.state_dict()
    assert {name for name in state if not name.startswith("mask_iou.")} == set(plain.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    batch = make_batch()
    expected, found = plain(batch), scored(batch)
    assert list(found.losses) == [*expected.losses, "mask_iou"]
    assert all(torch.equal(found.losses[name], loss) for name, loss in expected.losses.items())
    assert 0 < found.counts["mask_iou"] <= found.counts["mask"]
    sum(found.losses.values()).backward()
    for name, parameter in scored.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("static_shapes", [False, True])
def test_a_step_without_objects_has_a_loss_of_zero_and_a_gradient_everywhere(static_shapes: bool):
    model = lively(mask_iou=True)
    output = model(make_batch(objects=0), static_shapes)
    assert output.losses["mask_iou"] == 0
    assert output.counts["mask_iou"] == 0
    sum(output.losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("static_shapes", [False, True])
def test_the_score_of_a_detection_is_class_score_times_iou_and_they_are_sorted_by_it(
    static_shapes: bool,
):
    batch = without_targets(make_batch())
    plain, scored = lively().eval(), lively(mask_iou=True).eval()
    seen: list[Tensor] = []

    def some(_: Any, __: Any, ious: Tensor) -> Tensor:
        seen.append(0.1 + 0.8 * torch.rand(ious.shape))
        return seen[-1]

    scored.mask_iou.register_forward_hook(some)
    with torch.no_grad():
        expected, found = (model(batch, static_shapes).detections for model in (plain, scored))
    ious = seen[0].view(expected["scores"].shape)
    for i in range(2):
        valid = expected["valid"][i]
        scores, order = (expected["scores"] * ious)[i][valid].sort(descending=True)
        count = len(scores)
        assert count > 3
        assert found["valid"][i].sum() == count
        assert found["valid"][i][:count].all(), "empty slots stay behind"
        assert not found["scores"][i][count:].any()
        assert torch.allclose(found["scores"][i][:count], scores)
        for key in ("boxes", "labels", "masks"):
            assert torch.equal(found[key][i][:count], expected[key][i][valid][order]), key


def test_expected_ious_beyond_0_and_1_are_limits():
    scores, ious = torch.tensor([0.8, 0.8, 0.8]), torch.tensor([-0.5, 0.5, 1.5])
    assert torch.allclose(head().scores(scores, ious), torch.tensor([0.0, 0.4, 0.8]))


def test_a_mask_whose_side_does_not_fit_is_named():
    features, _, labels = inputs()
    with pytest.raises(UserError, match=r"multiple of 4, .*but the mask head gives 6"):
        head()(features, torch.zeros(6, 6, 6, dtype=DOUBLE), labels)


@pytest.mark.parametrize(("option", "value"), cases(num_classes=COUNT, pool=[*COUNT, 10**9]))
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError, match=r"^model\..* must be "):
        MaskIoUHead(**{"channels": 4, "pool": 4, "num_classes": 2, option: value})


def test_half_precision_features_give_float32_ious():
    own = MaskIoUHead(channels=3, pool=4, num_classes=5)
    features, logits, labels = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ious = own(features.bfloat16(), logits.float(), labels)
    assert ious.dtype == torch.float32
    exact = own(features.float(), logits.float(), labels)
    assert F.mse_loss(ious, exact) < 1e-3
