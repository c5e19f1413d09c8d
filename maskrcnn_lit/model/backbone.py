"""A torchvision ResNet -> c2..c5, the feature maps at strides 4, 8, 16 and 32 (Mask R-CNN, section 3.1).

Letters: B images, C channels, H W the padded image.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_lit.errors import UserError


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Torchvision's, in one pass over the map instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm,  # for pretrained weights: statistics and scale stay as they are
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 32),  # for training from scratch with few images a device
}


NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")


class Backbone(nn.Module):
    """Image -> [c2, c3, c4, c5]; `channels` and `strides` of the four are measured on a dummy pass.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101 (He et al. 2016), built with random weights.
        norm: frozen, batch or group (see NORMS).
        freeze_at: how many stages get no gradient: 0 none, 1 the stem, 2 stem and res2 (the paper's), ... 5 all.
        recompute: in the backward pass compute res3, whose maps are the largest that are trained after res2, again
            instead of keeping them. Not with norm=batch, whose statistics would see each batch twice.
    """

    def __init__(self, *, name: str, norm: str, freeze_at: int, recompute: bool) -> None:
        super().__init__()
        if name not in NAMES:
            raise UserError(f"backbone.name={name} is unknown; choose one of {', '.join(NAMES)}")
        if norm not in NORMS:
            raise UserError(f"backbone.norm={norm} is unknown; choose one of {', '.join(NORMS)}")
        if freeze_at not in range(6):
            raise UserError(f"backbone.freeze_at={freeze_at} must be 0 (train all) to 5 (freeze all)")
        resnet = torchvision.models.get_model(name, weights=None, norm_layer=NORMS[norm])
        parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        self.body = nn.ModuleDict({part: getattr(resnet, part) for part in parts})
        self._frozen = [(), parts[:4], parts[:5], parts[:6], parts[:7], parts][freeze_at]
        for part in self._frozen:
            self.body[part].requires_grad_(False)
        self._again = {"layer2"} if recompute and norm != "batch" else set()
        self.channels, self.strides = self._measure()

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W, normalised -> four maps B C H/s W/s, s = 4, 8, 16, 32."""
        maps, x = [], images
        for name, part in self.body.items():
            x = recomputed(part, x) if name in self._again else part(x)
            if name.startswith("layer"):
                maps.append(x)
        return maps

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen stages stay in evaluation: their batch statistics do not move either."""
        super().train(mode)
        for name in self._frozen:
            self.body[name].eval()
        return self

    @torch.no_grad()
    def _measure(self) -> tuple[list[int], list[int]]:
        self.eval()
        maps = self(torch.zeros(1, 3, 64, 64))
        self.train()
        return [m.shape[1] for m in maps], [64 // m.shape[2] for m in maps]


def recomputed(part: nn.Module, inputs: Any) -> Any:
    """`part(inputs)`, whose inner activations are computed again in the backward pass instead of kept until then."""
    if not torch.is_grad_enabled():
        return part(inputs)
    return checkpoint(part, inputs, use_reentrant=False, preserve_rng_state=False)
