"""A torchvision ResNet -> c2..c5, the feature maps at strides 4, 8, 16 and 32 (Mask R-CNN, section 3.1).

Letters: B images, C channels, H W the padded image.
"""

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_lit.errors import UserError

STAGES = ("layer1", "layer2", "layer3", "layer4")  # torchvision's names of res2..res5
NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,  # for pretrained weights: statistics and scale stay as they are
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 32),  # for training from scratch with few images a device
}


class Backbone(nn.Module):
    """Image -> [c2, c3, c4, c5]; `channels` and `strides` of the four are measured on a dummy pass.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101 (He et al. 2016), built with random weights.
        norm: frozen, batch or group (see NORMS).
        freeze_at: how many stages get no gradient: 0 none, 1 the stem, 2 stem and res2 (the paper's), ... 5 all.
    """

    def __init__(self, *, name: str, norm: str, freeze_at: int) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UserError(f"backbone.norm={norm} is unknown; choose one of {', '.join(NORMS)}")
        if freeze_at not in range(6):
            raise UserError(f"backbone.freeze_at={freeze_at} must be 0 (train all) to 5 (freeze all)")
        resnet = torchvision.models.get_model(name, weights=None, norm_layer=NORMS[norm])
        stages = [[resnet.conv1, resnet.bn1], *([getattr(resnet, stage)] for stage in STAGES)]
        for part in (part for stage in stages[:freeze_at] for part in stage):
            part.requires_grad_(False)
        nodes = {stage: f"c{level}" for level, stage in enumerate(STAGES, start=2)}
        self.body = create_feature_extractor(resnet, return_nodes=nodes)
        self._frozen = [stage for stage in ("bn1", *STAGES)[:freeze_at]]
        self.channels, self.strides = self._measure()

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W, normalised -> four maps B C H/s W/s, s = 4, 8, 16, 32."""
        return list(self.body(images).values())

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen stages stay in evaluation: their batch statistics do not move either."""
        super().train(mode)
        for name in self._frozen:
            self.body.get_submodule(name).eval()
        return self

    @torch.no_grad()
    def _measure(self) -> tuple[list[int], list[int]]:
        self.body.eval()
        maps = self.body(torch.zeros(1, 3, 64, 64)).values()
        self.train()
        return [m.shape[1] for m in maps], [64 // m.shape[2] for m in maps]
