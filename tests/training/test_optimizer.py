import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.backbone import Backbone
from maskrcnn_lit.model.timm_backbone import TimmBackbone
from maskrcnn_lit.training.optimizer import (
    Length,
    adamw,
    follow,
    parameter_groups,
    scale_lr,
    sgd,
    study_cosine,
    warmup_cosine,
    warmup_multi_step,
)

COMMON: dict[str, Any] = {
    **{
        "batch_size": 8,
        "steps": Length(100, 5),
        "fused": False,
        "lr": 0.1,
        "reference_batch": 16,
        "scaling": "linear",
    },
    **{"backbone_factor": 0.5, "weight_decay": 0.05, "warmup_steps": 4},
}
ADAMW = partial(adamw, **COMMON, betas=(0.9, 0.999), end_factor=0.01)
SGD = partial(sgd, **COMMON, momentum=0.9, milestones=(0.5, 0.75), gamma=0.1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4))
        self.backbone[2].requires_grad_(False)
        self.head = nn.Sequential(
            nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.LayerNorm((4, 2, 2)), nn.Linear(4, 4)
        )
        self.head[3].weight = self.head[0].weight  # shared


def test_cosine_by_hand():
    factor = partial(warmup_cosine, total=110, warmup=10, end_factor=0.01)
    assert [factor(0), factor(5), factor(9)] == pytest.approx([0.001, 0.5005, 0.9001])
    assert factor(10) == 1.0
    assert factor(10 + 25) == pytest.approx(0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2)
    assert factor(60) == pytest.approx(0.505)
    assert [factor(110), factor(111), factor(10**6)] == [0.01, 0.01, 0.01]


def test_cosine_without_warmup_begins_at_the_top():
    assert warmup_cosine(0, total=10, warmup=0, end_factor=0.0) == 1.0


def test_study_cosine_is_torchs_beyond_its_t_max():
    """The study stepped CosineAnnealingLR(T_max=10) once an epoch and never restarted it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.01)
    for epoch in range(100):
        ours = [
            study_cosine(step, epoch=3, warmup=0, end_factor=0.01)
            for step in range(3 * epoch, 3 * epoch + 3)
        ]
        assert ours == pytest.approx([optimizer.param_groups[0]["lr"]] * 3, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_multi_step_by_hand():
    factor = partial(warmup_multi_step, warmup=2, milestones=[4, 6], gamma=0.1)
    assert [factor(step) for step in range(8)] == pytest.approx(
        [0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_groups_by_part_and_decay():
    model = Model()
    groups = parameter_groups(model, lr=1.0, backbone_factor=0.1, weight_decay=0.05)
    found = {(g["part"], g["weight_decay"]): g for g in groups}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {key: {names[id(p)] for p in group["params"]} for key, group in found.items()}
    assert members == {
        ("backbone", 0.05): {"backbone.0.weight"},
        ("backbone", 0.0): {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias"},
        ("heads", 0.05): {"head.0.weight"},  # once, although two modules hold it
        ("heads", 0.0): {
            *("head.0.bias", "head.1.weight", "head.1.bias", "head.3.bias"),
            *("head.2.weight", "head.2.bias"),  # a norm with three dimensions
        },
    }
    assert {key[0]: group["lr"] for key, group in found.items()} == {"backbone": 0.1, "heads": 1.0}


def rates_by_name(model: nn.Module, **options: float) -> dict[str, tuple[float, float, str]]:
    """Name -> learning rate, weight decay and name in the logs."""
    given = {"lr": 1.0, "backbone_factor": 0.5, "weight_decay": 0.1} | options
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"], group["part"])
        for group in parameter_groups(model, **given)
        for parameter in group["params"]
    }


def test_layers_of_a_transformer_learn_more_slowly_the_deeper_they_lie():
    """As Detectron2 does for ViTDet: the embeddings are layer 0 of depth + 1, block k is k + 1."""
    model = nn.Module()
    options = {"depth": 3, "embed_dim": 16, "num_heads": 2}
    model.backbone = TimmBackbone(
        name="vit_tiny_patch16_224", norm="auto", freeze_at=0, options=options
    )
    model.head = nn.Linear(4, 4)
    rates = rates_by_name(model, layer_decay=0.7)
    assert set(rates) == {name for name, _ in model.named_parameters()}
    for name, (rate, decay, part) in rates.items():
        layer = 4  # the last norm
        if "embed" in name or "token" in name:
            layer = 0
        elif ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        inside = name.startswith("backbone.")
        assert rate == pytest.approx(0.5 * 0.7 ** (4 - layer) if inside else 1.0), name
        plain = name.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight"))
        assert decay == (0.0 if plain or name.endswith(("pos_embed", "cls_token")) else 0.1), name
        last = "backbone" if layer == 4 else f"backbone_layer_{layer}"
        assert part == (last if inside else "heads"), name


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_layers_of_a_convolutional_backbone_are_its_stages(name: str, freeze_at: int):
    model = nn.Module()
    options = {"name": name, "norm": "batch", "freeze_at": freeze_at}
    model.backbone = (
        TimmBackbone(**options) if name.startswith("test") else Backbone(**options, recompute=False)
    )
    rates = rates_by_name(model, layer_decay=0.5)
    found = sorted({rate for rate, _, _ in rates.values()})
    assert found == [0.5 * 0.5**n for n in range(5 - freeze_at, 0, -1)]
    assert set(rates) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert model.backbone.training


def test_a_backbone_without_layers_has_no_layer_decay():
    with pytest.raises(UserError, match=r"optimizer\.layer_decay=0\.7 must be .* a method para"):
        rates_by_name(Model(), layer_decay=0.7)
    with pytest.raises(UserError, match=r"optimizer\.layer_decay=1\.5 must be"):
        rates_by_name(Model(), layer_decay=1.5)


def test_a_wholly_frozen_model_is_refused():
    with pytest.raises(UserError, match="no trainable parameter"):
        parameter_groups(
            nn.Linear(1, 1).requires_grad_(False), lr=1.0, backbone_factor=1.0, weight_decay=0.0
        )


def test_learning_rate_is_scaled_and_said():
    assert scale_lr(1e-4, 16, 8, "linear") == (
        5e-5,
        "learning rate 0.0001 x 8 / 16 (batch / reference) = 5e-05",
    )
    assert scale_lr(1e-4, 16, 4, "sqrt") == (
        5e-5,
        "learning rate 0.0001 x sqrt(4 / 16) (batch / reference) = 5e-05",
    )
    assert scale_lr(1e-4, 16, 64, "sqrt")[0] == pytest.approx(2e-4)
    assert scale_lr(1e-4, 16, 8, "none") == (
        1e-4,
        "learning rate 0.0001 for a batch of 8, not scaled",
    )


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (ADAMW, {"lr": 0.0}, "optimizer.lr=0.0 must be a number above 0"),
        (ADAMW, {"lr": math.nan}, "optimizer.lr=nan must be a number above 0"),
        (
            ADAMW,
            {"scaling": "cubic"},
            "optimizer.scaling=cubic is unknown: use linear, sqrt or none",
        ),
        (
            ADAMW,
            {"schedule": "linear"},
            "optimizer.schedule=linear is not supported by this optimizer: use cosine, "
            "study_cosine, poly",
        ),
        (SGD, {"schedule": "study_cosine"}, "use multi_step, cosine, poly, constant"),
        (ADAMW, {"warmup_steps": -1}, "optimizer.warmup_steps=-1 must be 0 or more"),
        (
            SGD,
            {"milestones": [60000, 80000]},
            r"optimizer.milestones=\[60000, 80000\] must be ascending shares",
        ),
        (SGD, {"milestones": [0.9, 0.6]}, "must be ascending shares of the run"),
    ],
)
def test_mistakes_are_named(make: Any, change: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        make(Model(), **change)


def rates(plan: Any, steps: int) -> list[float]:
    """The heads' learning rate at each step."""
    found = []
    for _ in range(steps):
        found.append(next(g["lr"] for g in plan.optimizer.param_groups if g["part"] == "heads"))
        plan.optimizer.step()
        plan.schedule.step()
    return found


def test_adamw_follows_its_schedule():
    plan = ADAMW(Model())
    assert isinstance(plan.optimizer, torch.optim.AdamW)
    assert rates(plan, 101) == pytest.approx(
        [0.05 * warmup_cosine(step, total=100, warmup=4, end_factor=0.01) for step in range(101)]
    )
    backbone = next(g for g in plan.optimizer.param_groups if g["part"] == "backbone")
    assert backbone["lr"] == pytest.approx(0.05 * 0.01 * 0.5)
    assert plan.text == (
        "learning rate 0.1 x 8 / 16 (batch / reference) = 0.05; AdamW, warm-up to step 4, cosine "
        "to 0.0005 at step 100"
    )


def test_adamw_follows_the_study():
    plan = ADAMW(Model(), schedule="study_cosine")
    expected = [
        0.05 * study_cosine(step, epoch=5, warmup=4, end_factor=0.01) for step in range(101)
    ]
    assert rates(plan, 101) == pytest.approx(expected)
    assert min(expected[4:]) == pytest.approx(0.0005)
    assert expected[100] == pytest.approx(0.05)
    assert plan.text.endswith(
        "AdamW, warm-up to step 4, cosine down to 0.0005 and up again every 20 epochs"
    )


@pytest.mark.parametrize(("make", "end_factor"), [(ADAMW, 0.01), (SGD, 0.0)])
@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_schedules_that_both_have(make: Any, end_factor: float, schedule: str):
    """Half of 0.1, for 8 images of 16; a warm-up of 4 steps of 100."""
    plan = make(Model(), schedule=schedule)
    found = rates(plan, 100)
    assert found[0] == pytest.approx(0.05 * 0.001)
    assert found[4] == pytest.approx(0.05)
    for step in (4, 52, 99):
        done = (step - 4) / 96
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "poly": (1 - done) ** 0.9}
        share = 1.0 if schedule == "constant" else end_factor + (1 - end_factor) * left[schedule]
        assert found[step] == pytest.approx(0.05 * share), step
    assert schedule in plan.text


def test_sgd_follows_its_schedule():
    plan = SGD(Model())
    assert plan.optimizer.param_groups[0]["momentum"] == 0.9
    found = rates(plan, 100)
    assert [found[i] for i in (4, 49, 50, 74, 75, 99)] == pytest.approx(
        [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005]
    )
    assert plan.text.endswith("SGD, warm-up to step 4, times 0.1 at the steps 50, 75 of 100")


def test_a_short_run_warms_up_for_a_tenth():
    assert "SGD, warm-up to step 2" in SGD(Model(), steps=Length(20, 5)).text


def test_the_schedule_is_a_function_of_the_step_alone():
    """State that went through a file leads to the same rates, although no schedule function is in
    it.
    """
    plan = ADAMW(Model())
    first = rates(plan, 30)
    state = plan.schedule.state_dict()
    again = ADAMW(Model())
    again.optimizer.load_state_dict(plan.optimizer.state_dict())
    again.schedule.load_state_dict(state)
    assert first + rates(again, 70) == pytest.approx(rates(ADAMW(Model()), 100))


def test_a_schedule_of_another_length_is_followed_at_once():
    """Its checkpoint has the rate of the old schedule, and torch would use that for one step."""
    weight = nn.Parameter(torch.zeros(1))

    def schedule(total: int) -> LambdaLR:
        factor = partial(warmup_cosine, total=total, warmup=0, end_factor=0.0)
        return LambdaLR(torch.optim.SGD([weight], lr=2.0), factor)

    short, longer = schedule(4), schedule(8)
    for _ in range(4):
        short.optimizer.step()
        short.step()
    longer.load_state_dict(short.state_dict())
    longer.optimizer.load_state_dict(short.optimizer.state_dict())
    assert longer.optimizer.param_groups[0]["lr"] == 0.0
    follow(longer)
    assert longer.optimizer.param_groups[0]["lr"] == pytest.approx(1.0)
