import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from models import make_batch
from wrong_values import CHOICE, COUNT, SHARE, cases

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.model.boxes import encode, iou
from maskrcnn_lit.model.rpn import RPN, UNIT, Prediction

SIDES = (16, 8, 4, 2, 1)  # of p2..p6 of 64 pixels


def rpn(**options: object) -> RPN:
    thresholds = {
        "object_iou": 0.7,
        "background_iou": 0.3,
        "batch_size": 256,
        "positive_fraction": 0.5,
        "nms_iou": 0.7,
    }
    counts = {"pre_nms": {"train": 100, "test": 50}, "post_nms": {"train": 60, "test": 20}}
    return RPN(**{"channels": 8, "anchors_per_cell": 3, **thresholds, **counts, **options})


def pyramid(images: int = 2) -> list[torch.Tensor]:
    return [torch.randn(images, 8, s, s) for s in SIDES]


def anchors() -> torch.Tensor:
    return Anchors(sizes=(8, 16, 32, 64, 128), ratios=(0.5, 1.0, 2.0))(pyramid(), (64, 64))


def prediction(logits: torch.Tensor, deltas: torch.Tensor | None = None) -> Prediction:
    """Of the anchors of 64 pixels."""
    deltas = torch.zeros(*logits.shape, 4) if deltas is None else deltas
    return Prediction(logits, deltas, [3 * s * s for s in SIDES])


def test_forward_equals_three_convolutions():
    built, maps = rpn(), pyramid()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    logits, deltas, sizes = built(maps)
    assert sizes == [3 * s * s for s in SIDES]
    assert logits.shape == (2, sum(sizes))
    assert deltas.shape == (2, sum(sizes), 4)
    hidden = [F.relu(built.convs[0](m)) for m in maps]
    for level, (h, start) in enumerate(
        zip(hidden, torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False)
    ):
        side, objectness, four = SIDES[level], built.objectness(h), built.deltas(h)
        for row, column, ratio in (
            (0, 0, 0),
            (side - 1, 0, 1),
            (0, side - 1, 2),
            (side - 1, side // 2, 1),
        ):
            at = (
                start + (row * side + column) * 3 + ratio
            )  # level, row, column, ratio: as the anchors
            assert torch.allclose(logits[:, at], objectness[:, ratio, row, column], atol=1e-5)
            assert torch.allclose(
                deltas[:, at], four[:, 4 * ratio : 4 * ratio + 4, row, column], atol=1e-5
            )


@pytest.mark.parametrize("ratios", [1, 3, 8])
def test_channels_of_the_1x1_convolution_come_by_eights(
    ratios: int, monkeypatch: pytest.MonkeyPatch
):
    """As tensor cores take them; what fills them up reaches no output and no gradient."""
    built, widths = rpn(anchors_per_cell=ratios), []
    plain = F.conv2d

    def seen(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        if weight.shape[-1] == 1:
            widths.append(len(weight))
        return plain(x, weight, *rest)

    monkeypatch.setattr(F, "conv2d", seen)
    found = built(pyramid())
    (found.logits.sum() + found.deltas.sum()).backward()
    assert widths == [-(-5 * ratios // 8) * 8] * 5
    assert found.logits.shape == (2, ratios * sum(s * s for s in SIDES))
    assert built.objectness.weight.grad.shape == built.objectness.weight.shape


def test_a_new_network_proposes_its_anchors():
    logits, deltas, _ = rpn()(pyramid())
    assert logits.abs().max() < 0.2
    assert deltas.abs().max() < 0.2


def test_proposals_are_the_best_of_each_level_without_duplicates():
    logits = torch.randn(2, len(anchors()))
    boxes, scores, valid = rpn().propose(
        prediction(logits), anchors(), torch.tensor([[64, 64], [40, 60]]), "train"
    )
    assert boxes.shape == (2, 60, 4)
    assert scores.shape == valid.shape == (2, 60)
    assert valid.all()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    for i, (height, width) in enumerate([(64, 64), (40, 60)]):
        assert (boxes[i, :, :2] >= 0).all()
        assert (boxes[i, :, 2] <= width).all()
        assert (boxes[i, :, 3] <= height).all()
        clipped = anchors().clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        for box, score in zip(boxes[i], scores[i], strict=True):
            (source,) = (logits[i] == score).nonzero()[:, 0].tolist()
            assert torch.allclose(box, clipped[source], atol=1e-4)


def test_suppression_is_by_level():
    far = -100 * torch.ones(1, len(anchors()))
    same, other = (
        3 * 17 + 1,
        3 * 16**2 + 3 * 9 + 1,
    )  # square anchors of p2 and p3 at (4, 4) and (8, 8)
    deltas = torch.zeros(1, len(anchors()), 4)
    target = torch.tensor([10.0, 10, 30, 30])
    for index, logit in ((same, 3.0), (same + 3, 2.0), (other, 1.0)):
        far[0, index] = logit
        deltas[0, index] = encode(target, anchors()[index], UNIT)
    boxes, scores, _ = rpn().propose(
        prediction(far, deltas), anchors(), torch.tensor([[64, 64]]), "test"
    )
    assert scores[0, :2].tolist() == [3, 1]
    assert scores[0, 2] < -50, "of p2's two equal boxes one stays, and p3's"
    assert torch.allclose(boxes[0, :2], target.expand(2, 4), atol=1e-4)


@pytest.mark.parametrize(("phase", "kept"), [("train", 60), ("test", 20)])
def test_the_phase_decides_how_many(phase: str, kept: int):
    logits = torch.randn(1, len(anchors()))
    boxes, scores, valid = rpn(nms_iou=1.0).propose(
        prediction(logits), anchors(), torch.tensor([[64, 64]]), phase
    )
    assert boxes.shape[1] == kept
    assert valid.all()
    assert torch.equal(scores[0], logits[0].sort(descending=True).values[:kept])


def test_only_the_best_of_a_level_enter_suppression():
    logits = torch.arange(len(anchors()), dtype=torch.float32)[None]
    few = rpn(nms_iou=1.0, pre_nms={"train": 5, "test": 5})
    _, scores, valid = few.propose(prediction(logits), anchors(), torch.tensor([[64, 64]]), "train")
    kept = [level[-5:] for level in logits[0].split([3 * s * s for s in SIDES])]
    expected = torch.cat(kept).sort(descending=True).values
    assert scores.shape[1] == len(expected) == 23
    assert torch.equal(scores[0], expected)
    assert valid.all()


def test_images_with_fewer_proposals_are_padded_with_zeros():
    logits = torch.zeros(1, len(anchors()))
    deltas = encode(torch.tensor([5.0, 5, 25, 25]).expand(1, len(anchors()), 4), anchors(), UNIT)
    boxes, _, valid = rpn().propose(
        prediction(logits, deltas), anchors(), torch.tensor([[64, 64]]), "train"
    )
    assert valid.sum() == 5, "one a level"
    assert torch.allclose(boxes[valid], torch.tensor([5.0, 5, 25, 25]).expand(5, 4), atol=1e-3)
    assert not boxes[~valid].any()


def test_boxes_without_area_are_no_proposals():
    """Those that lie outside of the image shrink to nothing at its border."""
    boxes, _, valid = rpn().propose(
        prediction(torch.zeros(1, len(anchors()))), anchors(), torch.tensor([[8, 64]]), "train"
    )
    assert valid.any()
    assert (boxes[..., 3] <= 8).all()
    sides = boxes[valid][:, 2:] - boxes[valid][:, :2]
    assert (sides > 0).all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_network_that_has_diverged_proposes_numbers(broken: float):
    """The loss is then not finite, and a message says so: no crash on the way there."""
    built, count = rpn(), len(anchors())
    for logits, deltas in (
        (torch.full((1, count), broken), torch.zeros(1, count, 4)),
        (torch.zeros(1, count), torch.full((1, count, 4), broken)),
        (torch.full((1, count), broken), torch.full((1, count, 4), broken)),
    ):
        boxes, _, _ = built.propose(
            prediction(logits, deltas), anchors(), torch.tensor([[64, 64]]), "train"
        )
        assert boxes.isfinite().all()


def perfect(batch: Batch) -> Prediction:
    """Each anchor knows the box that it overlaps most, and whether that is an object."""
    overlap = iou(batch["boxes"], anchors()[None])
    best = overlap.argmax(dim=1)
    target = batch["boxes"].gather(1, best[..., None].expand(-1, -1, 4))
    highest = (overlap == overlap.amax(dim=2, keepdim=True)) & batch["valid"][..., None]
    is_object = (overlap.amax(dim=1) >= 0.7) | highest.any(dim=1)
    return prediction(torch.where(is_object, 30.0, -30.0), encode(target, anchors(), UNIT))


def learnt(built: RPN, predicted: Prediction, batch: Batch) -> dict[str, torch.Tensor]:
    """The losses of a sample of the anchors."""
    return built.losses(predicted, built.sample_anchors(anchors(), batch))


def test_a_perfect_prediction_has_no_loss_and_another_has():
    batch = make_batch(objects=3)
    losses = learnt(rpn(), perfect(batch), batch)
    assert set(losses) == {"rpn_objectness", "rpn_box"}
    assert max(loss.item() for loss in losses.values()) < 1e-6
    wrong = perfect(batch)
    losses = learnt(rpn(), wrong._replace(logits=-wrong.logits, deltas=wrong.deltas + 1), batch)
    assert losses["rpn_objectness"].item() == pytest.approx(30, rel=1e-3)
    assert losses["rpn_box"].item() > 0.01


def test_giou_and_focal_loss_of_the_sample():
    """By their papers' equations, with Detectron2's weight of 2; of deltas, positives alone."""
    batch, built = make_batch(objects=3), rpn(box_loss="giou", objectness_loss="focal")
    assert max(loss.item() for loss in learnt(built, perfect(batch), batch).values()) < 1e-5
    torch.manual_seed(0)
    logits = torch.randn(2, len(anchors()), requires_grad=True)
    deltas = (0.3 * torch.randn(2, len(anchors()), 4)).requires_grad_()
    chosen = built.sample_anchors(anchors(), batch)
    losses = built.losses(prediction(logits, deltas), chosen)
    count, focal, giou = int(chosen.valid.sum()), 0.0, 0.0
    for image, slot in chosen.valid.nonzero().tolist():
        anchor = int(chosen.indices[image, slot])
        p = 1 / (1 + math.exp(-logits[image, anchor].item()))
        if not chosen.positive[image, slot]:
            focal -= p**2 * math.log(1 - p)
            continue
        focal -= (1 - p) ** 2 * math.log(p)
        x1, y1, x2, y2 = anchors()[anchor].tolist()
        dx, dy, dw, dh = deltas[image, anchor].tolist()
        x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
        w, h = (x2 - x1) * math.exp(dw) / 2, (y2 - y1) * math.exp(dh) / 2
        moved = torch.tensor([[x - w, y - h, x + w, y + h]])
        giou += torchvision.ops.generalized_box_iou_loss(
            moved, chosen.objects[image, slot][None]
        ).item()
    assert int(chosen.positive.sum()) > 5
    assert losses["rpn_objectness"].item() == pytest.approx(focal / count, rel=1e-4)
    assert losses["rpn_box"].item() == pytest.approx(2 * giou / count, rel=1e-4)
    sum(losses.values()).backward()
    positive = torch.zeros(2, len(anchors()), dtype=torch.bool)
    positive.scatter_(1, chosen.indices, chosen.positive)
    assert deltas.grad.isfinite().all()
    assert (deltas.grad[positive] != 0).any(dim=-1).all()
    assert not deltas.grad[~positive].any()
    assert (logits.grad != 0).sum() == count


def test_the_gradient_reaches_the_sampled_anchors_only():
    batch = make_batch(objects=3)
    logits = torch.zeros(2, len(anchors()), requires_grad=True)
    deltas = torch.zeros(2, len(anchors()), 4, requires_grad=True)
    losses = learnt(rpn(batch_size=64), prediction(logits, deltas), batch)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2), rel=1e-5)
    sum(losses.values()).backward()
    assert (logits.grad != 0).sum(dim=1).tolist() == [64, 64]
    positive = logits.grad < 0
    assert (positive.sum(dim=1) > 0).all()
    assert (positive.sum(dim=1) <= 32).all()
    assert not deltas.grad[~positive].any(), "boxes learn from objects alone"


def test_images_without_objects_learn_background():
    batch = make_batch(objects=0)
    logits = torch.zeros(2, len(anchors()), requires_grad=True)
    deltas = torch.zeros(2, len(anchors()), 4, requires_grad=True)
    losses = learnt(rpn(batch_size=64), prediction(logits, deltas), batch)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["rpn_box"].item() == 0
    sum(losses.values()).backward()
    assert (logits.grad > 0).sum() == 128
    assert not (logits.grad < 0).any()
    assert not deltas.grad.any()


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        channels=COUNT,
        anchors_per_cell=COUNT,
        depth=[*COUNT, 10**6],
        batch_size=[*COUNT, 10**12],
        object_iou=SHARE,
        background_iou=SHARE,
        positive_fraction=SHARE,
        nms_iou=SHARE,
        box_loss=CHOICE,
        objectness_loss=CHOICE,
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        rpn(**{option: value})
    assert str(caught.value).startswith(f"model.rpn.{option}={value} must be ")


@pytest.mark.parametrize("option", ["pre_nms", "post_nms"])
@pytest.mark.parametrize("value", [*COUNT, 10**12])
def test_counts_by_phase_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        rpn(**{option: {"train": 8, "test": value}})
    assert str(caught.value).startswith(f"model.rpn.{option}.test={value} must be ")
    for counts in (value, {}, {"train": 8}, {"train": 8, "test": 8, "val": 8}):
        with pytest.raises(UserError, match=rf"model.rpn.{option}=.* one number for each of train"):
            rpn(**{option: counts})


def test_background_is_below_object():
    with pytest.raises(
        UserError, match=r"model.rpn.background_iou=0.8 must be at most model.rpn.obj"
    ):
        rpn(object_iou=0.7, background_iou=0.8)
