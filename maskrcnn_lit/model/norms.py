"""Normalization layers by name, for the backbone and the heads, and folding of frozen norms into
convolutions.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_lit.errors import UserError

NORMS = ("frozen", "batch", "sync", "group")  # what a batch norm may become
HEAD_NORMS = (*NORMS, "layer")  # of the pyramid and the heads

# The least share of a step in the running statistics of a batch norm. Torchvision's MobileNetV3 has
# 0.01 and its MNASNet 0.0003, for trainings of 100,000s of steps. After 250 steps, 0.01 leaves 0.08
# of the start in a variance that is often 0.001: MobileNetV3 had a mask AP50 of 0.000 on shapes
# instead of 0.235.
MOMENTUM = 0.1

# Limits that reject a mistyped number before it allocates terabytes.
MAX_WIDTH, MAX_DEPTH, MAX_POOL = 65_536, 100, 64  # channels of a layer, layers, cells per side


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Torchvision's FrozenBatchNorm2d with one pass over the map instead of two, or none after a
    `FoldedConv`.
    """

    folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            return x
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class FoldedConv(nn.Conv2d):
    """A convolution that includes the frozen norm after it, as conv(x, W scale, shift), which saves
    a pass over the map. It shares the parameters of `conv`.

    The norm module keeps its name and buffers, and becomes an identity.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm) -> None:
        super().__init__(**conv_options(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self._behind = (norm,)  # in a tuple, so that it is not registered as a submodule again
        norm.folded = True

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._behind[0].scale_and_shift()
        bias = shift if self.bias is None else self.bias * scale + shift
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)


class ConvAndNorm(NamedTuple):
    """A convolution and the batch norm that follows it, both children of `parent`."""

    parent: nn.Module
    conv_name: str
    conv: nn.Conv2d
    norm_name: str
    norm: nn.Module


def conv_options(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments of nn.Conv2d for a convolution of the same shape."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    options = {name: getattr(conv, name) for name in (*names, "groups", "padding_mode")}
    return options | {"bias": conv.bias is not None}


def fold_frozen(module: nn.Module) -> None:
    """Fold the frozen norms below `module` into the convolutions before them."""
    for pair in list(convs_with_norms(module)):
        if isinstance(pair.norm, FrozenBatchNorm):
            setattr(pair.parent, pair.conv_name, FoldedConv(pair.conv, pair.norm))


def convs_with_norms(module: nn.Module) -> Iterator[ConvAndNorm]:
    """Every convolution whose next sibling is a batch norm, frozen or not. A test checks for every
    backbone of torchvision that the norm also follows in the forward pass.
    """
    for parent in module.modules():
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm)):
                yield ConvAndNorm(parent, conv_name, conv, norm_name, norm)


def norm_of(kind: str, channels: int, like: nn.BatchNorm2d | None = None) -> nn.Module:
    """A norm of `channels`.

    Args: kind: frozen (fixed statistics and scale, for pretrained weights), batch, sync (batch norm
    over all processes, for few images per device; needs CUDA), group (Wu and He 2018, for few
    images per device), layer (see `ChannelNorm`). like: copy its eps, momentum, weights and
    statistics.
    """
    if kind == "layer":
        return ChannelNorm(channels)
    like = like or nn.BatchNorm2d(channels)
    if kind == "batch":
        return like
    if kind == "group":
        return nn.GroupNorm(groups(channels), channels)
    if kind not in NORMS:
        raise UserError(f"norm={kind} is unknown: use {', '.join(HEAD_NORMS)}")
    layer: nn.Module = FrozenBatchNorm(channels, eps=like.eps)
    if kind == "sync":
        layer = nn.SyncBatchNorm(channels, eps=like.eps, momentum=like.momentum)
    layer.load_state_dict(like.state_dict())
    return layer


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of a map B C H W (ViTDet's pyramid and heads)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)  # B H W C: no copy in channels-last format
        normed = F.layer_norm(pixels, self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


def groups(channels: int) -> int:
    """The number of groups: 32, or fewer in a narrow layer, so that each has at least two
    channels.
    """
    return next((g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 2), 1)


def replace_norms(module: nn.Module, kind: str, eps: float | None = None) -> None:
    """Replace every batch norm below `module` by one of `kind`, with `eps` if given. Other norms
    stay.

    Other operations of a batch norm (timm's include an activation) are applied after the new norm.
    Running statistics that follow the training more slowly than MOMENTUM get MOMENTUM.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace_norms(child, kind, eps)
            continue
        child.eps = child.eps if eps is None else eps
        child.momentum = max(child.momentum, MOMENTUM) if child.momentum is not None else None
        if kind != "batch":
            new = [norm_of(kind, child.num_features, like=child), *child.children()]
            setattr(module, name, nn.Sequential(*new) if len(new) > 1 else new[0])


def conv(
    inputs: int,
    outputs: int,
    size: int,
    norm: str | None,
    *,
    separable: bool = False,
    stride: int = 1,
) -> nn.Module:
    """A convolution that keeps the size, or divides it by `stride`; with a norm it is a pair, and
    the convolution has no bias.

    separable: instead of one a convolution of each channel alone, size x size, and one of all
    channels, 1 x 1 (Howard et al. 2017), with nothing between them (Tan et al. 2020, EfficientDet).
    Of 3 x 3 and 64 channels that takes an eighth of the products.
    """
    layer = nn.Conv2d(
        inputs,
        outputs,
        1 if separable else size,
        stride=stride,
        padding=0 if separable else size // 2,
        bias=norm is None,
    )
    layers: list[nn.Module] = [layer]
    if separable:
        layers.insert(0, Depthwise(inputs, size))
    if norm is not None:
        layers.append(norm_of(norm, outputs))
    if len(layers) == 1:
        return layer
    joined = nn.Sequential(*layers)
    fold_frozen(joined)
    return joined


class Depthwise(nn.Conv2d):
    """A convolution of each channel alone, without bias, which keeps the size.

    Its weights begin with the variance that keeps that of the map (He et al. 2015, without ReLU).
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, channels, size, padding=size // 2, groups=channels, bias=False)
        nn.init.normal_(self.weight, std=1 / size)


def dense_convs(module: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions of all channels at or below `module`: those whose weights a head draws."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, Depthwise):
            yield layer
