"""Speeds up a trained model for inference: the same detections up to rounding, with fewer
operations.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from maskrcnn_lit.model.backbone import Backbone
from maskrcnn_lit.model.box_head import BoxHead
from maskrcnn_lit.model.fpn import FPN
from maskrcnn_lit.model.mask_head import MaskHead
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.norms import conv_options, convs_with_norms
from maskrcnn_lit.model.rpn import RPN

# Classes whose forward pass applies each norm directly after its convolution. This is unknown for
# timm's layers and custom classes, including subclasses.
IN_ORDER = (Backbone, FPN, RPN, BoxHead, MaskHead)

CELLS = (
    1000  # minimum size of a map for which Winograd saves more than transforming the weights costs
)


def for_inference(model: MaskRCNN) -> MaskRCNN:
    """Change `model` in place for inference: evaluation mode, no gradients, norms folded into
    convolutions, and on the CPU Winograd convolutions. It can no longer be trained, saved or loaded
    into.

    Call it after loading the weights and moving the model to its device.
    """
    model.eval().requires_grad_(False)
    for part in (model.backbone, model.fpn, model.rpn, model.box_head, model.mask_head):
        if part is not None and type(part) in IN_ORDER:
            fold_norms(part)
    if model.mean.device.type != "cpu" or not torch.backends.nnpack.is_available():
        return model.to(memory_format=torch.channels_last)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Conv2d and WinogradConv.suits(layer):
                setattr(parent, name, WinogradConv(layer))
            if isinstance(layer, nn.MaxPool2d):
                # This and the stem are faster in channels-last format; later layers are not.
                layer.register_forward_hook(lambda pool, inputs, pooled: pooled.contiguous())
    return model.to(memory_format=torch.contiguous_format)  # NNPACK's format


def fold_norms(module: nn.Module) -> None:
    """Fold the statistics and scales of all batch norms, frozen or not, into the convolutions
    before them.
    """
    for parent, conv_name, conv, norm_name, norm in list(convs_with_norms(module)):
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.get_buffer("running_mean"),
            norm.get_buffer("running_var"),
            norm.eps,  # type: ignore[arg-type]
            norm.weight,  # type: ignore[arg-type]
            norm.bias,  # type: ignore[arg-type]
        )
        folded = nn.Conv2d(**conv_options(conv) | {"bias": True}, device="meta")
        folded.weight, folded.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        setattr(parent, conv_name, folded.train(conv.training))
        setattr(parent, norm_name, nn.Identity())


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution on the CPU with a fifth of the multiplications (Lavin and Gray 2016), by
    NNPACK, which PyTorch includes but does not select by itself. Its rounding errors are about
    seven times as large. It shares the parameters of `conv`, see `suits`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(**conv_options(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    @staticmethod
    def suits(layer: nn.Conv2d) -> bool:
        same = (layer.stride, layer.padding, layer.dilation) == ((1, 1), (1, 1), (1, 1))
        return (
            layer.kernel_size == (3, 3)
            and same
            and layer.groups == 1
            and layer.padding_mode == "zeros"
        )

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.device.type != "cpu"  # moved to another device after for_inference on the CPU
            or x.dtype != torch.float32
            or len(x) * x.shape[-2] * x.shape[-1] < CELLS
            or torch.compiler.is_compiling()
        ):
            return super().forward(x)
        return torch._nnpack_spatial_convolution(x, self.weight, self.bias, 1)
