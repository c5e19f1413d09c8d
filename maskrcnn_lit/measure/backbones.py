"""Measures the costs of a backbone, for the table of `maskrcnn-lit backbones`."""

from typing import Any

import torch
from torchvision.models import get_model_weights

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.measure.cost import count_flops, count_parameters
from maskrcnn_lit.model.backbone import STRIDES, Backbone
from maskrcnn_lit.model.pretrained.packages import PACKAGES

SIDES = (7, 14)  # sides of two square images, in cells of 32 x 32 pixels


def cost(choice: str) -> dict[str, Any]:
    """The cost of backbone=`choice`, without its classifier.

    Returns:
        parameters: their number; channels: of c2..c5, or of the one map; weights: names of
        pretrained weights;
        cell_flops, fixed_flops: an image of n cells of 32 x 32 pixels needs n * cell_flops +
        fixed_flops (the second for squeeze-and-excitation, which does not grow with the image).

    Raises:
        UserError: a package that the backbone needs is not installed.
    """
    node = compose("train", [f"backbone={choice}"]).backbone
    try:
        with torch.device("meta"):  # shapes only, without memory or computation
            backbone = build(node)
    except NotImplementedError:  # RegNet computes its widths with tensors
        backbone = build(node).to("meta")
    backbone.eval()
    few, many = (_flops(backbone, STRIDES[-1] * side) for side in SIDES)
    cell_flops = (many - few) // (SIDES[1] ** 2 - SIDES[0] ** 2)
    return {
        "parameters": count_parameters(backbone)["parameters"],
        "cell_flops": cell_flops,
        "fixed_flops": few - cell_flops * SIDES[0] ** 2,
        "channels": list(backbone.channels),
        "weights": _weights(backbone),
    }


def _weights(backbone: Any) -> list[str]:
    if isinstance(backbone, Backbone):
        return [weights.name for weights in get_model_weights(backbone.name)]
    name = getattr(backbone, "name", None)
    if name in PACKAGES:
        return ["imagenet", "package"]
    return ["imagenet"] if _is_in_hub(name) else []


def _is_in_hub(name: str | None) -> bool:
    """Whether timm's hub has weights of its model `name`."""
    from timm.models import get_pretrained_cfg

    config = None if name is None else get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and bool(config.hf_hub_id)


def _flops(backbone: Any, size: int) -> int:
    return count_flops(backbone, torch.zeros(1, 3, size, size, device="meta"))
