import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import (
    fastrcnn_loss,
    maskrcnn_loss,
    project_masks_on_boxes,
)

from maskrcnn_lit.model.losses import (
    box_loss,
    class_loss,
    count,
    focal_class_loss,
    focal_objectness_loss,
    giou_loss,
    mask_loss,
    objectness_loss,
)

YES, NO = True, False


def flags(*rows: list[bool]) -> torch.Tensor:
    return torch.tensor(rows)


def test_objectness_by_hand():
    logits = torch.tensor([[0.0, math.log(3), -math.log(3), 50.0]])
    loss = objectness_loss(logits, flags([YES, YES, NO, NO]), flags([YES, YES, YES, NO]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3) * 2) / 3)


def test_box_by_hand():
    deltas = torch.tensor([[[0.0, 0, 0, 0], [1, 1, 1, 1]]])
    targets = torch.tensor([[[0.05, -0.05, 1, -2], [9, 9, 9, 9]]])
    loss = box_loss(deltas, targets, flags([YES, NO]), flags([YES, YES]))
    quadratic, linear = 0.05**2 / 2 * 9, (1 - 1 / 18) + (2 - 1 / 18)
    assert loss.item() == pytest.approx((2 * quadratic + linear) / 2), (
        "over all sampled, not over the positives"
    )


def test_class_by_hand():
    logits = torch.tensor([[[0.0, 0, 0], [math.log(2), 0, 0], [0, 99, 0]]])
    loss = class_loss(logits, torch.tensor([[1, 0, 2]]), flags([YES, YES, NO]))
    assert loss.item() == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_smoothed_class_by_hand():
    logits = torch.tensor([[[math.log(4), 0.0, 0]]])
    loss = class_loss(logits, torch.tensor([[0]]), flags([YES]), smoothing=0.3)
    right, wrong = math.log(6 / 4), math.log(6)
    assert loss.item() == pytest.approx(0.8 * right + 0.1 * wrong + 0.1 * wrong), (
        "0.1 for each, and 0.7 for the right"
    )


def test_mask_by_hand():
    logits = torch.tensor([[[0.0, 0], [0, 0]], [[math.log(3), 0], [0, 0]], [[9.0, 9], [9, 9]]])
    targets = torch.tensor([[[1.0, 0], [1, 0]], [[1, 0.5], [0, 1]], [[0, 0], [0, 0]]])
    loss = mask_loss(logits, targets, torch.tensor([YES, YES, NO]))
    assert loss.item() == pytest.approx((math.log(2) + (math.log(4 / 3) + 3 * math.log(2)) / 4) / 2)


def test_count_is_at_least_one():
    assert count(flags([YES, NO], [YES, YES])) == 3
    assert count(flags([NO, NO])) == 1


def test_class_and_box_equal_torchvision():
    logits = torch.randn(2, 30, 5, dtype=torch.float64)
    regression = torch.randn(60, 5, 4, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 30))
    targets = torch.randn(2, 30, 4, dtype=torch.float64)
    theirs = fastrcnn_loss(logits.flatten(0, 1), regression.flatten(1), list(labels), list(targets))
    every, positive = torch.ones(2, 30, dtype=torch.bool), labels > 0
    own = regression[torch.arange(60), labels.flatten()].view(2, 30, 4)
    assert class_loss(logits, labels, every).item() == pytest.approx(theirs[0].item(), rel=1e-12)
    assert box_loss(own, targets, positive, every).item() == pytest.approx(
        theirs[1].item(), rel=1e-12
    )


def test_mask_equals_torchvision():
    logits = torch.randn(6, 5, 28, 28, dtype=torch.float64)
    masks = (torch.rand(3, 60, 60) > 0.5).double()
    corner = torch.rand(6, 2, dtype=torch.float64) * 30
    boxes = torch.cat([corner, corner + 5 + torch.rand(6, 2, dtype=torch.float64) * 20], dim=1)
    labels, instance = torch.tensor([1, 2, 4]), torch.tensor([0, 1, 2, 2, 1, 0])
    theirs = maskrcnn_loss(logits, [boxes], [masks], [labels], [instance])
    targets = project_masks_on_boxes(masks, boxes, instance, 28)
    ours = mask_loss(
        logits[torch.arange(6), labels[instance]], targets, torch.ones(6, dtype=torch.bool)
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_objectness_and_deltas_equal_torchvisions_sum_over_the_sampled():
    logits, deltas, targets = torch.randn(2, 40), torch.randn(2, 40, 4), torch.randn(2, 40, 4)
    positive, valid = torch.rand(2, 40) < 0.3, torch.rand(2, 40) < 0.8
    positive &= valid
    expected = F.binary_cross_entropy_with_logits(logits[valid], positive[valid].float())
    assert objectness_loss(logits, positive, valid).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    expected = (
        F.smooth_l1_loss(deltas[positive], targets[positive], beta=1 / 9, reduction="sum")
        / valid.sum()
    )
    assert box_loss(deltas, targets, positive, valid).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def all_losses(extra: int, rubbish: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The four losses of the same ten samples and of `extra` padded ones, and the gradients of the
    ten.
    """
    torch.manual_seed(7)
    values = [torch.randn(1, 10, dtype=torch.float64), torch.randn(1, 10, 4, dtype=torch.float64)]
    values += [
        torch.randn(1, 10, 3, dtype=torch.float64),
        torch.randn(1, 10, 4, 4, dtype=torch.float64),
    ]
    targets = torch.randn(1, 10, 4, dtype=torch.float64)
    masks = torch.rand(10, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (1, 10))
    leaves = [v.requires_grad_() for v in values]
    padded = [
        torch.cat([v, torch.randn(1, extra, *v.shape[2:], dtype=torch.float64)], dim=1)
        for v in leaves
    ]
    logits, deltas, classes, mask_logits = padded
    labels = F.pad(labels, (0, extra))
    targets = F.pad(targets, (0, 0, 0, extra), value=rubbish)
    masks = F.pad(masks, (0, 0, 0, 0, 0, extra), value=0.3)
    valid = torch.arange(10 + extra)[None] < 10
    positive = labels > 0
    losses = [
        objectness_loss(logits, positive, valid),
        box_loss(deltas, targets, positive, valid),
        class_loss(classes, labels, valid),
        mask_loss(mask_logits[0], masks, valid[0]),
    ]
    return losses, list(torch.autograd.grad(sum(losses), leaves))


@pytest.mark.parametrize("rubbish", [0.0, math.inf, -math.inf, math.nan])
def test_padding_counts_nothing(rubbish: float):
    expected, expected_gradients = all_losses(0, 0.0)
    losses, gradients = all_losses(5, rubbish)
    for ours, without in zip([*losses, *gradients], [*expected, *expected_gradients], strict=True):
        assert torch.allclose(ours, without, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rubbish", [math.inf, math.nan])
def test_targets_of_background_poison_nothing(rubbish: float):
    deltas = torch.randn(1, 3, 4, requires_grad=True)
    targets = torch.full((1, 3, 4), rubbish)
    targets[0, 1] = 0.5
    loss = box_loss(deltas, targets, flags([NO, YES, NO]), flags([YES, YES, YES]))
    loss.backward()
    assert loss.isfinite()
    assert deltas.grad.isfinite().all()
    assert deltas.grad[0, 1].all()
    assert not deltas.grad[0, [0, 2]].any()


def test_nothing_sampled_is_a_loss_of_zero_with_a_gradient():
    none = torch.zeros(1, 3, dtype=torch.bool)
    leaves = [torch.randn(1, 3, *rest, requires_grad=True) for rest in ((), (4,), (2,), (5, 5))]
    losses = [
        objectness_loss(leaves[0], none, none),
        box_loss(leaves[1], torch.full((1, 3, 4), math.nan), none, none),
        class_loss(leaves[2], torch.zeros(1, 3, dtype=torch.int64), none),
        mask_loss(leaves[3][0], torch.rand(3, 5, 5), none[0]),
    ]
    assert [loss.item() for loss in losses] == [0] * 4
    sum(losses).backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def plain_giou(a: list[float], b: list[float]) -> float:
    """Algorithm 1 of Rezatofighi et al. 2019, for two boxes."""
    area_a, area_b = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = area_a + area_b - wide * high
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return wide * high / union - (hull - union) / hull


def test_giou_loss_is_that_of_its_paper():
    corner = torch.rand(2, 6, 2, dtype=torch.float64) * 30
    boxes = torch.cat([corner, corner + 1 + torch.rand(2, 6, 2, dtype=torch.float64) * 20], -1)
    truth, positive = boxes.flip(1) + 3, torch.rand(2, 6) > 0.4
    valid = positive | (torch.rand(2, 6) > 0.5)
    positive[0, 0] = valid[0, 0] = True
    boxes[~positive], truth[~positive] = torch.nan, torch.inf  # of others nothing is read
    boxes.requires_grad_()
    terms = [
        1 - plain_giou(a, b)
        for a, b in zip(boxes[positive].tolist(), truth[positive].tolist(), strict=True)
    ]
    loss = giou_loss(boxes, truth, positive, valid)
    assert loss.item() == pytest.approx(10 * sum(terms) / int(valid.sum()), rel=1e-12)
    half = giou_loss(boxes, truth, positive, valid, weight=5.0)
    assert half.item() == pytest.approx(loss.item() / 2, rel=1e-12)
    loss.backward()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()
    assert boxes.grad[positive].any()
    assert not boxes.grad[~positive].any()
    nothing = torch.zeros_like(positive)
    assert giou_loss(boxes, truth, nothing, valid).item() == 0
    same = truth[positive][None]
    yes = torch.ones(1, same.shape[1], dtype=torch.bool)
    assert giou_loss(same, same, yes, yes).item() == pytest.approx(0, abs=1e-12)


def test_focal_loss_is_that_of_its_paper():
    """Equation 4, over a softmax: -(1 - p) ** 2 log p."""
    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    labels, valid = torch.randint(0, 4, (2, 5)), flags([YES, NO, YES, YES, YES], [YES] * 5)
    p = (logits.exp() / logits.exp().sum(-1, keepdim=True)).gather(-1, labels[..., None])[..., 0]
    expected = (-((1 - p) ** 2) * p.log() * valid).sum() / 9
    loss = focal_class_loss(logits, labels, valid)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    sure = torch.tensor([[[200.0, 0.0, 0.0]]], requires_grad=True)  # p is 1: no NaN
    easy = focal_class_loss(sure, torch.zeros(1, 1, dtype=torch.int64), flags([YES]))
    easy.backward()
    assert easy.item() == 0
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_focal_objectness_is_that_of_its_paper():
    """Equations 2 and 4: -(1 - p_t) ** 2 log p_t, with p_t = p of an object, else 1 - p."""
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    positive = flags([YES, NO, YES, YES, NO], [NO, NO, NO, YES, YES])
    valid = flags([YES, NO, YES, YES, YES], [YES] * 5)
    p = 1 / (1 + (-logits).exp())
    p = torch.where(positive, p, 1 - p)
    expected = (-((1 - p) ** 2) * p.log() * valid).sum() / 9
    loss = focal_objectness_loss(logits, positive, valid)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not ours[0, 1]
    sure = torch.tensor([[200.0, -200.0]], requires_grad=True)  # p_t is 1: no NaN
    easy = focal_objectness_loss(sure, flags([YES, NO]), flags([YES, YES]))
    easy.backward()
    assert easy.item() == 0
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
