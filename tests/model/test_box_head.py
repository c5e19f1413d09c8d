import math
from typing import Any

import pytest
import torch
from models import make_batch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.boxes import _batched_nms_vanilla
from wrong_values import CHOICE, COUNT, COUNT_OR_NONE, SHARE, cases, positive_list

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.box_head import BoxHead, SampledRegions
from maskrcnn_lit.model.boxes import encode, iou

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SIZES = torch.tensor([[64, 64], [64, 64]])


def head(**options: object) -> BoxHead:
    sample = {"object_iou": 0.5, "batch_size": 32, "positive_fraction": 0.25}
    final = {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100, "candidates": 1000}
    shape = {"channels": 6, "pool": 7, "width": 16, "num_classes": 3, "box_weights": WEIGHTS}
    return BoxHead(**{**shape, **sample, **final, **options})


def proposals(images: int = 2, count: int = 80, side: float = 64) -> torch.Tensor:
    corner = torch.rand(images, count, 2) * side * 0.7
    return torch.cat(
        [corner, (corner + 2 + torch.rand(images, count, 2) * side / 2).clamp(max=side)], dim=-1
    )


def near(batch: Batch, copies: int) -> torch.Tensor:
    """Proposals that overlap the objects well."""
    boxes = batch["boxes"][:, :2].repeat(1, copies, 1)
    return (boxes + torch.randn(boxes.shape) * 0.5).clamp(0, 64)


def test_forward_equals_torchvision():
    ours, mlp, predictor = head(), TwoMLPHead(6 * 49, 16), FastRCNNPredictor(16, 4)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():  # ours reads row, column, channel, and has no deltas of background
        mlp.fc6.weight.copy_(
            ours.fcs[0].weight.unflatten(1, (7, 7, 6)).permute(0, 3, 1, 2).flatten(1)
        )
        mlp.fc6.bias.copy_(ours.fcs[0].bias)
        mlp.fc7.load_state_dict(ours.fcs[1].state_dict())
        predictor.cls_score.load_state_dict(ours.classes.state_dict())
        predictor.bbox_pred.weight[4:] = ours.deltas.weight
        predictor.bbox_pred.bias[4:] = ours.deltas.bias
    features = torch.randn(9, 6, 7, 7)
    scores, deltas = predictor(mlp(features))
    our_scores, our_deltas = ours(features)
    assert torch.allclose(our_scores, scores, atol=1e-4)
    assert torch.allclose(our_deltas, deltas.view(9, 4, 4)[:, 1:], atol=1e-4)


def test_a_new_head_has_no_opinion():
    logits, deltas = head()(torch.randn(5, 6, 7, 7))
    assert (logits.softmax(1) - 0.25).abs().max() < 0.05
    assert deltas.abs().max() < 0.05


def test_a_sample_holds_objects_and_background():
    batch = make_batch(objects=2)
    candidates = torch.cat([near(batch, 20), proposals()], dim=1)
    regions = head().sample_regions(
        candidates, torch.ones(candidates.shape[:2], dtype=torch.bool), batch
    )
    assert regions.boxes.shape == (2, 32, 4)
    assert regions.positive.sum(1).tolist() == [8, 8]
    assert regions.valid.all()
    overlap = iou(regions.boxes, batch["boxes"])
    assert torch.equal(overlap.amax(2) >= 0.5, regions.positive)
    assert torch.equal(overlap.argmax(2)[regions.positive], regions.instance[regions.positive])
    own = batch["labels"].gather(1, regions.instance)
    assert torch.equal(regions.labels, torch.where(regions.positive, own, 0))
    assert set(regions.labels.unique().tolist()) == {0, 1, 2}


def test_objects_are_candidates_themselves():
    batch = make_batch(objects=3)
    nowhere = torch.zeros(2, 10, 4)
    regions = head().sample_regions(nowhere, torch.zeros(2, 10, dtype=torch.bool), batch)
    assert regions.valid.sum(1).tolist() == regions.positive.sum(1).tolist() == [3, 3]
    for i in range(2):
        held = regions.boxes[i][regions.positive[i]]
        assert torch.equal(
            held[held[:, 0].argsort()], batch["boxes"][i, :3][batch["boxes"][i, :3, 0].argsort()]
        )


def test_padding_is_never_drawn():
    batch = make_batch(objects=2)
    candidates = torch.cat([proposals(count=10), near(batch, 20)], dim=1)
    valid = torch.arange(50).expand(2, -1) < 10  # what lies near the objects is padding
    regions = head().sample_regions(candidates, valid, batch)
    allowed = torch.cat([candidates[:, :10], batch["boxes"][:, :2]], dim=1)
    assert regions.valid.sum(1).tolist() == [12, 12]
    for i in range(2):
        drawn = regions.boxes[i][regions.valid[i]]
        assert (drawn[:, None] == allowed[i]).all(-1).any(1).all()
        assert len(drawn.unique(dim=0)) == 12


def test_images_without_objects_give_background():
    batch = make_batch(objects=0)
    regions = head().sample_regions(proposals(), torch.ones(2, 80, dtype=torch.bool), batch)
    assert regions.valid.all()
    assert not regions.positive.any()
    assert not regions.labels.any()


def test_losses_read_the_deltas_of_the_true_class():
    batch = make_batch(objects=2)
    boxes = torch.stack(
        [batch["boxes"][:, 0] + 1, batch["boxes"][:, 1] - 1, batch["boxes"][:, 0]], dim=1
    )
    labels = torch.tensor([[1, 2, 0]]).expand(2, -1)
    instance = torch.tensor([[0, 1, 0]]).expand(2, -1)
    every = torch.ones(2, 3, dtype=torch.bool)
    regions = SampledRegions(boxes, labels, instance, labels > 0, every)
    logits = torch.zeros(6, 4, requires_grad=True)
    deltas = torch.zeros(6, 3, 4)
    targets = encode(
        batch["boxes"].gather(1, instance[..., None].expand(-1, -1, 4)), boxes, WEIGHTS
    ).view(6, 4)
    for region, label in enumerate(labels.flatten().tolist()):
        if label:
            deltas[region, label - 1] = targets[region]
    deltas.requires_grad_()
    losses = head().losses(logits, deltas, regions, batch)
    assert set(losses) == {"class", "box"}
    assert losses["class"].item() == pytest.approx(math.log(4))
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    shifted = head().losses(logits, deltas + 1, regions, batch)
    assert shifted["box"].item() == pytest.approx(4 * (1 - 1 / 18) * 4 / 6, rel=1e-4), (
        "four positives of six regions"
    )
    (gradient,) = torch.autograd.grad(shifted["box"], deltas)
    expected = torch.zeros(6, 3, dtype=torch.bool)
    expected[[0, 1, 3, 4], [0, 1, 0, 1]] = True
    assert torch.equal(gradient.any(dim=2), expected)


def scored(*probabilities: list[float]) -> torch.Tensor:
    """Class probabilities (the rest is background) -> logits of one image's proposals."""
    p = torch.tensor(probabilities)
    return torch.cat([1 - p.sum(1, keepdim=True), p], dim=1).log()


def detect(
    built: BoxHead, logits: torch.Tensor, boxes: torch.Tensor, **options: torch.Tensor
) -> dict[str, torch.Tensor]:
    deltas = options.get("deltas", torch.zeros(len(logits), built.num_classes, 4))
    valid = options.get("valid", torch.ones(boxes.shape[:2], dtype=torch.bool))
    return built.detect(logits, deltas, boxes, valid, SIZES[: len(boxes)])


def test_detections_by_hand():
    boxes = torch.tensor([[[0.0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 80, 60], [5, 50, 10, 60]]])
    logits = scored([0.6, 0.3, 0.04], [0.5, 0.4, 0.05], [0.1, 0.02, 0.8], [0.04, 0.04, 0.04])
    found = detect(head(), logits, boxes)
    kept = found["valid"][0]
    assert kept.tolist() == [True] * 4 + [False] * (len(kept) - 4)
    assert found["scores"][0][kept].tolist() == pytest.approx([0.8, 0.6, 0.4, 0.1])
    assert found["labels"][0][kept].tolist() == [3, 1, 2, 1], (
        "the two that overlap suppress each other by class"
    )
    expected = [[40, 40, 64, 60], [0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 64, 60]]
    assert torch.allclose(
        found["boxes"][0][kept], torch.tensor(expected, dtype=torch.float32), atol=1e-4
    )
    for key in ("boxes", "scores", "labels"):
        assert not found[key][0][~kept].any()


def test_each_class_has_its_own_box():
    boxes = torch.tensor([[[10.0, 10, 30, 30]]])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = torch.tensor(
        [5.0, 0, 0, 5 * math.log(2)]
    )  # half a width to the right, twice as high
    found = detect(head(), scored([0.5, 0.4, 0.01]), boxes, deltas=deltas)
    assert found["labels"][0].tolist()[:2] == [1, 2]
    assert torch.allclose(
        found["boxes"][0, :2], torch.tensor([[10.0, 10, 30, 30], [20, 0, 40, 40]]), atol=1e-4
    )


def random_scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(160, 4) * 2, torch.randn(160, 3, 4), proposals()


def test_detections_equal_torchvisions_suppression():
    logits, deltas, boxes = random_scene()
    every = detect(head(nms_iou=1.0, max_detections=480), logits, boxes, deltas=deltas)
    found = detect(head(max_detections=480), logits, boxes, deltas=deltas)
    for i in range(2):
        real = every["valid"][i]
        kept = _batched_nms_vanilla(
            every["boxes"][i][real], every["scores"][i][real], every["labels"][i][real], 0.5
        )
        assert 20 < len(kept) < real.sum()
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(found[key][i][found["valid"][i]], every[key][i][real][kept]), key


def test_the_best_are_kept():
    logits, deltas, boxes = random_scene()
    every, few = (detect(head(max_detections=n), logits, boxes, deltas=deltas) for n in (480, 7))
    assert few["valid"].all()
    assert few["boxes"].shape == (2, 7, 4)
    for key in ("boxes", "scores", "labels"):
        assert torch.equal(few[key], every[key][:, :7]), key


def test_as_many_candidates_as_pass_the_threshold_are_as_good_as_all():
    logits, deltas, boxes = random_scene()
    passing = int((logits.softmax(1)[:, 1:] > 0.05).view(2, -1).sum(1).max())
    every, some, less = (
        detect(head(candidates=n, max_detections=30), logits, boxes, deltas=deltas)
        for n in (480, passing, 25)
    )
    assert passing < 480
    assert all(torch.equal(every[key], some[key]) for key in every)
    assert not torch.equal(every["scores"][:, :25], less["scores"]), "fewer are not"


def test_padded_proposals_are_no_detections():
    logits, deltas, boxes = random_scene()
    valid = torch.arange(80).expand(2, -1) < 30
    found = detect(head(), logits, boxes, deltas=deltas, valid=valid)
    alone = detect(
        head(),
        logits.view(2, 80, 4)[:, :30].flatten(0, 1),
        boxes[:, :30].contiguous(),
        deltas=deltas.view(2, 80, 3, 4)[:, :30].flatten(0, 1),
    )
    for key in ("boxes", "scores", "labels"):
        assert torch.equal(found[key][found["valid"]], alone[key][alone["valid"]]), key


def test_a_box_below_a_hundredth_of_a_pixel_is_left_out_and_suppresses_none():
    boxes = torch.tensor([[[8.0, 8, 8.0078125, 8.03125], [8, 8, 8.01171875, 8.03125]]])
    assert iou(boxes[:, :1], boxes[:, 1:]).item() > 0.5
    found = detect(head(), scored([0.9, 0.02, 0.02], [0.8, 0.02, 0.02]), boxes)
    valid = found["valid"][0]
    assert found["scores"][0][valid].tolist() == pytest.approx([0.8])
    assert torch.allclose(found["boxes"][0][valid], boxes[0, 1:])


def test_no_detection_is_zeros():
    for built, logits in (
        (head(), scored([0.01, 0.02, 0.03], [0.04, 0.04, 0.04])),
        (head(), torch.full((2, 4), math.nan)),
    ):
        found = detect(built, logits, proposals(1, 2))
        assert not found["valid"].any()
        assert found["boxes"].shape[1] >= 1
        assert not any(found[key].any() for key in ("boxes", "scores", "labels"))


def test_deltas_that_are_not_finite_give_numbers():
    found = detect(
        head(), torch.zeros(2, 4), proposals(1, 2), deltas=torch.full((2, 3, 4), math.nan)
    )
    assert found["boxes"].isfinite().all()
    assert not found["valid"].any()


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        channels=COUNT,
        **{key: [*COUNT, 10**9] for key in ("width", "conv_width", "pool", "fcs")},
        **{key: [*COUNT, 10**12] for key in ("batch_size", "max_detections", "candidates")},
        convs=[*COUNT_OR_NONE, 10**9],
        **dict.fromkeys(
            (
                *("object_iou", "positive_fraction", "score_threshold", "nms_iou"),
                "label_smoothing",
            ),
            SHARE,
        ),
        box_weights=positive_list(4),
        norm=CHOICE,
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        head(**{option: value})
    assert str(caught.value).startswith(f"model.box_head.{option}={value} must be ")


@pytest.mark.parametrize("value", COUNT)
def test_the_number_of_classes_is_checked(value: Any):
    with pytest.raises(UserError) as caught:
        head(num_classes=value)
    assert str(caught.value).startswith(f"model.num_classes={value} must be ")
