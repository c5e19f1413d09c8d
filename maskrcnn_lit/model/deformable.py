"""Deformable convolution in a ResNet, as MMDetection and Detectron2 build it (Dai et al. 2017,
"Deformable convolutional networks"; Zhu et al. 2019, "Deformable ConvNets v2").

Letters: B images, C channels, H W a map's size, h w that of the result, K points of the kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import deform_conv2d

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.boxes import full_precision
from maskrcnn_lit.model.norms import conv_options

STAGES = (2, 3, 4, 5)  # of c2..c5


class DeformableConv(nn.Module):
    """A convolution whose K points move: y(p) = sum_k w_k m_k(p) x(p + p_k + d_k(p)), where x is
    bilinear, and zero outside of the map (Zhu et al. 2019, equation 1).

    A second convolution, `conv_offset`, predicts the displacements d, and m before its sigmoid,
    from x. Its weights begin with zeros: then d = 0 and m = 1/2.

    Args:
        conv: the plain convolution; its weight and options are used, and it must have no bias.
        modulated: with the factors m (version 2); False: m = 1 (version 1).
    """

    def __init__(self, conv: nn.Conv2d, modulated: bool) -> None:
        super().__init__()
        options = conv_options(conv)
        self.stride, self.padding, self.dilation, self.groups = (
            options[name] for name in ("stride", "padding", "dilation", "groups")
        )
        self.weight, self.modulated = conv.weight, modulated
        self.points = self.weight[0, 0].numel()
        self.conv_offset = nn.Conv2d(
            conv.in_channels,
            self.points * (3 if modulated else 2),
            **{name: options[name] for name in ("kernel_size", "stride", "padding", "dilation")},
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """B C H W -> B D h w, in the precision and the memory format of a plain convolution."""
        predicted = self.conv_offset(x)
        offset, factors = predicted.split(
            [2 * self.points, predicted.shape[1] - 2 * self.points], 1
        )
        mask = factors.sigmoid() if self.modulated else None
        result = self.convolve(x, offset, mask).to(predicted.dtype)
        if x.is_contiguous(memory_format=torch.channels_last):
            return result.contiguous(memory_format=torch.channels_last)
        return result

    def convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        """B C H W, B 2K h w (how many pixels each point moves down and right) and B K h w -> B D h
        w, in full precision: the operator has no other. What exports the model gives it another
        form.
        """
        return deform_conv2d(
            full_precision(x),
            full_precision(offset),
            full_precision(self.weight),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=None if mask is None else full_precision(mask),
        )


def deform(trunk: nn.Module, stages: Sequence[int], modulated: bool) -> None:
    """Replace the 3x3 convolutions of the `stages` of a ResNet, in place.

    Raises:
        UserError: it is not a ResNet of bottlenecks: the published models are.
    """
    for stage in stages:
        blocks: Any = getattr(trunk, f"layer{stage - 1}", ())
        if not blocks or not all(isinstance(block, Bottleneck) for block in blocks):
            raise UserError(
                f"backbone.deformable={list(stages)} needs a ResNet with bottlenecks, of 50 layers "
                "or more: use backbone=resnet50_dcn, or backbone.deformable=null"
            )
        for block in blocks:
            block.conv2 = DeformableConv(block.conv2, modulated)


def check_stages(stages: Any) -> None:
    """Raise UserError if backbone.deformable is neither None nor a list of stages."""
    if stages is None:
        return
    listed = isinstance(stages, (list, tuple)) and len(stages) > 0
    if not listed or not all(type(s) is int and s in STAGES for s in stages):
        raise UserError(
            f"backbone.deformable={stages} must be null or a list of stages from 2 to 5, such as "
            "[3,4,5]"
        )
