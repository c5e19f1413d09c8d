"""The cascade against Detectron2's equations written plainly, and what it changes in the model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from detectron2_names import cascade_shapes
from models import make_batch, make_model
from torch import Tensor

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.cascade import later_losses, moved, predict, scaled, with_stages
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained.convert import from_detectron2, load

THRESHOLDS = (0.5, 0.6, 0.7)
WEIGHTS = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]
CHANNELS, WIDTH, CLASSES = 16, 32, 3
STD = (0.229, 0.224, 0.225)
State = dict[str, Tensor]


def theirs() -> State:
    """The box heads of a small cascade of Detectron2 that has opinions."""
    generator = torch.Generator().manual_seed(2)
    shapes = cascade_shapes(CLASSES, channels=CHANNELS, width=WIDTH)
    state = {}
    for name, shape in shapes.items():
        std = {"bbox_pred": 0.3, "cls_score": 0.5}.get(name.split(".")[-2], 0.1)
        state[name] = std * torch.randn(shape, generator=generator, dtype=torch.float64)
    return state


def model_of(state: State, **options: Any) -> MaskRCNN:
    """With the weights of these box heads, in float64."""
    torch.manual_seed(0)
    model = make_model(
        CLASSES, cascade=THRESHOLDS, channels=CHANNELS, width=WIDTH, norm="frozen", **options
    ).double()
    own = model.state_dict()
    converted = from_detectron2(state, STD)
    assert {name for name in own if name.startswith("box_head.")} == converted.keys()
    load(model, own | converted)
    return model


def head_of(state: State, stage: int, features: Tensor) -> tuple[Tensor, Tensor]:
    """FastRCNNConvFCHead and FastRCNNOutputLayers: R C 7 7 -> logits, background last, deltas."""

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])

    hidden = F.relu(linear(f"roi_heads.box_head.{stage}.fc1", features.flatten(1)))
    hidden = F.relu(linear(f"roi_heads.box_head.{stage}.fc2", hidden))
    predictor = f"roi_heads.box_predictor.{stage}"
    return linear(f"{predictor}.cls_score", hidden), linear(f"{predictor}.bbox_pred", hidden)


def apply_deltas(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Box2BoxTransform.apply_deltas."""
    size = boxes[:, 2:] - boxes[:, :2]
    center = boxes[:, :2] + size / 2
    dx, dy, dw, dh = (deltas / torch.tensor(weights, dtype=deltas.dtype)).unbind(1)
    limit = torch.log(torch.tensor(1000 / 16, dtype=deltas.dtype))
    center = center + torch.stack([dx, dy], 1) * size
    half = torch.stack([dw, dh], 1).minimum(limit).exp() * size / 2
    return torch.cat([center - half, center + half], dim=1)


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def pyramid_of(images: int = 1) -> list[Tensor]:
    shapes = [(images, CHANNELS, 96 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def boxes_in(count: int, images: int = 1) -> Tensor:
    corner = torch.rand(images, count, 2, dtype=torch.float64) * torch.tensor([80.0, 50])
    return torch.cat([corner, corner + 8 + 40 * torch.rand(images, count, 2)], dim=-1).double()


@torch.no_grad()
def test_detections_are_those_of_detectron2s_equations():
    """CascadeROIHeads._forward_box and fast_rcnn_inference: each stage pools at the boxes of the
    one before, the scores are the mean of the probabilities, and the last boxes count.
    """
    state = theirs()
    model = model_of(state).eval()
    pyramid, proposals = pyramid_of(), boxes_in(40)
    sizes = torch.tensor([[90, 120]])
    proposals[0] = clipped(proposals[0], 90, 120)

    boxes, probabilities = proposals[0], []
    for stage in range(3):
        logits, deltas = head_of(state, stage, model.pool(pyramid, boxes[None], 7))
        probabilities.append(logits.softmax(dim=1))
        boxes = clipped(apply_deltas(deltas, boxes, WEIGHTS[stage]), 90, 120)
    scores = sum(probabilities) / 3
    assert (boxes - proposals[0]).abs().mean() > 1, "they move"
    row, label = (scores[:, :-1] > 0.05).nonzero().unbind(1)
    kept = torchvision.ops.batched_nms(boxes[row], scores[row, label], label, 0.5)[:100]
    assert len(kept) > 20

    found = model.detect(pyramid, proposals, torch.ones(1, 40, dtype=torch.bool), sizes)
    valid = found["valid"][0]
    assert valid.sum() == len(kept)
    torch.testing.assert_close(
        found["scores"][0][valid], scores[row, label][kept], rtol=1e-9, atol=0
    )
    torch.testing.assert_close(found["boxes"][0][valid], boxes[row][kept], rtol=1e-9, atol=1e-9)
    assert torch.equal(found["labels"][0][valid], label[kept] + 1)
    classes = model.classify(pyramid, proposals, sizes)[0]
    assert torch.equal(classes, (scores.argmax(dim=1) + 1) % (CLASSES + 1))


def truth_of(images: int = 2, objects: int = 3) -> Batch:
    batch = make_batch(images, side=96, objects=objects)
    batch["boxes"] = batch["boxes"].double()
    return batch


def iou(first: Tensor, second: Tensor) -> Tensor:
    return torchvision.ops.box_iou(first, second)


def stage_losses(
    logits: Tensor, deltas: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor, stage: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Detectron2's of one image's boxes at one stage, sums, and the number of positives."""
    best, instance = iou(truth, boxes).max(dim=0)
    positive = best >= THRESHOLDS[stage]
    target = torch.where(positive, labels[instance] - 1, CLASSES)
    classes = F.cross_entropy(logits, target, reduction="sum")
    own = boxes[positive]
    matched = truth[instance[positive]]
    size, wanted = own[:, 2:] - own[:, :2], matched[:, 2:] - matched[:, :2]
    shift = (matched[:, :2] + wanted / 2 - own[:, :2] - size / 2) / size
    expected = torch.cat([shift, (wanted / size).log()], 1) * torch.tensor(WEIGHTS[stage])
    box = F.smooth_l1_loss(deltas[positive], expected, beta=1 / 9, reduction="sum")
    return classes, box, positive.sum()


@pytest.mark.parametrize("static_shapes", [False, True])
def test_losses_are_those_of_detectron2s_equations(static_shapes: bool):
    """All boxes of the first stage go on, matched again with each stage's threshold."""
    state = theirs()
    model, batch = model_of(state), truth_of()
    pyramid = pyramid_of(2)
    proposals, real = boxes_in(60, 2).clamp(max=96), torch.ones(2, 60, dtype=torch.bool)
    jitter = batch["boxes"][:, :3].repeat(1, 8, 1)
    proposals[:, :24] = (jitter + torch.randn(2, 24, 4)).clamp(0, 96)
    regions = model.box_head.sample_regions(proposals, real, batch, static_shapes)
    heads, counts, _ = model.head_losses(
        pyramid, regions, {k: v for k, v in batch.items()}, static_shapes
    )
    names = ["class", "box", "class_stage2", "box_stage2", "class_stage3", "box_stage3"]
    assert list(heads)[:6] == names

    sums = torch.zeros(3, 2, dtype=torch.float64)
    sizes, positives = torch.zeros(3), torch.zeros(3)
    with torch.no_grad():
        for i in range(2):
            there = batch["valid"][i]
            truth, labels = batch["boxes"][i][there], batch["labels"][i][there]
            boxes = regions.boxes[i][regions.valid[i]]
            for stage in range(3):
                maps = [level[i : i + 1] for level in pyramid]
                logits, deltas = head_of(state, stage, model.pool(maps, boxes[None], 7))
                classes, box, count = stage_losses(logits, deltas, boxes, truth, labels, stage)
                sums[stage] += torch.stack([classes, box])
                sizes[stage] += len(boxes)
                positives[stage] += count
                boxes = clipped(apply_deltas(deltas, boxes, WEIGHTS[stage]), 96, 96)
    assert (positives > 0).all()
    assert positives[0] > positives[2]
    expected = (sums / sizes[:, None]).flatten()
    found = torch.stack([heads[name] for name in names])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert [counts[name].item() for name in names[::2]] == sizes.tolist()


def test_the_gradient_of_features_is_that_of_the_mean_and_of_weights_that_of_the_sum():
    """By finite differences along a direction."""
    model, batch = model_of(theirs()), truth_of()
    head = model.box_head
    boxes = batch["boxes"][:, :3] + torch.randn(2, 3, 4)
    regions = head.sample_regions(boxes, torch.ones(2, 3, dtype=torch.bool), batch)
    count = regions.labels.numel()
    deltas = torch.zeros(count, 1, 4, dtype=torch.float64)
    features = torch.randn(count, CHANNELS, 7, 7, dtype=torch.float64, requires_grad=True)
    weight = head.later[0].fcs[0].weight

    def loss(values: Tensor) -> Tensor:
        found, _ = later_losses(head, lambda _: values, deltas, regions, batch)
        return found["class_stage2"] + found["box_stage2"]

    at_features, at_weight = torch.autograd.grad(loss(features), [features, weight])
    direction, step = torch.randn_like(features), 1e-6
    with torch.no_grad():
        change = loss(features + step * direction) - loss(features - step * direction)
        slope = change / (2 * step)
        assert (at_features * direction).sum().item() == pytest.approx(slope.item() / 3, rel=1e-5)
        way = torch.randn_like(weight)
        weight += step * way
        more = loss(features)
        weight -= 2 * step * way
        slope = (more - loss(features)) / (2 * step)
        assert (at_weight * way).sum().item() == pytest.approx(slope.item(), rel=1e-5)
    values = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(scaled(values, 3), values)
    assert scaled(values, 1) is values


def test_boxes_without_area_and_background_of_crowds_do_not_count():
    model, batch = model_of(theirs()), truth_of(1)
    boxes = batch["boxes"][:, :3].clone()
    boxes[0, 1] = torch.tensor([50.0, 50, 50, 60])
    batch["boxes"][0, -1] = torch.tensor([0.0, 0, 96, 96])
    batch["crowd"][0, -1] = True
    boxes[0, 2] = torch.tensor([1.0, 1, 5, 5])
    every = torch.ones(1, 3, dtype=torch.bool)
    regions = model.box_head.sample_regions(boxes, every, batch)._replace(boxes=boxes, valid=every)
    features = torch.zeros(3, CHANNELS, 7, 7, dtype=torch.float64)
    still = torch.zeros(3, 1, 4, dtype=torch.float64)
    _, counts = later_losses(model.box_head, lambda _: features, still, regions, batch)
    assert counts["class_stage2"] == 1


def test_a_plain_box_head_passes_through():
    model = make_model()
    assert len(model.box_head.later) == 0
    assert model.box_head.cascade is None
    features = torch.randn(6, 16, 7, 7)
    boxes, sizes = torch.rand(1, 6, 4), torch.tensor([[64, 64]])
    logits, deltas, same = predict(model.box_head, lambda _: features, boxes, sizes)
    expected = model.box_head(features)
    assert torch.equal(logits, expected[0])
    assert torch.equal(deltas, expected[1])
    assert same is boxes


def test_the_stages_are_those_of_the_paper():
    head = make_model(cascade=THRESHOLDS).box_head
    stages = [head, *head.later]
    assert [stage.object_iou for stage in stages] == list(THRESHOLDS)
    assert [stage.box_weights for stage in stages] == WEIGHTS
    assert head.final_weights == WEIGHTS[2]
    assert [stage.deltas.out_features for stage in stages] == [4, 4, 4]
    assert [stage.classes.out_features for stage in stages] == [4, 4, 4]
    assert not torch.equal(head.fcs[0].weight, head.later[0].fcs[0].weight)


@pytest.mark.long
@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("objects", [0, 2])
def test_every_weight_learns_and_static_shapes_give_the_same(static_shapes: bool, objects: int):
    torch.manual_seed(0)
    model, batch = make_model(cascade=THRESHOLDS, norm="frozen"), make_batch(objects=objects)
    output = model(batch, static_shapes)
    assert all(loss.isfinite() for loss in output.losses.values())
    sum(output.losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        assert parameter.grad is not None or not parameter.requires_grad, name
    other = model(batch, not static_shapes).losses
    for name, loss in output.losses.items():
        assert loss.item() == pytest.approx(other[name].item(), rel=1e-4, abs=1e-7), name


def test_evaluation_gives_detections_and_labels():
    torch.manual_seed(0)
    model, batch = make_model(cascade=THRESHOLDS).eval(), make_batch()
    for head in (model.box_head, *model.box_head.later):
        torch.nn.init.normal_(head.classes.weight, std=0.5)
    with torch.no_grad():
        output = model(batch)
        alone = model({key: value for key, value in batch.items() if key not in TARGET_KEYS})
    assert output.detections["valid"].sum() > 5
    assert output.box_labels.shape == (2, 4)
    for key, value in alone.detections.items():
        assert torch.equal(output.detections[key], value), key


def test_boxes_move_with_the_weights_of_their_stage():
    head = make_model(cascade=THRESHOLDS).box_head
    boxes = torch.tensor([[[10.0, 10, 30, 20]]])
    deltas = torch.tensor([[[3.0, 0, 0, 0]]])
    sizes = torch.tensor([[40, 35]])
    for stage, shift in ((head, 6.0), (head.later[0], 3.0), (head.later[1], 2.0)):
        expected = [10 + shift, 10, min(30 + shift, 35), 20]
        assert moved(boxes, deltas, stage, sizes)[0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "value", [(0.5,), (), (0.7, 0.6), (0.5, 1.2), (-0.1, 0.5), "0.5", 0.5, True, (0.5, None)]
)
def test_thresholds_of_the_wrong_kind_are_named(value: Any):
    with pytest.raises(UserError, match=r"^model\.box_head\.cascade="):
        make_model(cascade=value)


def test_a_head_of_ones_own_without_stages_is_named():
    class Own(torch.nn.Module):
        cascade = THRESHOLDS

    with pytest.raises(UserError, match=r"cascade=\[0.5, 0.6, 0.7\] needs a BoxHead .* is a Own"):
        with_stages(Own(), lambda: make_model().box_head)
