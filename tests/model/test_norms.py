import copy

import pytest
import torch
from torch import nn
from torchvision.ops.misc import Conv2dNormActivation

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.norms import (
    Depthwise,
    FoldedConv,
    FrozenBatchNorm,
    conv,
    dense_convs,
    fold_frozen,
    groups,
    norm_of,
    replace_norms,
)


def trained(channels: int = 6) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=0.01, momentum=0.3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    return norm


@pytest.mark.parametrize("kind", ["frozen", "batch", "sync"])
def test_a_batch_norm_keeps_its_numbers(kind: str):
    reference, x = trained(), torch.randn(2, 6, 5, 4)
    made = norm_of(kind, 6, like=reference).eval()
    assert torch.allclose(made(x), reference(x), atol=1e-6)
    assert made.eps == 0.01
    assert getattr(made, "momentum", 0.3) == 0.3


@pytest.mark.parametrize(("own", "wanted"), [(0.0003, 0.1), (0.01, 0.1), (0.3, 0.3), (None, None)])
@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_running_statistics_follow_a_short_training(
    kind: str, own: float | None, wanted: float | None
):
    block = nn.Sequential(nn.BatchNorm2d(6, momentum=own))
    replace_norms(block, kind)
    assert block[0].momentum == wanted


def test_a_frozen_norm_does_not_move():
    made, x = norm_of("frozen", 6, like=trained()).train(), torch.randn(2, 6, 5, 4)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert not list(made.parameters())
    assert len(before) == 4
    made(x)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(256, 32), (64, 32), (48, 16), (24, 8), (40, 8), (16, 8), (6, 2), (7, 1), (2, 1), (1, 1)],
)
def test_groups_divide_the_channels_and_have_two_each(channels: int, expected: int):
    assert groups(channels) == expected
    assert norm_of("group", channels)(torch.randn(2, channels, 3, 3)).isfinite().all()


def test_an_unknown_norm_is_told():
    with pytest.raises(
        UserError, match="norm=instance is unknown: use frozen, batch, sync, group, layer"
    ):
        norm_of("instance", 4)


def test_a_layer_norm_normalizes_the_channels_of_each_pixel():
    norm, x = norm_of("layer", 6).double(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    centered = x - x.mean(dim=1, keepdim=True)
    scaled = centered / (centered.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    expected = scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
    for form in (torch.contiguous_format, torch.channels_last):
        got = norm(x.contiguous(memory_format=form))
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert got.is_contiguous(memory_format=torch.channels_last)


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: an activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


def test_every_batch_norm_is_replaced_and_its_activation_stays():
    net = nn.Sequential(
        Conv2dNormActivation(3, 4), nn.Sequential(WithActivation(4)), nn.LayerNorm([4, 8, 8])
    ).eval()
    nn.init.normal_(net[1][0].bias)
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    replace_norms(net, "frozen")
    assert sum(type(m) is FrozenBatchNorm for m in net.modules()) == 2
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert isinstance(net[2], nn.LayerNorm)
    assert torch.allclose(net(x), expected, atol=1e-6)
    replace_norms(other := nn.Sequential(nn.BatchNorm2d(4)), "batch", eps=0.5)
    assert type(other[0]) is nn.BatchNorm2d
    assert other[0].eps == 0.5


@pytest.mark.parametrize("norm", [None, "batch", "group", "frozen", "sync"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_keeps_the_size(size: int, norm: str | None):
    layer = conv(4, 8, size, norm)
    assert layer(torch.randn(2, 4, 7, 9)).shape == (2, 8, 7, 9)
    assert isinstance(layer, nn.Conv2d) is (norm is None)
    assert (layer if norm is None else layer[0]).bias is None or norm is None


def test_a_folded_norm_is_in_the_convolution_and_keeps_its_name():
    torch.manual_seed(0)
    pair = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), norm_of("frozen", 6, like=trained()), nn.ReLU()
    )
    plain, x = copy.deepcopy(pair), torch.randn(2, 3, 8, 8)
    fold_frozen(pair)
    assert type(pair[0]) is FoldedConv
    assert list(pair.state_dict()) == list(plain.state_dict())
    again = copy.deepcopy(
        pair
    )  # it does the norm beside it, and not the one that it was copied from
    again[1].bias.add_(1)
    assert torch.allclose(pair(x), plain(x), atol=1e-5)
    assert not torch.allclose(again(x), pair(x))
    pair(x).sum().backward()
    plain(x).sum().backward()
    assert torch.allclose(pair[0].weight.grad, plain[0].weight.grad, atol=1e-4)
    pair.load_state_dict({name: value + 0.5 for name, value in plain.state_dict().items()})
    plain.load_state_dict(pair.state_dict())
    assert torch.allclose(pair(x), plain(x), atol=1e-4)


def test_a_convolution_with_a_bias_is_folded_too():
    pair = nn.Sequential(nn.Conv2d(3, 6, 3), norm_of("frozen", 6, like=trained()))
    x = torch.randn(2, 3, 8, 8)
    expected = pair(x)
    fold_frozen(pair)
    assert torch.allclose(pair(x), expected, atol=1e-5)


def test_folding_takes_over_the_convolution_and_draws_no_random_number():
    pair = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect"),
        norm_of("frozen", 6, like=trained()),
    ).eval()
    whole, x, seed = pair[0], torch.randn(2, 4, 9, 9), torch.get_rng_state()
    expected = pair(x)
    fold_frozen(pair)
    assert torch.equal(torch.get_rng_state(), seed)
    assert pair[0] is not whole
    assert pair[0].weight is whole.weight
    assert pair[0].bias is whole.bias
    assert not pair[0].training
    assert torch.allclose(pair(x), expected, atol=1e-5)
    assert "_behind" not in dict(pair[0].named_children())


@pytest.mark.parametrize("norm", [None, "batch", "frozen", "group"])
def test_a_separable_convolution_equals_the_dense_one_of_its_products(norm: str | None):
    """Each weight of the dense one is the product of one of either."""
    layers = conv(6, 8, 3, norm, separable=True).eval()
    assert isinstance(layers, nn.Sequential)
    depth, point = layers[0], layers[1]
    x = torch.randn(2, 6, 7, 5)
    weight = point.weight * depth.weight[:, 0]  # O C 1 1 * C 3 3
    expected = torch.nn.functional.conv2d(x, weight, point.bias, padding=1)
    if norm is not None:
        expected = norm_of(norm, 8).eval()(expected)
    assert torch.allclose(layers(x), expected, atol=1e-5)


def test_a_separable_convolution_keeps_the_variance_of_its_map():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 20, 20)
    inner = Depthwise(64, 3)(x)[..., 1:-1, 1:-1]
    assert inner.var().item() == pytest.approx(1, abs=0.15)


def test_a_head_draws_the_weights_of_its_dense_convolutions_only():
    layers = nn.Sequential(conv(4, 8, 3, None, separable=True), conv(8, 2, 1, None))
    assert [tuple(layer.weight.shape) for layer in dense_convs(layers)] == [
        (8, 4, 1, 1),
        (2, 8, 1, 1),
    ]
