from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from wrong_values import CHOICE, COUNT, cases, positive_list

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.fpn import FPN, SimpleFPN, build_fpn, enlarge
from maskrcnn_lit.model.norms import ChannelNorm


@pytest.mark.parametrize("sides", [(32, 16, 8, 4), (25, 13, 7, 4)])
def test_equals_torchvision(sides: tuple[int, ...]):
    widths = (8, 16, 24, 32)
    ours = FPN(in_channels=widths, channels=12).double()
    theirs = FeaturePyramidNetwork(list(widths), 12, LastLevelMaxPool()).double()
    for kind, blocks in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
        for conv, block in zip(kind, blocks, strict=True):
            torch.nn.init.normal_(conv.bias)
            block[0].load_state_dict(conv.state_dict())
    maps = [
        torch.randn(2, w, s, s + 3, dtype=torch.float64) for w, s in zip(widths, sides, strict=True)
    ]
    expected = theirs(OrderedDict(enumerate(maps)))
    pyramid = ours(maps)
    assert len(pyramid) == 5
    for level, expected_level in zip(pyramid, expected.values(), strict=True):
        assert torch.allclose(level, expected_level, rtol=1e-12, atol=1e-12)


def test_the_coarsest_map_reaches_every_level_and_the_finest_only_its_own():
    fpn = FPN(in_channels=(4, 4, 4, 4), channels=4)
    maps = [torch.zeros(1, 4, s, s, requires_grad=True) for s in (32, 16, 8, 4)]
    pyramid = fpn(maps)
    for source, reached in ((3, [True] * 5), (0, [True, False, False, False, False])):
        gradients = [
            torch.autograd.grad(p.sum(), maps[source], retain_graph=True, allow_unused=True)[0]
            for p in pyramid
        ]
        assert [g is not None and bool(g.any()) for g in gradients] == reached


def small(**options: Any) -> tuple[FPN, list[torch.Tensor]]:
    torch.manual_seed(0)
    fpn = FPN(in_channels=(2, 3, 4, 5), channels=6, **options).double()
    sides = zip((2, 3, 4, 5), (16, 8, 4, 2), strict=True)
    return fpn, [torch.randn(2, c, s, s, dtype=torch.float64) for c, s in sides]


def test_tables_1_d_and_e_of_the_paper():
    """d: without the top-down sum, each level is its own two convolutions; e: without lateral
    connections, all levels are enlargements of the coarsest.
    """
    fpn, maps = small(connections="lateral")
    for level, own in enumerate(maps):
        expected = fpn.output[level](fpn.lateral[level](own))
        assert torch.equal(fpn(maps)[level], expected)
    fpn, maps = small(connections="top_down")
    coarsest = fpn.lateral[0](maps[3])
    assert len(fpn.lateral) == 1
    for level in range(4):
        larger = F.interpolate(coarsest, scale_factor=2 ** (3 - level), mode="nearest")
        assert torch.allclose(fpn(maps)[level], fpn.output[level](larger), rtol=1e-12)


def test_path_augmentation_by_hand():
    """PANet, section 3.1: N2 = P2; N of a level is conv(P + conv of stride 2 (N of the finer)),
    each convolution with a ReLU. P6 subsamples N5.
    """
    fpn, maps = small(path_augmentation=True)
    plain = FPN(in_channels=(2, 3, 4, 5), channels=6).double()
    state = fpn.state_dict()
    plain.load_state_dict(
        {k: v for k, v in state.items() if k.split(".")[0] in ("lateral", "output")}
    )
    p2, p3, p4, p5, _ = plain(maps)
    n2, levels = p2, [p2]
    for step, level in enumerate((p3, p4, p5)):
        strided = F.conv2d(n2, state[f"down.{step}.weight"], state[f"down.{step}.bias"], 2, 1)
        joined = level + strided.clamp(min=0)
        n2 = F.conv2d(
            joined, state[f"joined.{step}.weight"], state[f"joined.{step}.bias"], padding=1
        ).clamp(min=0)
        levels.append(n2)
    found = fpn(maps)
    assert [tuple(level.shape) for level in found] == [(2, 6, s, s) for s in (16, 8, 4, 2, 1)]
    for own, expected in zip(found, [*levels, n2[:, :, ::2, ::2]], strict=True):
        assert torch.allclose(own, expected, rtol=1e-12, atol=1e-12)
    torch.stack([level.sum() for level in found]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fpn.parameters())


def test_the_path_of_mmdetection_by_hand():
    """Its PAFPN: M of a level is P + conv of stride 2 (M of the finer), N is conv(M), no ReLU."""
    fpn, maps = small(path_augmentation="mmdetection")
    state = fpn.state_dict()
    plain = FPN(in_channels=(2, 3, 4, 5), channels=6).double()
    own = {k: v for k, v in state.items() if k.split(".")[0] in ("lateral", "output")}
    plain.load_state_dict(own)
    merged, levels = plain(maps)[:4], []
    for step in range(3):
        weight, bias = state[f"down.{step}.weight"], state[f"down.{step}.bias"]
        merged[step + 1] = merged[step + 1] + F.conv2d(merged[step], weight, bias, 2, 1)
    for step in range(3):
        weight, bias = state[f"joined.{step}.weight"], state[f"joined.{step}.bias"]
        levels.append(F.conv2d(merged[step + 1], weight, bias, padding=1))
    expected = [merged[0], *levels, levels[-1][:, :, ::2, ::2]]
    for ours, theirs in zip(fpn(maps), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match=r"path_augmentation=1 must be true, false or mmdetection"):
        FPN(in_channels=(2, 3), channels=4, path_augmentation=1)


def test_without_options_the_weights_are_drawn_as_before():
    torch.manual_seed(0)
    fpn = FPN(in_channels=(2, 3), channels=4)
    names = [f"{part}.{n}" for part in ("lateral", "output") for n in (0, 1)]
    expected = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert [name for name, _ in fpn.named_parameters()] == expected


@pytest.mark.parametrize("size", [(6, 8), (5, 8), (7, 9)])
def test_enlarging_and_its_gradient_equal_interpolation(size: tuple[int, int]):
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = torch.randn(2, 5, *size)
    values, gradients = [], []
    for larger in (enlarge(x, size), F.interpolate(x, size=size, mode="nearest")):
        values.append(larger)
        gradients.append(torch.autograd.grad((larger * weight).sum(), x)[0])
    assert torch.equal(*values)
    assert torch.allclose(*gradients, atol=1e-6)


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_doubling_uses_no_interpolation_forward_or_backward():
    """Compiled, its gradient would be one of atomic additions."""
    last = torch.channels_last
    fpn = FPN(in_channels=(4, 4, 4, 4), channels=4).to(memory_format=last)
    with Operators() as seen:
        pyramid = fpn(
            [torch.randn(1, 4, s, s).contiguous(memory_format=last) for s in (32, 16, 8, 4)]
        )
        torch.stack([level.sum() for level in pyramid]).sum().backward()
    assert "convolution_backward" in seen.names
    assert not {n for n in seen.names if "upsample" in n or "index" in n or "pool" in n}
    with Operators() as seen:
        fpn([torch.randn(1, 4, s, s).contiguous(memory_format=last) for s in (25, 13, 7, 4)])
    assert "upsample_nearest2d" in seen.names


def test_p6_is_every_second_cell_of_p5():
    *_, p5, p6 = FPN(in_channels=(4, 4, 4, 4), channels=4)(
        [torch.randn(1, 4, s, s) for s in (40, 20, 10, 5)]
    )
    assert torch.equal(p6, p5[:, :, ::2, ::2])
    assert torch.equal(p6, F.max_pool2d(p5, kernel_size=1, stride=2))


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_every_level_has_the_memory_format_of_its_input(form: torch.memory_format):
    built = FPN(in_channels=(4, 4, 4, 4), channels=4).to(memory_format=form)
    maps = [torch.randn(1, 4, s, s).contiguous(memory_format=form) for s in (40, 20, 10, 5)]
    assert all(level.is_contiguous(memory_format=form) for level in built(maps))


def test_biases_begin_at_zero():
    fpn = FPN(in_channels=(4, 8), channels=6)
    assert not any(p.any() for name, p in fpn.named_parameters() if name.endswith("bias"))
    assert all(p.any() for name, p in fpn.named_parameters() if name.endswith("weight"))


def test_a_map_too_many_is_an_error():
    with pytest.raises(ValueError, match="longer"):
        FPN(in_channels=(4, 8), channels=4)(
            [torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)]
        )


@pytest.mark.parametrize(
    ("option", "value"),
    cases(in_channels=positive_list(4)[2:], channels=[*COUNT, 10**9], norm=CHOICE),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        FPN(**{"in_channels": [8, 16, 32, 64], "channels": 8, option: value})
    assert str(caught.value).startswith(f"model.fpn.{option}={value} must be ")


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_simple_pyramid_has_every_stride_from_one_map(stride: int):
    """Each map's gradient reaches all of p2..p6, whatever the stride of the map."""
    fpn = SimpleFPN(in_channels=16, stride=stride, channels=8)
    source = torch.randn(2, 16, 128 // stride, 192 // stride, requires_grad=True)
    pyramid = fpn([source])
    assert fpn.strides == [4, 8, 16, 32]
    assert [tuple(level.shape) for level in pyramid] == [
        (2, 8, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)
    ]
    for level in pyramid:
        assert torch.autograd.grad(level.square().sum(), source, retain_graph=True)[0].any()
    widths = [
        level[0].out_channels for level in fpn.levels if isinstance(level[0], nn.ConvTranspose2d)
    ]
    assert widths == [8] * len([s for s in (4, 8, 16, 32) if s < stride])


def test_a_simple_pyramid_is_that_of_the_paper():
    """Li et al. 2022, section 3 and appendix A.2: the layers of each level, from stride 16."""
    fpn = build_fpn(in_channels=[16], strides=[16], channels=8)
    names = [[type(layer).__name__ for layer in level] for level in fpn.levels]
    up, convs = "ConvTranspose2d", ["Sequential", "Sequential"]
    assert names == [
        [up, "ChannelNorm", "GELU", up, *convs],
        [up, *convs],
        convs,
        ["MaxPool2d", *convs],
    ]
    for level in fpn.levels:
        (one, norm), (three, last) = level[-2:]
        assert (one.kernel_size, three.kernel_size) == ((1, 1), (3, 3))
        assert one.bias is None
        assert three.bias is None
        assert isinstance(norm, ChannelNorm)
        assert isinstance(last, ChannelNorm)


def test_the_kind_follows_the_number_of_maps():
    four = {"in_channels": [4, 8, 16, 32], "strides": [4, 8, 16, 32], "channels": 8}
    one = {"in_channels": [4], "strides": [16], "channels": 8}
    for kind in ("auto", "fpn"):
        assert isinstance(build_fpn(kind=kind, **four), FPN)
    for kind in ("auto", "simple"):
        assert isinstance(build_fpn(kind=kind, **one), SimpleFPN)
    assert build_fpn(norm="batch", **one).levels[0][1].num_features == 2
    with pytest.raises(UserError, match=r"kind=simple .* strides \[4, 8, 16, 32\]: use fpn or"):
        build_fpn(kind="simple", **four)
    with pytest.raises(UserError, match=r"fpn\.kind=fpn .* strides \[16\]: use simple or auto"):
        build_fpn(kind="fpn", **one)
    with pytest.raises(UserError, match=r"model\.fpn\.kind=other must be one of auto, fpn, simple"):
        build_fpn(kind="other", **one)
    for name, value in (("connections", "lateral"), ("path_augmentation", True)):
        with pytest.raises(UserError, match=rf"fpn\.{name}={value} needs a backbone with several"):
            build_fpn(**one, **{name: value})
    with pytest.raises(UserError, match="a map at stride 4, 8, 16 or 32, not 64"):
        build_fpn(in_channels=[4], strides=[64], channels=8)
