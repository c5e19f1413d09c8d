"""Norms by part of the model; that they are those of the logged step: test_train_meter.py."""

import pytest
import torch
from shapes_from_data import ShapesFromData
from torch import nn

from maskrcnn_lit.callbacks.part_norms import PartNorms, trainable_parts


class Parts(nn.Module):
    """The parts of Mask R-CNN, of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.fpn, self.rpn = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.box_head, self.mask_head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.anchors = nn.ReLU()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.shared = self.rpn


@pytest.fixture
def model() -> Parts:
    """Weights of 2, gradients of 3; none for the pyramid."""
    parts = Parts()
    for parameter in parts.parameters():
        parameter.data.fill_(2)
        parameter.grad = torch.full_like(parameter, 3.0)
    for parameter in parts.fpn.parameters():
        parameter.grad = None
    return parts


def test_the_parts_of_a_model(model: Parts):
    parts = trainable_parts(model)
    assert list(parts) == ["trunk", "pyramid", "rpn", "box_head", "mask_head"]
    assert parts["trunk"] == list(model.backbone.parameters())


def test_norms_by_hand(model: Parts):
    norms = PartNorms()
    norms.before(model)
    model.rpn.weight.data.fill_(1.9)
    norms.after()
    values = {name: float(value) for name, value in norms.take().items()}
    parts = ("trunk", "rpn", "box_head", "mask_head")
    gradients = {f"gradient_norm/{part}": pytest.approx(3 * 6**0.5) for part in parts}
    updates = {f"update_ratio/{part}": 0.0 for part in parts}
    updates["update_ratio/rpn"] = pytest.approx(0.2 / (2 * 6**0.5), rel=1e-5)
    assert values == gradients | updates
    assert norms.take() == {}


def test_without_a_step_there_is_nothing():
    norms = PartNorms()
    norms.after()
    assert norms.take() == {}


def test_the_host_reads_nothing(model: Parts):
    norms = PartNorms()
    with ShapesFromData() as guard:
        norms.before(model)
        norms.after()
    assert guard.calls > 10
    assert guard.count == {}
