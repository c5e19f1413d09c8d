"""The choices of the papers' tables in the whole model: losses, gradients, detections, export."""

from typing import Any

import pytest
import torch
from exported import HEIGHT, WIDTH, batch_of, lively
from models import make_batch, make_model

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import operator_graph, outputs, plain_graph
from maskrcnn_lit.export.parity import Parity
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.mask_head import MaskHead
from maskrcnn_lit.model.pretrained.convert import take_over
from maskrcnn_lit.training.compile import obstacle

CHOICES: dict[str, dict[str, Any]] = {
    "warp": {"roi_align": {"kind": "warp"}},
    "pool": {"roi_align": {"kind": "pool"}},
    "stride_16": {"roi_align": {"level": 4}},
    "stride_32": {"roi_align": {"level": 5, "kind": "warp"}},
    "softmax": {"mask": {"activation": "softmax"}},
    "class_agnostic": {"mask": {"class_agnostic": True}},
    "fully_connected": {"mask": {"fcs": 2}},
    "fully_connected_softmax": {"mask": {"fcs": 1, "activation": "softmax"}},
    "bottom_up": {"pyramid": {"connections": "lateral"}},
    "without_lateral": {"pyramid": {"connections": "top_down"}},
    "giou_and_focal": {"box": {"box_loss": "giou", "class_loss": "focal"}},
    "giou_and_focal_rpn": {"rpn": {"box_loss": "giou", "objectness_loss": "focal"}},
    "giou_cascade": {"box": {"box_loss": "giou"}, "cascade": (0.5, 0.6)},
    "path_augmentation": {"pyramid": {"path_augmentation": True}},
    "deformable": {"backbone": "resnet50", "deformable": [3, 4, 5]},
}


NOT_EXPORTED = {
    "pool": r"roi_align\.kind=pool cannot be exported, since it takes as many samples",
    "without_lateral": r"fpn\.connections=top_down cannot be exported: .* scores are equal",
}


@pytest.mark.long
@pytest.mark.parametrize("name", CHOICES)
def test_it_trains_and_detects(name: str):
    torch.manual_seed(0)
    model, batch = make_model(**CHOICES[name]), make_batch()
    output = model(batch)
    assert output.losses.keys() >= {"rpn_objectness", "rpn_box", "class", "box", "mask"}
    torch.stack(list(output.losses.values())).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
    detected = lively(**CHOICES[name])(batch).detections
    masks = detected["masks"][detected["valid"]]
    assert len(masks)
    assert masks.shape[1:] == (28, 28)
    assert masks.min() >= 0
    assert masks.max() <= 1


@pytest.mark.parametrize("options", [{"kind": "pool"}, {"points": 0}])
def test_operators_of_each_level_train_in_mixed_precision(options: dict[str, Any]):
    model, batch = make_model(roi_align=options), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch).losses
    torch.stack(list(losses.values())).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CHOICES if name not in NOT_EXPORTED])
def test_its_graphs_and_its_fused_form_detect_the_same(name: str):
    model, again = (lively(**CHOICES[name]) for _ in range(2))
    batch = batch_of([(64, 90), (HEIGHT, WIDTH)])
    inputs, parity = (batch["images"], batch["image_sizes"]), Parity()
    with torch.no_grad():
        expected = model.infer(*inputs, True)
        for graph in (plain_graph(model), operator_graph(model)):
            values = dict(zip(outputs(model.mask_size), graph(*inputs), strict=True))
            parity.add(expected, values, 0.0)
        parity.add(expected, for_inference(again).infer(*inputs, True), 0.0)
    assert not parity.broken()
    assert parity.detections > 100
    assert obstacle(model, torch.device("cpu")) is None


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_a_model_whose_file_would_detect_other_objects_is_not_exported(name: str):
    with pytest.raises(UserError, match=NOT_EXPORTED[name]):
        plain_graph(lively(**CHOICES[name]))


def test_pooling_whole_cells_is_not_compiled():
    model = lively(**CHOICES["pool"])
    assert "kind=pool" in (obstacle(model, torch.device("cpu")) or "")


def test_maps_without_lateral_connections_have_many_equal_scores():
    """Why they are not exported."""
    for options, equal in (({}, False), (CHOICES["without_lateral"], True)):
        model, batch = lively(**options), batch_of([(HEIGHT, WIDTH)])
        with torch.no_grad():
            pyramid, _ = model.trunk(batch["images"], batch["image_sizes"])
            logits = model.rpn([pyramid[0]]).logits.flatten()
        assert (len(logits.unique()) < len(logits) / 2) is equal


def test_all_regions_read_one_level():
    model, batch = make_model(roi_align={"level": 4}), make_batch()
    pyramid, _ = model.trunk(batch["images"], batch["image_sizes"])
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 64.0, 64.0]]] * 2)
    pooled = model.pool(pyramid, boxes, 7).sum()
    gradients = torch.autograd.grad(pooled, pyramid, allow_unused=True)
    assert [grad is not None for grad in gradients] == [False, False, True, False, False]


def test_a_head_that_competes_has_no_logits_for_other_heads():
    for name, value in (("mask_iou", True), ("mask_refine", "points")):
        wanted = rf"model\.{name}={value} needs logits of each class, and .*activation=softmax has"
        with pytest.raises(UserError, match=wanted):
            make_model(mask={"activation": "softmax"}, **{name: value})


def test_options_of_convolutions_are_refused_where_there_are_none():
    for name, value, off in (("norm", "group", "null"), ("separable", True, "false")):
        wanted = rf"mask_head\.{name}={value} needs conv.*fcs=2 has none: use .*\.{name}={off}, or"
        with pytest.raises(UserError, match=wanted):
            MaskHead(channels=8, width=8, depth=1, pool=7, num_classes=2, fcs=2, **{name: value})


def test_with_one_class_a_softmax_is_a_sigmoid_of_the_difference():
    """Table 2b needs several classes: with one, the background alone competes."""
    torch.manual_seed(0)
    softmax = make_model(1, mask={"activation": "softmax"}).mask_head
    sigmoid = make_model(1).mask_head
    state = softmax.state_dict()
    for name in ("logits.weight", "logits.bias"):
        background, own = state[name].split(1)
        state[name] = own - background
    sigmoid.load_state_dict(state)
    features, labels = torch.randn(5, 16, softmax.pool, softmax.pool), torch.ones(5).long()
    targets = torch.rand(5, softmax.mask_size, softmax.mask_size).round()
    outputs = [head(features, labels) for head in (softmax, sigmoid)]
    every = torch.ones(5, dtype=torch.bool)
    losses = [
        head.losses(out, targets, every)["mask"]
        for head, out in zip((softmax, sigmoid), outputs, strict=True)
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(outputs[0][:, 0].exp(), outputs[1].sigmoid())


@pytest.mark.parametrize("name", ["softmax", "class_agnostic", "fully_connected"])
def test_weights_are_taken_over_by_class(name: str):
    torch.manual_seed(0)
    theirs, ours = (make_model(3, **CHOICES[name]), make_model(2, **CHOICES[name]))
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    assert take_over(ours, theirs.state_dict(), ["a", "b", "c"], ["c", "new"]) == ["c"]
    state = theirs.state_dict()["mask_head.logits.weight"]
    found, first = ours.state_dict()["mask_head.logits.weight"], before["mask_head.logits.weight"]
    if name == "class_agnostic":
        assert torch.equal(found, state)
        return
    rows = 28 * 28 if name == "fully_connected" else 1
    start = int(name == "softmax")
    assert torch.equal(found[:start], state[:start])
    assert torch.equal(found[start : start + rows], state[start + 2 * rows :])
    assert torch.equal(found[start + rows :], first[start + rows :])


def test_a_mask_head_is_left_behind_or_new():
    torch.manual_seed(0)
    full, alone = make_model(3), make_model(3, masks=False)
    names = ["a", "b", "c"]
    take_over(alone, full.state_dict(), names, names)
    assert all(torch.equal(v, full.state_dict()[k]) for k, v in alone.state_dict().items())
    again = make_model(3)
    own = again.state_dict()["mask_head.logits.weight"].clone()
    take_over(again, alone.state_dict(), names, names)
    assert torch.equal(again.state_dict()["mask_head.logits.weight"], own)
    assert torch.equal(again.state_dict()["rpn.deltas.weight"], full.rpn.deltas.weight)
