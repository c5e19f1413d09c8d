from typing import Any

import pytest
import torch
import torch.nn.functional as F
from wrong_values import CHOICE, COUNT, cases

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.losses import mask_loss
from maskrcnn_lit.model.mask_head import (
    MaskHead,
    check_takes_void,
    mask_targets,
    without_void,
)


def head(**options: Any) -> MaskHead:
    built = MaskHead(
        **{"channels": 6, "width": 8, "depth": 2, "pool": 7, "num_classes": 5, **options}
    ).double()
    for parameter in built.parameters():  # far from the first step's zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return built


def test_only_the_channel_of_the_class_is_computed_and_equals_the_whole_convolution():
    mask_head = head()
    features, labels = (
        torch.randn(9, 6, 7, 7, dtype=torch.float64),
        torch.tensor([1, 2, 3, 4, 5, 5, 1, 3, 2]),
    )
    hidden = features
    for conv in mask_head.convs:
        hidden = F.relu(conv(hidden))
    hidden = mask_head.logits(F.relu(mask_head.deconv(hidden)))  # 9 K 14 14
    expected = hidden[torch.arange(9), labels - 1]
    got = mask_head(features.clone(), labels)
    assert got.shape == (9, 14, 14)
    assert mask_head.mask_size == 14
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)

    incoming = torch.randn_like(expected)
    parameters = list(mask_head.parameters())
    ours = torch.autograd.grad(mask_head(features.clone(), labels), parameters, incoming)
    theirs = torch.autograd.grad(expected, parameters, incoming)
    for own, whole in zip(ours, theirs, strict=True):
        assert torch.allclose(own, whole, rtol=1e-10, atol=1e-10)


def softmax_masks(mask_head: MaskHead, features: torch.Tensor) -> torch.Tensor:
    """R K+1 m m log probabilities of the background and all classes, pixel by pixel."""
    hidden = features
    if len(mask_head.fcs):
        hidden = features.permute(0, 2, 3, 1).flatten(1)
        for layer in mask_head.fcs:
            hidden = F.relu(layer(hidden))
        hidden = mask_head.logits(hidden).view(len(features), -1, 14, 14)
    else:
        for conv in mask_head.convs:
            hidden = F.relu(conv(hidden))
        hidden = mask_head.logits(F.relu(mask_head.deconv(hidden)))
    shares = hidden.exp() / hidden.exp().sum(1, keepdim=True)
    return shares.log()


@pytest.mark.parametrize("fcs", [0, 2])
def test_classes_and_background_compete_in_each_pixel(fcs: int):
    """Table 2b: the loss and its gradient by definition, a multinomial of K + 1 classes."""
    mask_head = head(activation="softmax", fcs=fcs)
    features = torch.randn(4, 6, 7, 7, dtype=torch.float64)
    labels, positive = torch.tensor([1, 5, 2, 0]), torch.tensor([True, True, True, False])
    targets = (torch.rand(4, 14, 14, dtype=torch.float64) > 0.4).double()
    output = mask_head(features.clone(), labels)
    every = softmax_masks(mask_head, features)
    assert every.shape == (4, 6, 14, 14)
    assert output.shape == (4, 2, 14, 14)
    own = every[torch.arange(4), labels.clamp(min=1)]
    assert torch.allclose(output, torch.stack([own, every[:, 0]], 1), rtol=1e-10, atol=1e-10)
    assert torch.allclose(mask_head.probabilities(output), own.exp(), rtol=1e-10, atol=1e-10)
    pixels = labels[:, None, None] * targets.long()  # the class of each pixel, 0 outside
    expected = F.nll_loss(every[:3], pixels[:3])
    loss = mask_head.losses(output, targets, positive)["mask"]
    assert torch.allclose(loss, expected, rtol=1e-12)
    parameters = list(mask_head.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for one, whole in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        assert torch.allclose(one, whole, rtol=1e-9, atol=1e-11)
    half = torch.full_like(targets, 0.5)
    counted = mask_head.losses(output, targets, positive, half)["mask"]
    assert torch.allclose(counted, loss)  # the same weight everywhere


def test_fully_connected_layers_give_every_pixel():
    """Table 2e, left: two layers, and one that gives K masks of m x m."""
    mask_head = head(fcs=2, width=9)
    features, labels = torch.randn(3, 6, 7, 7, dtype=torch.float64), torch.tensor([2, 5, 1])
    hidden = features.permute(0, 2, 3, 1).reshape(3, -1)
    for layer in mask_head.fcs:
        hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)
    every = (hidden @ mask_head.logits.weight.T + mask_head.logits.bias).view(3, 5, 14, 14)
    found = mask_head(features, labels)
    assert torch.allclose(found, every[torch.arange(3), labels - 1], rtol=1e-12, atol=1e-12)
    assert [tuple(layer.weight.shape) for layer in mask_head.fcs] == [(9, 294), (9, 9)]
    assert mask_head.mask_size == 14
    assert not mask_head.needs_positives


@pytest.mark.parametrize("options", [{}, {"fcs": 1}, {"activation": "softmax"}])
def test_a_class_agnostic_head_has_one_mask(options: dict[str, Any]):
    mask_head = head(class_agnostic=True, **options)
    features = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    one, other = (mask_head(features.clone(), torch.tensor(n)) for n in ([1, 2], [5, 0]))
    assert torch.equal(one, other)
    rows = len(mask_head.logits.weight) // (196 if options.get("fcs") else 1)
    assert rows == (2 if options.get("activation") else 1)


def test_other_classes_get_no_gradient():
    mask_head = head()
    mask_head(
        torch.randn(4, 6, 7, 7, dtype=torch.float64), torch.tensor([2, 4, 2, 4])
    ).sum().backward()
    for gradient in (mask_head.logits.weight.grad, mask_head.logits.bias.grad):
        assert [bool(row.any()) for row in gradient] == [False, True, False, True, False]


def test_background_reads_some_channel():
    """A slot without an object has label 0; no loss reads its mask, but it must be a number."""
    mask_head, features = head(), torch.randn(1, 6, 7, 7, dtype=torch.float64)
    assert torch.equal(
        mask_head(features.clone(), torch.tensor([0])),
        mask_head(features.clone(), torch.tensor([1])),
    )


def test_masks_begin_near_a_half():
    mask_head = MaskHead(channels=16, width=16, depth=4, pool=14, num_classes=3)
    probabilities = mask_head(torch.randn(5, 16, 14, 14), torch.tensor([1, 2, 3, 1, 2])).sigmoid()
    assert probabilities.shape == (5, 28, 28)
    assert (probabilities - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("depth", [1, 4])
def test_depth_is_the_number_of_convolutions(depth: int):
    assert [conv.in_channels for conv in head(depth=depth).convs] == [6, 8, 8, 8][:depth]


def targets(
    region: list[float], crop: torch.Tensor, mask_box: list[float], size: int
) -> torch.Tensor:
    """Of one region and the second of two instances: the first is all object, so that a wrong index
    is seen.
    """
    masks = torch.stack([torch.ones_like(crop), crop])
    boxes = torch.tensor([[0.0, 0, 500, 500], mask_box])
    return mask_targets(
        torch.tensor([region], dtype=torch.float32), masks, boxes, torch.tensor([1]), size
    )[0]


def test_a_rectangle_in_a_crop():
    crop = torch.zeros(28, 28, dtype=torch.uint8)
    crop[7:14, 14:28] = 1  # second quarter from above, right half
    box = [10.0, 20, 38, 48]  # one pixel of the image is one of the crop
    expected = torch.zeros(4, 4)
    expected[1, 2:] = 1
    got = targets(box, crop, box, 4)
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(targets([24.5, 27.5, 37.5, 33.5], crop, box, 6), torch.ones(6, 6)), (
        "inside of the rectangle"
    )
    assert not targets([11, 35, 37, 47], crop, box, 6).any(), "below it"
    stretched = targets([20.0, 40, 76, 96], crop, [20.0, 40, 76, 96], 4)
    assert torch.allclose(stretched, got, atol=1e-5), (
        "and where the crop lies, or how large it is, is no matter"
    )


def test_a_region_equal_to_the_mask_box_gets_the_crop():
    crop = (torch.rand(28, 28) > 0.5).to(torch.uint8)
    box = [3.0, 5, 31, 61]
    assert torch.allclose(targets(box, crop, box, 28), crop.float(), atol=1e-5)
    halves = F.avg_pool2d(crop[None, None].float(), 2)[0, 0]
    assert torch.allclose(targets(box, crop, box, 14), halves, atol=1e-5)


def test_beyond_the_crop_is_background():
    crop = torch.ones(28, 28, dtype=torch.uint8)
    assert not targets([100, 100, 130, 130], crop, [0, 0, 50, 50], 14).any()
    ring = targets([-28.0, -28, 56, 56], crop, [0, 0, 28, 28], 3)  # three times the crop
    expected = torch.zeros(3, 3)
    expected[1, 1] = 1
    assert torch.allclose(ring, expected, atol=0.05)


def test_a_part_of_the_crop_is_enlarged():
    crop = torch.zeros(8, 8, dtype=torch.uint8)
    crop[:4, :4] = 1
    got = targets(
        [20.0, 20, 60, 60], crop, [0, 0, 80, 80], 4
    )  # the middle: a quarter of it is object
    assert got[0, 0] == 1
    assert not got[2:].any()
    assert not got[:, 2:].any()
    assert ((got >= 0) & (got <= 1)).all()


def test_an_instance_without_a_box_gives_numbers():
    """Padded slots have mask boxes without area; no loss reads what they give."""
    got = targets([0.0, 0, 0, 0], torch.zeros(28, 28, dtype=torch.uint8), [0, 0, 0, 0], 28)
    assert got.isfinite().all()
    assert not got.any()


def test_targets_carry_no_gradient():
    region = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    masks = torch.ones(1, 28, 28, dtype=torch.uint8)
    assert not mask_targets(region, masks, region, torch.tensor([0]), 14).requires_grad


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        **{key: [*COUNT, 10**9] for key in ("channels", "width", "depth", "pool")},
        num_classes=COUNT,
        norm=CHOICE,
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    options = {"channels": 8, "width": 8, "depth": 1, "pool": 7, "num_classes": 3, option: value}
    with pytest.raises(UserError) as caught:
        MaskHead(**options)
    name = "model.num_classes" if option == "num_classes" else f"model.mask_head.{option}"
    assert str(caught.value).startswith(f"{name}={value} must be ")


def test_its_loss_is_that_of_the_positives_by_its_name():
    logits, targets = torch.randn(3, 4, 4), torch.rand(3, 4, 4)
    positive = torch.tensor([True, False, True])
    losses = MaskHead(channels=4, width=4, depth=1, pool=2, num_classes=2).losses(
        logits, targets, positive
    )
    assert list(losses) == ["mask"]
    assert losses["mask"] == mask_loss(logits, targets, positive)


def test_void_pixels_have_no_mask_loss_and_the_rest_has_all_of_it():
    """The region is 8 x 8 px and its mask 4 x 4, so a pixel of the mask is 2 x 2 px: the first row
    is void, of the second row the upper half.
    """
    boxes = torch.tensor([[4.0, 4.0, 12.0, 12.0]])
    void = torch.zeros(1, 16, 16, dtype=torch.uint8)
    void[0, :7] = 1
    truth = torch.zeros(1, 4, 4)
    truth[0, :, :2] = torch.tensor([0.0, 0.25, 1.0, 1.0])[:, None]
    targets, counted = without_void(truth, boxes, torch.zeros(1, dtype=torch.int64), void)
    assert counted[0, 0].tolist() == [0.0] * 4
    assert counted[0, 3].tolist() == [1.0] * 4
    logits = torch.randn(1, 4, 4, requires_grad=True)
    loss = mask_loss(logits, targets, torch.tensor([True]), counted)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[0, 0].any()
    assert gradient[0, 1:].all()
    share = counted[0, 1, 0].item()  # RoIAlign samples between pixel centers
    assert 0.3 < share < 0.7
    weights = torch.tensor([0.0, share, 1.0, 1.0])[:, None].expand(4, 4)
    real = torch.minimum(truth[0], weights)  # the part of each pixel that is object and not void
    by_hand = weights * F.softplus(logits[0]) - real * logits[0]
    torch.testing.assert_close(loss, by_hand.sum() / weights.sum())


def test_a_loss_without_void_is_that_of_before():
    targets = torch.rand(3, 4, 4)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4)
    none = torch.zeros(1, 16, 16, dtype=torch.uint8)
    same, counted = without_void(targets, boxes, torch.zeros(3, dtype=torch.int64), none)
    assert torch.equal(same, targets)
    assert torch.equal(counted, torch.ones(3, 4, 4))


class Three(torch.nn.Module):
    def losses(self, logits: Any, targets: Any, positive: Any) -> None: ...


class Four(torch.nn.Module):
    def losses(self, logits: Any, targets: Any, positive: Any, share: Any = None) -> None: ...


class Every(torch.nn.Module):
    def losses(self, *given: Any) -> None: ...


def test_a_head_whose_losses_take_no_void_is_refused():
    for mask_head in (head(), Four(), Every()):
        check_takes_void(mask_head)
    with pytest.raises(UserError, match=r"Three\.losses .*argument `counted`.*ignore_void=false"):
        check_takes_void(Three())
