"""A timm model whose maps all have one stride (a plain vision transformer) as a function to its
last map, for images of any size (ViTDet, Li et al. 2022, section 3). Letters: B images, C channels,
H W the image, h w the map.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.model.backbone import memory_is_short
from maskrcnn_lit.model.window_attention import windowed_map

LEVELS = (8, 16, 32)  # strides of the map that a pyramid is built on


class PlainTransformer(nn.Module):
    """Image -> the last map, at stride 8, 16 or 32, with the model's last norm where it has one.

    Class and register tokens take part in attention and are dropped at the end. Images are padded
    with zeros, below and on the right, to multiples of the model's stride (14: patches of 14 x 14
    pixels); a map at another stride than 8, 16 or 32 is resampled to the nearest of them, bilinear.

    Args: model: timm's. recompute: activation checkpointing of every block in training; "auto": on
    a GPU with too little memory for the batch. square: pad images to at least this side; None: not.
    window: side of the windows that most blocks attend in, in patches (see window_attention.py);
    None: all blocks attend over the whole map, or the model has windows of its own.
    """

    def __init__(
        self,
        model: Any,
        recompute: bool | str = False,
        square: int | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.recompute, self.square, self.window = recompute, square, window
        self.patch = int(model.feature_info[-1]["reduction"])
        self.stride = min(LEVELS, key=lambda level: abs(level / self.patch - 1))
        # SAM's is part of a neck to fewer channels
        self.normed = isinstance(getattr(model, "norm", None), (nn.LayerNorm, nn.RMSNorm))
        self.model.prune_intermediate_layers(1, prune_norm=not self.normed, prune_head=True)
        self.channels = int(model.feature_info[-1]["num_chs"])

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W -> [B C h w], h = H / stride, rounded up."""
        height, width = (max(side, self.square or 0) for side in images.shape[-2:])
        size = -(-height // self.stride), -(-width // self.stride)
        images = self._padded(images, size)
        again = self.training and self._recomputes(images)
        if self.window is None:
            x = self._map(images, again)
        else:
            x = windowed_map(self.model, images, self.window, again)
        if self.patch != self.stride:
            ratio = self.patch / self.stride
            x = F.interpolate(x, scale_factor=ratio, mode="bilinear", recompute_scale_factor=False)
            x = x[:, :, : size[0], : size[1]]
        return [x.contiguous(memory_format=torch.channels_last)]

    def _map(self, images: Tensor, again: bool) -> Tensor:
        """timm's own forward."""
        if again != self.model.grad_checkpointing:
            self.model.set_grad_checkpointing(again)
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=1, norm=self.normed, output_fmt="NCHW", intermediates_only=True
        )
        return maps[0]

    def _padded(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """With sides that are multiples of the patch and cover `size` cells of the map."""
        bottom, right = (
            -(-cells * self.stride // self.patch) * self.patch - side
            for cells, side in zip(size, images.shape[-2:], strict=True)
        )
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images

    def _recomputes(self, images: Tensor) -> bool:
        if self.recompute != "auto":
            return bool(self.recompute)
        pixels = images.shape[0] * images.shape[2] * images.shape[3]
        return images.is_cuda and memory_is_short(pixels, images.device)

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """The parameters of the embeddings and of each block, without those of the last norm."""
        blocks = list(getattr(self.model, "blocks", ()))
        later = {*_parameters(blocks), *_parameters([getattr(self.model, "norm", nn.Identity())])}
        first = [p for p in self.model.parameters() if p not in later]
        return [first, *(list(block.parameters()) for block in blocks)]

    def parameters_by_stage(self) -> list[list[nn.Parameter]]:
        """The parameters of the embeddings and of each quarter of the blocks; the last one has the
        last norm, too.
        """
        first, *blocks = self.parameters_by_layer()
        ends = [round(len(blocks) * share / 4) for share in range(5)]
        stages = [
            [p for block in blocks[start:end] for p in block] for start, end in pairwise(ends)
        ]
        seen = {*first, *(p for block in blocks for p in block)}
        stages[-1] += [p for p in self.model.parameters() if p not in seen]
        return [first, *stages]


def _parameters(modules: Iterable[nn.Module]) -> Iterable[nn.Parameter]:
    return (p for module in modules for p in module.parameters())
