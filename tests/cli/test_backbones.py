"""The backbone contract: one choice of each kind of block is built, run, differentiated, exported
and so on. With `pytest -m slow` every choice of conf/backbone is run and differentiated, and every
kind of block is frozen at each stage and has each norm; else some kinds are, and the others have
the values that decide. (That each choice builds: tests/test_conf.py.)
"""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from repository import REPOSITORY
from tiny_commands import run_command
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from maskrcnn_lit.cli.backbones import TABLE
from maskrcnn_lit.config.compose import CONFIG_DIR, build, compose
from maskrcnn_lit.model.backbone import Backbone
from maskrcnn_lit.model.norms import FoldedConv, FrozenBatchNorm, conv_options
from maskrcnn_lit.training.optimizer import parameter_groups

CONF = REPOSITORY / "conf" / "backbone"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))
# One choice of each kind of block; the others differ from it in depth and width.
FAMILIES = (
    *("resnet18", "resnet50", "resnet50_caffe", "resnext50", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "regnet_x_400mf", "regnet_y_400mf"),
    *("densenet121", "mnasnet", "shufflenet_v2", "efficientnet_lite0", "timm", "resnet50_dcn"),
)
OF_TIMM = {"timm", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "vitdet_b"}
# Choices with one map, and their smaller selves: tests/model/test_plain_transformer.py has the rest
OF_ONE_MAP = {
    "vitdet_b": {
        "square": None,
        "options": {"img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 4},
    }
}
NORMS = {
    "frozen": FrozenBatchNorm,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "group": nn.GroupNorm,
}
IMAGES = (2, 3, 64, 96)
TORCHVISIONS = pytest.mark.parametrize(
    "choice", [c for c in CHOICES if c not in OF_TIMM], indirect=True, scope="module"
)
OF_EACH_FAMILY = pytest.mark.parametrize("choice", FAMILIES, indirect=True, scope="module")
IN_FULL = ("resnet18", "mobilenet_v3_small", "shufflenet_v2")  # these have every value of an option


def of_each_family(name: str, values: Sequence[Any], deciding: Sequence[Any]) -> Any:
    """Every kind of block with the `deciding` ones of an option's values; with the others, the
    kinds in IN_FULL, and with the mark slow the rest.
    """
    cases = [
        pytest.param(
            *(choice, value),
            marks=() if choice in IN_FULL or value in deciding else pytest.mark.slow,
        )
        for choice in FAMILIES
        for value in values
    ]
    return pytest.mark.parametrize(("choice", name), cases, indirect=["choice"])


@cache
def options_of(choice: str) -> dict[str, Any]:
    # of timm's a small one
    name = ["backbone.name=test_resnet"] if choice == "timm" else []
    return OmegaConf.to_container(
        compose("train", [f"backbone={choice}", *name]).backbone, resolve=True
    )


def backbone(choice: str, **options: Any) -> nn.Module:
    return build(options_of(choice) | options)


@pytest.fixture(scope="module", params=CHOICES)
def choice(request: pytest.FixtureRequest) -> str:
    """All tests of a choice follow one another."""
    return request.param


@pytest.fixture(scope="module")
def classifier(choice: str) -> nn.Module | None:
    return None if choice in OF_TIMM else get_model(options_of(choice)["name"], weights=None)


@pytest.fixture
def drawn(classifier: nn.Module | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights are drawn once for a choice: each backbone gets a copy of the same
    classifier.
    """
    if classifier is not None:
        monkeypatch.setattr(
            torchvision.models, "get_model", lambda name, weights: copy.deepcopy(classifier)
        )


@pytest.fixture(scope="module")
def batch_norms(choice: str) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in backbone(choice, norm="batch").modules())


def test_every_family_of_the_issue_is_there():
    assert {
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50",
        "resnext101",
    } <= set(CHOICES)
    assert {"wide_resnet50", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"} <= set(
        CHOICES
    )
    assert {f"efficientnet_b{i}" for i in range(5)} | {"efficientnet_v2_s"} <= set(CHOICES)
    assert {"convnext_tiny", "convnext_small", "regnet_y_400mf", "timm"} <= set(CHOICES)
    assert len(CHOICES) >= 30
    assert set(FAMILIES) <= set(CHOICES)


def test_every_choice_is_of_a_family():
    def family(choice: str) -> str:
        return re.match("(?:wide_)?([a-z]+(_v[23]|_[xy])?)", choice).group(1)

    families = {family(choice) for choice in CHOICES if choice not in OF_ONE_MAP}
    assert families == {family(choice) for choice in FAMILIES}


@pytest.mark.long
@pytest.mark.parametrize(
    "choice",
    [c if c in FAMILIES else pytest.param(c, marks=pytest.mark.slow) for c in CHOICES],
    indirect=True,
    scope="module",
)
def test_strides_channels_and_gradients(choice: str, drawn: None):
    """Four maps at strides 4 to 32, or one at 16, with the channels that were measured, and a
    finite gradient for every parameter.
    """
    built = backbone(choice, **OF_ONE_MAP.get(choice, {}))
    maps = built(torch.randn(IMAGES))
    assert built.strides == ([16] if choice in OF_ONE_MAP else [4, 8, 16, 32])
    expected = [
        (2, c, 64 // s, 96 // s) for c, s in zip(built.channels, built.strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected
    sum(m.square().mean() for m in maps).backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.long
@pytest.mark.parametrize(
    "choice",
    # these halve elsewhere, or move their points: tests/model/test_backbone.py, test_deformable.py
    [c for c in FAMILIES if c not in OF_TIMM | {"resnet50_caffe", "resnet50_dcn"}],
    indirect=True,
    scope="module",
)
def test_the_maps_are_those_inside_of_the_classifier(choice: str):
    """The layers, one after the other, are what torchvision's own forward computes."""
    built = backbone(choice, norm="batch", freeze_at=0)
    torch.manual_seed(0)
    whole = get_model(built.name, weights=None).eval()
    built.load_pretrained(whole.state_dict())
    seen: dict[str, Tensor] = {}
    last = {
        stride: path
        for path, stride in zip(built._paths.values(), built.body.strides.values(), strict=False)
    }
    for stride in built.strides:
        layer = whole.get_submodule(last[stride])
        layer.register_forward_hook(
            partial(lambda stride, m, i, out: seen.update({stride: out.clone()}), stride)
        )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole(images)
        for stride, ours in zip(built.strides, built.eval()(images), strict=True):
            assert torch.allclose(ours, seen[stride], rtol=1e-4, atol=1e-4), stride


@pytest.mark.long
@OF_EACH_FAMILY
def test_folded_frozen_norms_give_the_same_maps(choice: str, drawn: None):
    """A norm that follows a convolution among its parent's children follows it in the forward pass
    too.
    """
    torch.manual_seed(0)
    built = backbone(choice, norm="frozen")
    norms = [m for m in built.modules() if isinstance(m, FrozenBatchNorm)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.1), norm.bias.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5), norm.weight.uniform_(0.5, 1.5)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        folded = built.double().eval()(images.double())
        for parent in list(built.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, FoldedConv):
                    plain = nn.Conv2d(**conv_options(layer))
                    plain.weight, plain.bias = layer.weight, layer.bias
                    setattr(parent, name, plain)
        assert any(norm.folded for norm in norms) is (
            choice not in OF_TIMM and "convnext" not in choice
        )
        for norm in norms:
            norm.folded = False
        for ours, expected in zip(folded, built(images.double()), strict=True):
            assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.long
@of_each_family("freeze_at", range(6), deciding=(3, 5))  # halfway, and all of it
def test_freezing(choice: str, drawn: None, freeze_at: int):
    """No gradient flows into what is frozen, its statistics stay, and the optimizer does not hold
    it.
    """
    built = backbone(choice, freeze_at=freeze_at, norm="batch").train()
    means = {
        name: value.clone()
        for name, value in built.named_buffers()
        if name.endswith("running_mean")
    }
    maps = built(torch.randn(IMAGES))
    for stage, m in zip((2, 3, 4, 5), maps, strict=True):
        assert (
            not m.requires_grad
            if stage <= freeze_at
            else m.requires_grad or choice == "shufflenet_v2"
        )
    if freeze_at < 5:
        sum(m.square().mean() for m in maps).backward()
    frozen = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) is (freeze_at > 0)
    for name, parameter in built.named_parameters():
        assert (parameter.grad is None) is (name in frozen), name
    for name, module in built.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            moved = not torch.equal(module.running_mean, means[f"{name}.running_mean"])
            assert moved is module.weight.requires_grad, name
    if freeze_at < 5:
        model = nn.Module()
        model.backbone = built
        groups = parameter_groups(model, lr=1.0, backbone_factor=1.0, weight_decay=0.0)
        held = {id(parameter) for group in groups for parameter in group["params"]}
        assert held == {
            id(parameter) for name, parameter in built.named_parameters() if name not in frozen
        }


@pytest.mark.long
@of_each_family("norm", list(NORMS), deciding=("group",))  # the tests above have frozen and batch
def test_norms(choice: str, drawn: None, batch_norms: int, norm: str):
    built = backbone(choice, norm=norm).train()
    assert (
        sum(type(m) is NORMS[norm] or isinstance(m, NORMS[norm]) for m in built.modules())
        >= batch_norms
    )
    assert (
        not any(isinstance(m, nn.BatchNorm2d) for m in built.modules())
        or norm == "batch"
        or batch_norms == 0
    )
    assert all(m.isfinite().all() for m in built(torch.randn(IMAGES)))


@pytest.mark.long
@OF_EACH_FAMILY
def test_channels_last_and_bfloat16(choice: str, drawn: None):
    built, images = backbone(choice).eval(), torch.randn(IMAGES)
    with torch.no_grad():
        expected = built(images)
        built = built.to(memory_format=torch.channels_last)
        for ours, theirs in zip(
            built(images.to(memory_format=torch.channels_last)), expected, strict=True
        ):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for ours, theirs in zip(built(images), expected, strict=True):
                assert (ours.float() - theirs).abs().mean() < 0.05 * theirs.abs().mean() + 1e-3


@pytest.mark.long
@OF_EACH_FAMILY
def test_the_features_are_exported(choice: str, drawn: None):
    built, images = (
        backbone(choice, recompute=False) if choice not in OF_TIMM else backbone(choice),
        torch.randn(1, 3, 64, 64),
    )
    exported = torch.export.export(built.eval(), (images,)).module()
    with torch.no_grad():
        for ours, theirs in zip(exported(images), built(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_command_lists_every_choice(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run_command("backbones", "size=320")
    lines = capsys.readouterr().out.splitlines()
    title = ["backbone", "parameters,", "M", "GFLOP", "at", "320", "px", "c2,", "c3,", "c4,", "c5"]
    assert lines[0].split() == [*title, "weights"]
    assert [line.split()[0] for line in lines[1 : 1 + len(CHOICES)]] == CHOICES
    resnet = next(line.split() for line in lines if line.startswith("resnet18 "))
    assert resnet[1:3] == ["11.2", "7.40"]  # 3.63 GFLOP at 224 px, times (320 / 224)^2
    assert resnet[3:] == ["64,", "128,", "256,", "512", "IMAGENET1K_V1"]
    assert max(map(len, lines)) <= 110
    run_command("backbones", "size=8", code=2)
    assert "size=8 must be a whole number from 32" in capsys.readouterr().err


@pytest.mark.process
def test_the_table_is_printed_without_torch():
    code = (
        "import sys; from maskrcnn_lit.cli.main import main\n"
        "assert main(['backbones']) == 0\n"
        "assert not {'torch', 'lightning', 'torchvision'} & set(sys.modules), 'torch is loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_backbone_of_ones_own_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "backbone").mkdir()
    text = (CONF / "resnet18.yaml").read_text()
    (tmp_path / "backbone" / "mine.yaml").write_text(text)
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path))
    run_command("backbones")
    rows = {
        line.split()[0]: line.split()[1:]
        for line in capsys.readouterr().out.splitlines()[:40]
        if line
    }
    assert rows["mine"] == rows["resnet18"]


def test_measuring_writes_the_table_of_all_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    row = {"parameters": 1_500_000, "cell_flops": 10**7, "fixed_flops": 0}
    row |= {"channels": [1, 2, 3, 4], "weights": []}
    monkeypatch.setattr("maskrcnn_lit.cli.backbones.TABLE", tmp_path / "table.json")
    monkeypatch.setattr("maskrcnn_lit.measure.backbones.cost", lambda choice: row)
    run_command("backbones", "measure=true")
    assert json.loads((tmp_path / "table.json").read_text()) == dict.fromkeys(CHOICES, row)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == [CHOICES[0], "1.5", "0.49", "1,", "2,", "3,", "4", "none"]


def test_the_committed_table_has_every_choice():
    assert sorted(json.loads(TABLE.read_text())) == CHOICES


@pytest.mark.long
@TORCHVISIONS
def test_pretrained_weights_exist(choice: str):
    """By their name, with a hash in their address."""
    built = options_of(choice)
    assert built["_target_"] == f"{Backbone.__module__}.Backbone"
    assert len(list(get_model_weights(built["name"]))) >= 1
