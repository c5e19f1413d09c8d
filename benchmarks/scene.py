"""What the hot spots read (hot_spots.py): objects, anchors, proposals and features of a batch, and
the heads.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.model.anchors import Anchors

STRIDES, CHANNELS, CLASSES = (4, 8, 16, 32), 256, 90
OBJECTS, PROPOSALS, REGIONS, POSITIVES = 20, 1000, 512, 64


class Scene(NamedTuple):
    """What the operators read."""

    size: tuple[int, int]
    boxes: Tensor  # B G 4
    anchors: Tensor  # A 4
    proposals: Tensor  # B P 4, best first
    pyramid: list[Tensor]  # B C h w, channels last


def make_scene(batch: int, size: tuple[int, int], device: torch.device) -> Scene:
    height, width = size
    sides = torch.tensor([width, height, width, height], dtype=torch.float32)
    center, half = torch.rand(batch, OBJECTS, 2), 0.02 + 0.15 * torch.rand(batch, OBJECTS, 2)
    boxes = (torch.cat([center - half, center + half], dim=-1).clamp(0, 1) * sides).to(device)
    jitter = torch.randn(batch, PROPOSALS, 4, device=device) * 0.15
    near = boxes[:, torch.arange(PROPOSALS) % OBJECTS]
    moved = near + jitter * (near[..., 2:] - near[..., :2]).repeat(1, 1, 2)
    low, high = (
        torch.minimum(moved[..., :2], moved[..., 2:]),
        torch.maximum(moved[..., :2], moved[..., 2:]) + 1,
    )
    proposals = torch.minimum(torch.cat([low, high], dim=-1).clamp(min=0), sides.to(device))
    cells = [(-(-height // s), -(-width // s)) for s in (*STRIDES, 64)]
    pyramid = [
        torch.randn(batch, CHANNELS, *c).to(device, memory_format=torch.channels_last)
        for c in cells
    ]
    anchors = Anchors(sizes=(32, 64, 128, 256, 512), ratios=(0.5, 1.0, 2.0))(pyramid, size)
    return Scene(size, boxes, anchors, proposals, pyramid)


def heads(scene: Scene) -> tuple[Any, Any]:
    """Our box head and mask head of the paper's size."""
    torch.manual_seed(1)
    node = compose("train", ["model=mask_rcnn"]).model
    made = [
        build(node[name], channels=CHANNELS, num_classes=CLASSES)()
        for name in ("box_head", "mask_head")
    ]
    return tuple(
        head.to(device=scene.boxes.device, memory_format=torch.channels_last).eval()
        for head in made
    )


@contextmanager
def random_by(keys: Tensor, kind: Tensor) -> Any:
    """Torchvision's sampler permutes each image's objects, then its background: by falling `keys`
    instead.
    """
    orders = (
        own[of == value].argsort(descending=True)
        for own, of in zip(keys, kind, strict=True)
        for value in (1, 0)
    )
    with mock.patch("torch.randperm", side_effect=lambda *args, **options: next(orders)):
        yield


def torchvision_mask_head(head: Any) -> Any:
    """Torchvision's, with the weights of `head`; its channel 0 is the background's."""
    theirs = torch.nn.Sequential(
        MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1),
        MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES + 1),
    ).to(head.logits.weight.device)
    with torch.no_grad():
        for mine, other in zip(head.convs, (layer[0] for layer in theirs[0]), strict=True):
            other.weight.copy_(mine.weight), other.bias.copy_(mine.bias)
        theirs[1].conv5_mask.load_state_dict(head.deconv.state_dict())
        theirs[1].mask_fcn_logits.weight[1:] = head.logits.weight
        theirs[1].mask_fcn_logits.bias[1:] = head.logits.bias
    return theirs
