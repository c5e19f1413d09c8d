"""The whole forward: what it gives in each mode, what must have no influence, and that no shape
hangs on data.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import make_batch, make_model
from shapes_from_data import ShapesFromData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from wrong_values import COUNT_OR_NONE, FLAG, TEXT, cases, positive_list

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch, check_batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model import roi_align
from maskrcnn_lit.model.mask_rcnn import MaskRCNN, build_mask_rcnn

LOSSES = {"rpn_objectness", "rpn_box", "class", "box", "mask"}


def spread(model: MaskRCNN) -> MaskRCNN:
    """Weights that have opinions, so that there are proposals and detections of several classes."""
    for layer, std in (
        (model.rpn.objectness, 0.5),
        (model.box_head.classes, 0.5),
        (model.mask_head.logits, 0.5),
    ):
        torch.nn.init.normal_(layer.weight, std=std)
    return model


def learn(model: MaskRCNN, batch: Batch) -> dict[str, torch.Tensor]:
    """One forward and backward; the losses."""
    model.zero_grad()
    losses = model(batch).losses
    sum(losses.values()).backward()
    return losses


def joined(*batches: Batch) -> Batch:
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def without_objects(images: int = 2) -> Batch:
    return make_batch(images, objects=0)


def crowded(batch: Batch, box: list[float], image: int = 0) -> Batch:
    """`batch` with a crowd region in the last slot of an image."""
    batch = {key: value.clone() for key, value in batch.items()}
    for key in ("boxes", "mask_boxes"):
        batch[key][image, -1] = torch.tensor(box)
    batch["labels"][image, -1] = 1
    batch["crowd"][image, -1] = True
    return batch


def unreadable(side: int = 64) -> Batch:
    """As data/dataset.py fills the slot of a file that could not be decoded; a smaller side than
    the batch's too.
    """
    batch = crowded(without_objects(1), [0, 0, side, side])
    return batch | {
        "images": torch.zeros_like(batch["images"]),
        "image_sizes": torch.tensor([[side, side]]),
        "readable": torch.tensor([False]),
    }


def test_the_batches_of_these_tests_keep_the_contract():
    for batch in (
        make_batch(),
        without_objects(),
        unreadable(),
        unreadable(40),
        crowded(make_batch(), [0, 0, 9, 9]),
    ):
        check_batch(batch, 3)


# What it gives


def test_training_gives_five_losses_and_nothing_else():
    output = make_model()(make_batch())
    assert set(output.losses) == LOSSES
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in output.losses.values())
    assert output.detections is None
    assert output.box_labels is None


def test_evaluation_without_targets_gives_detections():
    batch = {key: value for key, value in make_batch().items() if key not in TARGET_KEYS}
    output = spread(make_model()).eval()(batch)
    assert output.losses == {}
    assert output.box_labels is None
    found = output.detections
    count = found["scores"].shape[1]
    shapes = {
        "boxes": (2, count, 4),
        "scores": (2, count),
        "labels": (2, count),
        "valid": (2, count),
    }
    assert {k: tuple(v.shape) for k, v in found.items()} == shapes | {"masks": (2, count, 28, 28)}
    valid = found["valid"]
    assert valid.any()
    assert count <= 100
    assert ((found["labels"] >= 1) & (found["labels"] <= 3))[valid].all()
    assert not found["labels"][~valid].any()
    assert (found["scores"][valid] > 0.05).all()
    assert (found["scores"][:, :-1] >= found["scores"][:, 1:]).all()
    assert ((found["masks"] > 0) & (found["masks"] < 1)).all()
    assert found["masks"].std() > 0.01
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= 64).all()


def test_detections_stay_inside_of_each_image():
    batch = without_objects()
    batch["image_sizes"] = torch.tensor([[64, 40], [30, 64]])
    found = spread(make_model()).eval()(batch).detections
    for i, (height, width) in enumerate([(64, 40), (30, 64)]):
        boxes = found["boxes"][i][found["valid"][i]]
        assert len(boxes)
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()


def test_each_mask_is_of_its_own_box_and_class():
    model, batch = spread(make_model()).eval(), make_batch()
    found = model(batch).detections
    pyramid = model.fpn(model.backbone(model.normalize(batch["images"], batch["image_sizes"])))
    image, slot = 1, int(found["valid"][1].sum()) - 1
    features = model.pool(
        [p[image : image + 1] for p in pyramid], found["boxes"][image, slot][None, None], 14
    )
    expected = model.mask_head(features, found["labels"][image, slot][None]).sigmoid()[0]
    assert torch.allclose(found["masks"][image, slot], expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_validation_gives_the_losses_of_training_and_detections_in_one_pass(norm: str):
    model, batch = spread(make_model(norm=norm)), make_batch()
    with torch.no_grad():
        training = model.train()(batch).losses if norm == "frozen" else None
        statistics = {
            k: v.clone() for k, v in model.state_dict().items() if "running" in k or "tracked" in k
        }
        passes: list[object] = []
        hook = model.backbone.register_forward_hook(lambda *_: passes.append(1))
        output = model.eval()(batch)
        hook.remove()
        alone = model({k: v for k, v in batch.items() if k not in TARGET_KEYS}).detections
    assert len(passes) == 1
    assert set(output.losses) == LOSSES
    assert all(loss.isfinite() for loss in output.losses.values())
    if training is not None:
        assert {k: v.item() for k, v in output.losses.items()} == {
            k: v.item() for k, v in training.items()
        }
    for name, value in statistics.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert alone["valid"].any()
    for key, value in alone.items():
        assert torch.equal(output.detections[key], value), "targets have no say in detections"


def test_losses_sample_from_trainings_proposals_and_detections_from_those_of_inference(
    monkeypatch: pytest.MonkeyPatch,
):
    model, batch, phases = make_model(), make_batch(), []
    propose = model.rpn.propose
    monkeypatch.setattr(
        model.rpn, "propose", lambda *args: phases.append(args[3]) or propose(*args)
    )
    for training, targets, expected in (
        (True, True, ["train"]),
        (False, True, ["train", "test"]),
        (False, False, ["test"]),
    ):
        phases.clear()
        model.train(training)({k: v for k, v in batch.items() if targets or k not in TARGET_KEYS})
        assert phases == expected


def test_box_labels_are_the_likeliest_class_of_each_objects_own_box():
    model, batch = spread(make_model()).eval(), make_batch(objects=4)
    output = model(batch)
    pyramid = model.fpn(model.backbone(model.normalize(batch["images"], batch["image_sizes"])))
    for i in range(2):
        for j in range(4):
            features = model.pool(
                [p[i : i + 1] for p in pyramid], batch["boxes"][i, j][None, None], 7
            )
            assert output.box_labels[i, j] == model.box_head(features)[0].argmax()
    for label in (0, 2):
        torch.nn.init.zeros_(model.box_head.classes.weight)
        model.box_head.classes.bias.data = torch.nn.functional.one_hot(
            torch.tensor(label), 4
        ).float()
        assert (model(batch).box_labels == label).all(), "background is a class too"


def test_normalize():
    model = make_model()
    images = torch.full((2, 3, 4, 6), 255, dtype=torch.uint8)
    images[1] = 0
    normal = model.normalize(images, torch.tensor([[4, 6], [2, 3]]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(normal[0], ((1 - mean) / std)[:, None, None].expand(3, 4, 6))
    assert torch.allclose(normal[1, :, :2, :3], (-mean / std)[:, None, None].expand(3, 2, 3))
    assert not normal[1, :, 2:].any()
    assert not normal[1, :, :, 3:].any()
    assert normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last)


# Images without objects, crowd regions, unreadable images, padding


@pytest.mark.parametrize(
    "batch_of",
    [
        without_objects,
        lambda: joined(make_batch(1), without_objects(1)),
        lambda: joined(without_objects(1), unreadable()),
        unreadable,
    ],
    ids=["none", "mixed", "none and unreadable", "unreadable"],
)
def test_images_without_objects_train(batch_of: Callable[[], Batch]):
    model, batch = make_model(), batch_of()
    losses = learn(model, batch)
    assert all(loss.isfinite() for loss in losses.values())
    if not batch["valid"].any():
        assert [losses[name].item() for name in ("rpn_box", "box", "mask")] == [0, 0, 0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    evaluated = model.eval()(batch)
    assert all(loss.isfinite() for loss in evaluated.losses.values())


def test_without_objects_all_is_background():
    model = make_model()
    losses = learn(model, without_objects())
    assert losses["rpn_objectness"] > 0
    assert losses["class"] > 0
    assert (model.rpn.objectness.bias.grad > 0).all(), "down with the objectness"
    assert model.box_head.classes.bias.grad[0] < 0, "up with background"
    assert not any(p.grad.any() for p in model.mask_head.parameters())


def inside(boxes: torch.Tensor, region: list[float]) -> torch.Tensor:
    low, high = torch.tensor(region[:2]), torch.tensor(region[2:])
    return ((boxes[..., :2] >= low) & (boxes[..., 2:] <= high)).all(dim=-1)


CROWD = [4.0, 8.0, 44.0, 60.0]


def gradient_at_anchors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the RPN's logits and deltas, where every anchor is in the sample; and the
    anchors.
    """
    torch.manual_seed(2)
    model = make_model()
    model.rpn.batch_size, model.rpn.positive_fraction = 10**6, 1.0
    images = model.normalize(batch["images"], batch["image_sizes"])
    pyramid = model.fpn(model.backbone(images))
    anchors = model.anchors(pyramid, images.shape[-2:])
    prediction = model.rpn(pyramid)
    leaves = [t.detach().requires_grad_() for t in prediction[:2]]
    chosen = model.rpn.sample_anchors(anchors, batch)
    losses = model.rpn.losses(prediction._replace(logits=leaves[0], deltas=leaves[1]), chosen)
    return *torch.autograd.grad(sum(losses.values()), leaves), anchors


def test_anchors_in_a_crowd_region_get_no_gradient():
    plain = make_batch(1, objects=0)
    logits, _, anchors = gradient_at_anchors(plain)
    hidden = inside(anchors, CROWD)
    assert hidden.sum() > 50
    assert (logits[0] != 0).all(), "without the crowd region all of them are background"
    logits, deltas, _ = gradient_at_anchors(crowded(plain, CROWD))
    assert not logits[0, hidden].any()
    assert not deltas[0, hidden].any()
    apart = (
        (anchors[:, 0] >= 44) | (anchors[:, 1] >= 60) | (anchors[:, 2] <= 4) | (anchors[:, 3] <= 8)
    )
    assert apart.sum() > 50
    assert (logits[0, apart] > 0).all(), "elsewhere all is as before"


def test_an_object_in_a_crowd_region_is_learnt():
    batch = make_batch(1, objects=1)
    batch["boxes"][0, 0] = torch.tensor([12.0, 16, 28, 32])
    logits, deltas, anchors = gradient_at_anchors(crowded(batch, CROWD))
    positive = logits[0] < 0
    hidden = inside(anchors, CROWD)
    assert (positive & hidden).any()
    assert deltas[0][positive & hidden].any()
    assert not logits[0][~positive & hidden].any()


def gradient_at_regions(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the class logits of every proposal that is drawn (all that may be), and which
    slots are in CROWD.
    """
    torch.manual_seed(2)
    head = make_model(regions=500).box_head
    corner = torch.rand(1, 300, 2) * 50
    proposals = torch.cat([corner, (corner + 2 + torch.rand(1, 300, 2) * 20).clamp(max=64)], dim=-1)
    regions = head.sample_regions(proposals, torch.ones(1, 300, dtype=torch.bool), batch)
    logits = torch.zeros(regions.labels.numel(), 4, requires_grad=True)
    losses = head.losses(logits, torch.zeros(len(logits), 3, 4), regions, batch)
    (gradient,) = torch.autograd.grad(sum(losses.values()), logits)
    drawn = {tuple(b) for b, g in zip(regions.boxes[0].tolist(), gradient, strict=True) if g.any()}
    got = torch.tensor([tuple(p) in drawn for p in proposals[0].tolist()])
    return got, inside(proposals[0], CROWD)


def test_regions_in_a_crowd_region_get_no_gradient():
    plain = make_batch(1, objects=0)
    got, hidden = gradient_at_regions(plain)
    assert hidden.sum() > 30
    assert got.all()
    got, hidden = gradient_at_regions(crowded(plain, CROWD))
    assert not got[hidden].any()
    assert got[~hidden].sum() > 30


def pyramid_gradients(
    model: MaskRCNN, batch: Batch
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    held: list[torch.Tensor] = []

    def keep(_: Any, __: Any, maps: list[torch.Tensor]) -> None:
        for level in maps:
            level.retain_grad()
        held.extend(maps)

    with model.fpn.register_forward_hook(keep):
        losses = learn(model, batch)
    return losses, [level.grad for level in held]


@pytest.mark.parametrize("side", [64, 40])
def test_an_unreadable_image_changes_nothing(side: int):
    """Its loss, its gradient, and the number that the others' losses are divided by."""
    model, batch = make_model(norm="frozen"), make_batch(2)
    expected, expected_gradients = pyramid_gradients(model, batch)
    losses, gradients = pyramid_gradients(model, joined(batch, unreadable(side)))
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    for level, expected_level in zip(gradients, expected_gradients, strict=True):
        assert not level[2].any()
        assert torch.allclose(level[:2], expected_level, rtol=1e-3, atol=1e-7)
    readable = joined(
        batch,
        unreadable(side)
        | {"readable": torch.tensor([True]), "crowd": torch.zeros(1, 4, dtype=torch.bool)},
    )
    model.rpn.batch_size = 10**6  # or the few anchors of p6 may not be in the sample
    _, gradients = pyramid_gradients(model, readable)
    assert all(level[2].any() for level in gradients), "as a black image without objects it would"


def test_what_is_sampled_of_an_image_hangs_on_its_seed_alone():
    """Not on its place in the batch, nor on the other images, nor on torch's generator."""
    model, batch = make_model(norm="frozen"), make_batch(3)

    def sampled(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        pyramid, prediction = model.trunk(batch["images"], batch["image_sizes"])
        anchors = model.anchors(pyramid, batch["images"].shape[-2:])
        chosen, regions = model.targets(prediction, anchors, batch)
        return chosen.indices, regions.boxes

    anchors, boxes = sampled(batch)
    order = [2, 0]
    again, boxes_again = sampled({key: value[order] for key, value in batch.items()})
    assert torch.equal(again, anchors[order])
    assert torch.allclose(boxes_again, boxes[order], atol=1e-3)
    other, _ = sampled(batch | {"seeds": batch["seeds"] + 100})
    assert all(not torch.equal(a, b) for a, b in zip(other, anchors, strict=True))


def test_without_seeds_torchs_generator_draws():
    model, batch = make_model(norm="frozen"), make_batch(2)
    del batch["seeds"]
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(batch).losses["rpn_objectness"].item())
    assert found[0] == found[1] != found[2]


def test_counts_say_how_many_each_loss_is_the_mean_of():
    output = make_model()(joined(make_batch(1), unreadable()))
    counts = {name: count.item() for name, count in output.counts.items()}
    assert list(counts) == list(output.losses)
    assert counts["rpn_objectness"] == counts["rpn_box"] == 256
    assert counts["class"] == counts["box"] == 32
    assert 2 <= counts["mask"] <= 8
    assert [c.item() for c in make_model()(unreadable()).counts.values()] == [0] * 5


def test_more_padded_slots_change_nothing():
    model, batch = make_model(norm="frozen"), make_batch(slots=4)
    more = dict(batch)
    for key in ("boxes", "labels", "valid", "crowd", "masks", "mask_boxes"):
        padding = torch.zeros(2, 12, *batch[key].shape[2:], dtype=batch[key].dtype)
        more[key] = torch.cat([batch[key], padding], dim=1)
    expected = learn(model, batch)
    gradients = [p.grad.clone() for p in model.parameters()]
    losses = learn(model, more)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-6), name
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_what_padded_slots_and_pixels_hold_changes_nothing():
    model, batch = spread(make_model(norm="frozen")), make_batch(objects=2)
    batch["image_sizes"] = torch.tensor([[64, 48], [50, 64]])
    batch["boxes"] = batch["boxes"] * 0.7
    garbage = {key: value.clone() for key, value in batch.items()}
    garbage["images"][0, :, :, 48:] = torch.randint(0, 256, (3, 64, 16), dtype=torch.uint8)
    garbage["images"][1, :, 50:] = 255
    garbage["masks"][:, 2:] = 1
    garbage["mask_boxes"][:, 2:] = torch.tensor([3.0, 4, 30, 31])
    for mode in (True, False):
        clean, dirty = (model.train(mode)(b) for b in (batch, garbage))
        assert {k: v.item() for k, v in clean.losses.items()} == {
            k: v.item() for k, v in dirty.losses.items()
        }
    assert clean.detections["valid"].any()
    assert all(
        torch.equal(clean.detections[key], dirty.detections[key]) for key in clean.detections
    )


def test_a_batch_of_images_is_each_image_alone():
    model, batch = spread(make_model(norm="frozen")).eval(), make_batch(2)
    both = model(batch).detections
    for i in range(2):
        alone = model({key: value[i : i + 1] for key, value in batch.items()}).detections
        kept, own = both["valid"][i], alone["valid"][0]
        assert kept.sum() == own.sum() > 0
        for key in ("boxes", "scores", "labels", "masks"):
            assert torch.allclose(both[key][i][kept], alone[key][0][own], atol=1e-3), key


# Shapes and numbers


def test_the_guard_sees_what_it_should():
    x = torch.tensor([1.0, 0, 2])
    offences: dict[str, Callable[[], Any]] = {
        "nonzero": lambda: x.nonzero(),
        "masked_select": lambda: x.masked_select(x > 0),
        "_unique2": lambda: x.unique(),
        "index": lambda: x[x > 0],
        "_local_scalar_dense": lambda: x.sum().item(),
        "equal": lambda: torch.equal(x, x),
    }
    for name, offence in offences.items():
        with ShapesFromData() as guard:
            offence()
        assert guard.count.get(name) == 1, name


def partial_truth(batch: Batch) -> Batch:
    """With void pixels, and an object without a mask in each image."""
    void = torch.zeros(batch["images"][:, 0].shape, dtype=torch.uint8)
    void[:, ::3] = 1
    masked = batch["valid"].clone()
    masked[:, 0] = False
    return batch | {"void": void, "masked": masked}


@pytest.mark.long
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_no_shape_hangs_on_data_and_what_the_cpu_reads_changes_nothing(
    training: bool, partial: bool
):
    """The CPU reads counts to save work (boxes.can_sync); a GPU and torch.compile do all of it.
    One result.
    """
    model, batch = spread(make_model(norm="frozen")).train(training), make_batch(objects=4)
    batch = partial_truth(batch) if partial else batch
    model.box_head.score_threshold = 0.6  # fewer detections than slots

    def run(static_shapes: bool) -> tuple[Any, list[torch.Tensor]]:
        if not training:
            with torch.no_grad():
                return model(batch, static_shapes), []
        model.zero_grad()
        output = model(batch, static_shapes)
        sum(output.losses.values()).backward()
        return output, [p.grad.clone() for p in model.parameters()]

    with ShapesFromData() as reading:
        expected, gradients = run(static_shapes=False)
    # The number of positives, and what suppression keeps of each group of boxes; in inference the
    # detections' too.
    assert reading.count.keys() == {"_local_scalar_dense", "_unique2", "nms"}
    assert reading.count["_local_scalar_dense"] == (1 if training else 3)
    assert reading.count["nms"] >= 5
    with ShapesFromData() as guard:
        output, found = run(static_shapes=True)
    assert guard.count == {}
    assert guard.calls > 500
    for name, loss in expected.losses.items():
        assert output.losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
        assert output.counts[name] == expected.counts[name] > 0
    for one, two in zip(gradients, found, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-7)
    if not training:
        most = expected.detections["valid"].shape[1]
        assert most < output.detections["valid"].shape[1]
        assert not output.detections["valid"][:, most:].any()
        valid = expected.detections["valid"]
        for key, value in expected.detections.items():
            assert torch.allclose(
                output.detections[key][:, :most][valid].float(), value[valid].float(), atol=1e-4
            ), key


@pytest.mark.long
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_nothing_is_read_by_the_host(training: bool, partial: bool):
    """A forward on tensors without values that say they lie on a GPU: what needs a value, or makes
    a shape of one, raises; so does an operator between devices.
    """
    model, batch = make_model().train(training), make_batch()
    batch = partial_truth(batch) if partial else batch
    with FakeTensorMode():

        def far(t: torch.Tensor) -> torch.Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device="cuda")

        state = {name: torch.nn.Parameter(far(p)) for name, p in model.named_parameters()}
        state |= {name: far(b) for name, b in model.named_buffers()}
        output = torch.func.functional_call(
            model, state, ({key: far(value) for key, value in batch.items()},)
        )
    roi_align._layout.cache_clear()  # it holds tensors without values now
    assert {loss.device.type for loss in output.losses.values()} == {"cuda"}
    assert len(output.losses) == 5
    if not training:
        assert output.detections["boxes"].shape == (2, 100, 4)
        assert output.detections["masks"].shape == (2, 100, 28, 28)
        assert output.box_labels.shape == (2, 4)


def test_the_masks_slots_hold_every_positive():
    model = make_model(regions=8)
    positive = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    assert model.with_masks(positive).tolist() == [1, 4, 15]
    assert model.with_masks(torch.zeros_like(positive)).tolist() == [0], (
        "never none: every weight gets a gradient"
    )


@pytest.mark.parametrize("static_shapes", [False, True])
def test_too_many_positives_for_the_slots_go_from_the_images_with_most(static_shapes: bool):
    """And the same ones wherever it runs; the first of a sample were drawn first."""
    model = make_model(regions=32)
    model.mask_head.slots = 3
    positive = torch.zeros(3, 32, dtype=torch.bool)
    positive[0, :8], positive[1, :1], positive[2, :4] = True, True, True
    chosen = model.with_masks(positive, static_shapes)
    assert chosen.tolist() == [0, 1, 2, 3, 32, *range(64, 68)]
    positive[0, 3:], positive[2, 2:] = False, False  # 6 of 9 slots
    learnt = model.with_masks(positive, static_shapes)
    assert positive.flatten()[learnt].sum() == 6
    assert len(learnt) == (9 if static_shapes else 6)


@pytest.mark.parametrize("slots", [None, 8, 100])
def test_slots_for_all_that_may_be_drawn_are_in_the_order_of_the_regions(slots: int | None):
    model = make_model(regions=32)
    model.mask_head.slots = slots
    positive = torch.zeros(2, 32, dtype=torch.bool)
    positive[0, :8], positive[1, :3] = True, True
    assert model.with_masks(positive).tolist() == [*range(8), 32, 33, 34]
    assert len(model.with_masks(positive, static_shapes=True)) == 16


@pytest.mark.parametrize("static_shapes", [False, True])
def test_what_has_no_mask_slot_is_counted(static_shapes: bool):
    model, batch = make_model(norm="frozen"), make_batch(objects=4)
    whole = model.train()(batch, static_shapes)
    assert whole.masks_dropped == 0
    assert whole.counts["mask"] > 2
    model.mask_head.slots = 1
    found = model(batch, static_shapes)
    assert found.counts["mask"] == 2
    assert found.masks_dropped == whole.counts["mask"] - 2
    assert found.losses["box"] == whole.losses["box"]
    found.losses["mask"].backward()
    assert model.mask_head.logits.weight.grad.isfinite().all()


def test_each_region_learns_the_mask_of_its_own_image():
    model, batch = make_model(), joined(without_objects(1), make_batch(1))
    torch.nn.init.zeros_(model.mask_head.logits.weight)
    torch.nn.init.constant_(model.mask_head.logits.bias, 20.0)
    # Every pixel says object: a loss of 20 where there is none. The second image's masks are full,
    # the first has none.
    assert model(batch).losses["mask"].item() < 8
    assert model(batch | {"masks": batch["masks"] * 0}).losses["mask"].item() == pytest.approx(20)


def test_bfloat16_is_finite_and_near():
    model, batch = make_model(norm="frozen"), make_batch()
    expected = learn(model, batch)
    gradients = [p.grad.clone() for p in model.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = learn(model, batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name
    for name in ("rpn_objectness", "class", "mask"):
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=0.03), name
    assert all(p.grad.isfinite().all() for p in model.parameters())
    cosine = torch.nn.functional.cosine_similarity(
        torch.cat([g.flatten() for g in gradients]),
        torch.cat([p.grad.flatten() for p in model.parameters()]),
        dim=0,
    )
    assert cosine > 0.9
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = spread(model).eval()(batch)
    assert output.detections["valid"].any()
    assert output.detections["boxes"].dtype == torch.float32
    assert all(output.detections[key].isfinite().all() for key in ("boxes", "scores", "masks"))


@pytest.mark.long
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_out_of_range_give_losses_that_are_not_finite_and_no_crash(value: float):
    """Training then stops with a message and a file to replay (training/nonfinite.py)."""
    model, batch = make_model(norm="frozen"), make_batch()
    with torch.no_grad():
        model.backbone.body["conv1"].weight.fill_(value)
        model.fpn.lateral[0].weight.mul_(value)
    assert not sum(model(batch).losses.values()).isfinite()
    model.eval()(batch)


def test_recomputing_changes_no_gradient():
    kept, again = (make_model(norm="frozen", recompute=recompute) for recompute in (False, True))
    again.load_state_dict(kept.state_dict())
    batch = make_batch()
    for model in (kept, again):
        learn(model, batch)
    for (name, first), second in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name


def test_frozen_stages_hold_no_gradient_and_every_other_weight_one():
    model = make_model(freeze_at=2).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    learn(model, make_batch())
    frozen = ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is name.startswith(frozen), name
    moved = {
        name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)
    }
    assert moved == {name for name in before if not name.startswith(frozen)}


def test_training_goes_on_after_an_inference():
    """Lightning validates in inference mode before the first step: what is kept from there must not
    spoil a step.
    """
    roi_align._layout.cache_clear()
    model, batch = make_model(), make_batch()
    with torch.inference_mode():
        model.eval()(batch)
    losses = learn(model.train(), batch)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.long
def test_a_few_steps_lower_the_losses():
    model, batch = make_model(norm="group"), make_batch(objects=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = {name: loss.item() for name, loss in learn(model, batch).items()}
    for _ in range(16):
        losses = learn(model, batch)
        optimizer.step()
    for name in ("rpn_objectness", "class", "mask"):
        assert losses[name].item() < 0.8 * first[name], name


def test_building_joins_the_parts():
    model = make_model(7, channels=24, anchors={"ratios": (0.5, 1.0)})
    assert [conv.in_channels for conv in model.fpn.lateral] == [64, 128, 256, 512]
    assert model.rpn.objectness.out_channels == 2
    assert model.rpn.deltas.out_channels == 8
    assert model.box_head.classes.out_features == 8
    assert model.box_head.deltas.out_features == 28
    assert model.mask_head.logits.out_channels == 7
    assert model.mask_head.convs[0].in_channels == 24
    assert model.strides == [4, 8, 16, 32]
    assert {"mean", "std"}.isdisjoint(model.state_dict()), (
        "of the configuration, not of the weights"
    )


@pytest.mark.long
@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_heads_with_norms_and_more_layers_learn(norm: str):
    """Those of torchvision's second version, small: a gradient for every parameter, detections in
    evaluation.
    """
    model, batch = make_model(rpn_depth=2, convs=2, fcs=1, head_norm=norm, depth=2), make_batch()
    losses = model(batch).losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert len(model.rpn.convs) == 2
    assert len(model.box_head.convs) == 2
    assert len(model.box_head.fcs) == 1
    assert model.mask_head.needs_positives is (norm == "batch")
    assert model.eval()(batch).detections is not None


# Options

PARTS = ("backbone", "fpn", "anchors", "rpn", "box_head", "mask_head")


class Part:
    """Stands for each of them."""

    channels, strides, sizes, ratios = [8] * 4, [4] * 4, [8] * 5, [1.0]

    def __call__(self, **_: Any) -> "Part":
        return self


def build(**options: Any) -> MaskRCNN:
    plain = {"mean": [0.5] * 3, "std": [0.2] * 3, "num_classes": 3, "roi_align": {}}
    return build_mask_rcnn(**{**{part: Part() for part in PARTS}, **plain, **options})


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        mean=[*positive_list(3)[:8], [0.5, 0.5, -0.1], [123.7, 116.3, 103.5], [0.5, math.nan, 0.5]],
        std=[*positive_list(3), [58.4, 57.1, 57.4]],
        weights=TEXT,
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        build(**{option: value})
    assert str(caught.value).startswith(f"model.{option}={value} must be ")


@pytest.mark.parametrize(
    ("option", "value"), cases(points=[*COUNT_OR_NONE, 10**6], aligned=FLAG, other=[1])
)
def test_options_of_roi_align_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError, match=r"^model.roi_align"):
        build(roi_align={option: value})
    with pytest.raises(UserError, match=r"^model.roi_align=.*: points, aligned, kind, level$"):
        build(roi_align=[value])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (part, value)
        for part in PARTS
        for value in (None, 1, "fpn", {}, [])
        if (part, value) != ("mask_head", None)  # boxes alone
    ],
)
def test_a_part_that_is_missing_is_named(part: str, value: Any):
    with pytest.raises(UserError) as caught:
        build(**{part: value})
    assert str(caught.value).startswith(f"model.{part}={value} must be a part of a model")


class OwnMaskHead(nn.Module):
    """What a mask head of another person must have, and no more; it has two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.logits = 6, nn.Conv2d(16, 3, 1)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.logits(features)[torch.arange(len(labels)), (labels - 1).clamp(min=0)]

    def losses(self, logits: Tensor, targets: Tensor, positive: Tensor) -> dict[str, Tensor]:
        assert logits.shape == targets.shape == (len(positive), 6, 6)
        return {"mask": logits.abs().mean(), "own": (logits - targets).abs().mean()}


def test_a_mask_head_of_ones_own_has_its_losses_counted_by_the_positives():
    torch.manual_seed(0)
    model = make_model()
    model.add_module("mask_head", OwnMaskHead())
    output = model(make_batch())
    names = ["rpn_objectness", "rpn_box", "class", "box", "mask", "own"]
    assert list(output.losses) == list(output.counts) == names
    counts = output.counts
    assert counts["own"] == counts["mask"] > 0
    assert counts["class"] == counts["box"] > counts["mask"]
    model.eval()
    detections = model(make_batch()).detections
    assert detections is not None
    assert detections["masks"].shape[-2:] == (6, 6)


def mask_gradients(batch: Batch, static_shapes: bool) -> tuple[Any, dict[str, torch.Tensor], float]:
    """The output of a training step, the gradient at each mask logit, and the sum of the others."""
    torch.manual_seed(0)
    model = make_model()
    seen: list[torch.Tensor] = []

    def watch(_: Any, __: Any, logits: torch.Tensor) -> None:
        logits.retain_grad()
        seen.append(logits)

    model.mask_head.register_forward_hook(watch)
    batch = batch | {"seeds": torch.arange(len(batch["images"]))}
    output = model(batch, static_shapes)
    output.losses["mask"].backward()
    gradient = seen[0].grad
    assert gradient is not None
    others = sum(float(loss.detach()) for name, loss in output.losses.items() if name != "mask")
    return output, {"gradient": gradient}, others


@pytest.mark.long
@pytest.mark.parametrize("static_shapes", [False, True])
def test_a_box_without_a_mask_has_box_losses_alone(static_shapes: bool):
    plain = make_batch(2, objects=3)
    every, _, others = mask_gradients(plain, static_shapes)
    masked = plain["valid"].clone()
    same, _, _ = mask_gradients(plain | {"masked": masked}, static_shapes)
    assert torch.equal(same.losses["mask"], every.losses["mask"])
    assert same.counts["mask"] == every.counts["mask"]
    masked[0] = False
    fewer, _, same_others = mask_gradients(plain | {"masked": masked}, static_shapes)
    assert same_others == others
    assert 0 < fewer.counts["mask"] < every.counts["mask"]
    assert fewer.masks_dropped == 0
    none, seen, _ = mask_gradients(plain | {"masked": torch.zeros_like(masked)}, static_shapes)
    assert none.counts["mask"] == 0
    assert none.losses["mask"] == 0
    assert not seen["gradient"].any()


@pytest.mark.long
@pytest.mark.parametrize("static_shapes", [False, True])
def test_void_pixels_of_an_image_have_no_mask_gradient(static_shapes: bool):
    plain = make_batch(1, objects=3)
    height, width = plain["images"].shape[-2:]
    void = torch.zeros(1, height, width, dtype=torch.uint8)
    every, seen, others = mask_gradients(plain, static_shapes)
    nothing, same, _ = mask_gradients(plain | {"void": void}, static_shapes)
    torch.testing.assert_close(nothing.losses["mask"], every.losses["mask"])
    torch.testing.assert_close(same["gradient"], seen["gradient"])
    output, seen, same_others = mask_gradients(plain | {"void": void + 1}, static_shapes)
    assert same_others == others
    assert output.counts["mask"] == 0
    assert not seen["gradient"].any()
    void[..., : width // 2] = 1
    output, half, _ = mask_gradients(plain | {"void": void}, static_shapes)
    assert half["gradient"].any()
    assert (half["gradient"] == 0).sum() > (same["gradient"] == 0).sum()
