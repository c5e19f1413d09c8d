"""Deformable convolution against its equation, and in a ResNet."""

import copy
import math
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from models import make_batch, make_model
from torch import Tensor, nn
from torchvision.models import resnet50

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import convolve_on_grid
from maskrcnn_lit.model.backbone import Backbone
from maskrcnn_lit.model.deformable import DeformableConv, check_stages, deform
from maskrcnn_lit.training.optimizer import parameter_groups

CASES: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"groups": 2},
    {"dilation": 2, "padding": 2},
    {"stride": 2, "groups": 2, "padding": 0},
]


def layer_of(modulated: bool = True, scale: float = 0.0, **options: Any) -> DeformableConv:
    """Of 4 to 6 channels, with displacements of about `scale` pixels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, bias=False, **{"padding": 1, **options})
    layer = DeformableConv(conv, modulated)
    if scale:
        nn.init.normal_(layer.conv_offset.weight, std=scale / 6)
        nn.init.normal_(layer.conv_offset.bias, std=scale)
    return layer


def at(x: np.ndarray, down: float, right: float) -> np.ndarray:
    """C H W at one point: bilinear, with zeros around the map."""
    top, left, value = math.floor(down), math.floor(right), np.zeros(len(x))
    for row, column in product((top, top + 1), (left, left + 1)):
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            share = (1 - abs(down - row)) * (1 - abs(right - column))
            value += share * x[:, row, column]
    return value


def by_the_equation(layer: DeformableConv, images: Tensor) -> np.ndarray:
    """Equation 1 of Zhu et al. (2019) with loops: y(p) = sum_k w_k m_k(p) x(p + p_k + d_k(p))."""
    x, weight = images.numpy(), layer.weight.detach().numpy()
    predicted = layer.conv_offset(images).detach().numpy()
    (step, _), (pad, _), (apart, _) = layer.stride, layer.padding, layer.dilation
    groups, (_, _, rows, columns) = layer.groups, predicted.shape
    result = np.zeros((len(x), len(weight), rows, columns))
    for image, row, column, k in product(range(len(x)), range(rows), range(columns), range(9)):
        down, right = predicted[image, 2 * k : 2 * k + 2, row, column]
        factor = 1.0
        if layer.modulated:
            factor = 1 / (1 + math.exp(-predicted[image, 18 + k, row, column]))
        read = factor * at(
            x[image],
            row * step - pad + apart * (k // 3) + down,
            column * step - pad + apart * (k % 3) + right,
        )
        inputs, outputs = len(read) // groups, len(weight) // groups
        for channel in range(len(weight)):
            own = channel // outputs * inputs
            result[image, channel, row, column] += (
                weight[channel, :, k // 3, k % 3] @ read[own : own + inputs]
            )
    return result


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_it_is_its_equation(options: dict[str, Any], modulated: bool):
    layer = layer_of(modulated, scale=1.5, **options).double()
    images = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    expected = torch.from_numpy(by_the_equation(layer, images))
    assert expected.std() > 0.1
    with torch.no_grad():
        assert torch.allclose(layer(images), expected, rtol=0, atol=1e-12)
        layer.convolve = partial(convolve_on_grid, layer)  # what is exported
        assert torch.allclose(layer(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("modulated", [True, False])
def test_its_gradients_are_those_of_finite_differences(modulated: bool):
    layer = layer_of(modulated, scale=0.8, stride=2).double()
    images = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (images,))
    parameters = dict(layer.named_parameters())

    def of(*values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, named, (images.detach(),))

    assert torch.autograd.gradcheck(of, tuple(parameters.values()))


@pytest.mark.parametrize(("modulated", "factor"), [(True, 0.5), (False, 1.0)])
def test_it_starts_as_the_plain_convolution(modulated: bool, factor: float):
    """With factors of sigmoid(0), as in MMDetection and Detectron2."""
    layer, images = layer_of(modulated), torch.randn(2, 4, 8, 7)
    plain = nn.functional.conv2d(images, layer.weight, padding=1)
    assert torch.allclose(layer(images), factor * plain, atol=1e-6)
    layer(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("modulated", [True, False])
def test_precisions_and_memory_formats(modulated: bool):
    layer = layer_of(modulated, scale=0.5)
    images = torch.randn(2, 4, 16, 16)
    expected = layer(images)
    last = images.to(memory_format=torch.channels_last)
    channels_last = layer.to(memory_format=torch.channels_last)(last)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert not expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(channels_last, expected, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(images)
        assert mixed.dtype == nn.functional.conv2d(images, layer.weight, padding=1).dtype
    assert mixed.dtype == torch.bfloat16
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    short = copy.deepcopy(layer).bfloat16()(images.bfloat16())
    assert short.dtype == torch.bfloat16
    for near in (mixed, short):
        assert (near.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.long
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=(pytest.mark.process, pytest.mark.slow))],
)
def test_it_compiles_as_one_graph(backend: str):
    torch._dynamo.reset()
    layer, images = layer_of(scale=0.8), torch.randn(2, 4, 16, 16)
    compiled = torch.compile(copy.deepcopy(layer), backend=backend, fullgraph=True)
    for one in (layer, compiled):
        one(images).square().sum().backward()
    assert torch.allclose(compiled(images), layer(images), atol=1e-5)
    for ours, theirs in zip(layer.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def backbone(**options: Any) -> Backbone:
    given = {"norm": "frozen", "freeze_at": 0, "recompute": False, "deformable": [3, 4, 5]}
    return Backbone(**{"name": "resnet50", **given, **options})


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "layers"),
    [({}, (2, 3, 4)), ({"deformable": (5,), "modulated": False, "stride_in_1x1": True}, (4,))],
)
def test_the_3x3_convolutions_of_its_stages(options: dict[str, Any], layers: tuple[int, ...]):
    with torch.device("meta"):
        built = backbone(**options)
    blocks = {f"body.layer{n}.{b}.conv2" for n in layers for b in range((3, 4, 6, 3)[n - 1])}
    found = {name: m for name, m in built.named_modules() if isinstance(m, DeformableConv)}
    assert found.keys() == blocks
    for name, layer in found.items():
        assert layer.modulated is options.get("modulated", True)
        assert len(layer.conv_offset.weight) == (27 if layer.modulated else 18)
        plain = options.get("stride_in_1x1", False) or not name.endswith(".0.conv2")
        assert layer.stride == ((1, 1) if plain else (2, 2)), name


@pytest.mark.long
def test_it_trains_with_frozen_stages_and_starts_from_imagenet():
    torch.manual_seed(0)
    theirs = resnet50(weights=None).eval()
    built = backbone(weights="imagenet", freeze_at=3, modulated=False, recompute=True)
    built.load_pretrained(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    maps = built(images)
    with torch.no_grad():
        pooled = theirs.avgpool(maps[-1]).flatten(1)
        assert torch.allclose(theirs.fc(pooled), theirs(images), atol=1e-4)
    sum(m.square().mean() for m in maps[2:]).backward()
    for name, parameter in built.named_parameters():
        frozen = name.split(".")[1] in ("conv1", "bn1", "layer1", "layer2")
        assert parameter.requires_grad is not frozen, name
        assert frozen or (parameter.grad is not None and parameter.grad.isfinite().all()), name
        assert frozen or "conv_offset" not in name or parameter.grad.abs().sum() > 0, name
    with pytest.raises(UserError, match="not those of backbone resnet50"):
        built.load_pretrained({k: v for k, v in theirs.state_dict().items() if "conv2" not in k})


@pytest.mark.long
def test_the_displacements_learn_as_all_of_the_backbone_does():
    """MMDetection's configs give them no other rate, and decay their weights."""
    with torch.device("meta"):
        model = nn.Module()
        model.backbone = backbone(deformable=[5])
    groups = parameter_groups(model, lr=1.0, backbone_factor=0.1, weight_decay=0.3)
    own = dict(model.named_parameters())
    for kind, decay in (("weight", 0.3), ("bias", 0.0)):
        parameter = own[f"backbone.body.layer4.1.conv2.conv_offset.{kind}"]
        (group,) = [g for g in groups if any(p is parameter for p in g["params"])]
        assert (group["part"], group["lr"], group["weight_decay"]) == ("backbone", 0.1, decay)


@pytest.mark.long
def test_a_model_learns_in_bfloat16():
    torch.manual_seed(0)
    model = make_model(backbone="resnet50", norm="frozen", deformable=[3, 4, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch()).losses
    torch.stack(list(losses.values())).sum().backward()
    offsets = [p for name, p in model.named_parameters() if "conv_offset" in name]
    assert len(offsets) == 2 * (4 + 6 + 3)
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in offsets)


@pytest.mark.parametrize("stages", [3, "all", True, [], [1], [6], [3.0], [True], ["3"], {"a": 3}])
def test_what_is_not_a_list_of_stages_is_refused(stages: Any):
    with pytest.raises(UserError, match="must be null or a list of stages from 2 to 5"):
        check_stages(stages)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_others_than_resnets_with_bottlenecks_are_refused(name: str):
    with torch.device("meta"), pytest.raises(UserError, match="needs a ResNet with bottlenecks"):
        backbone(name=name)
    with pytest.raises(UserError, match=r"deformable=\[4\] needs a ResNet"):
        deform(nn.Sequential(), [4], True)
