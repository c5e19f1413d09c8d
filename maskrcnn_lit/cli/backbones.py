"""`maskrcnn-lit backbones`: what backbone=... can be, what each costs, and whether pretrained
weights exist.
"""

from typing import Any

import torch
from omegaconf import DictConfig
from torchvision.models import get_model_weights

from maskrcnn_lit.config.compose import build, compose, describe
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.measure.cost import count_flops, count_parameters
from maskrcnn_lit.model.backbone import STRIDES, Backbone


def run(config: DictConfig, overrides: list[str]) -> None:
    """Print a row for each yaml in conf/backbone; `config` is that of conf/backbones.yaml with
    `overrides`.
    """
    check_whole(STRIDES[-1], size=config.size)
    choices, _ = describe("train").groups["backbone"]
    print(
        f"{'backbone':<20}{'parameters':>12}{f'GFLOP at {config.size} px':>17}  {'c2, c3, c4, c5':<23}weights"
    )
    for choice in choices:
        try:
            row = cost(choice, config.size)
        except UserError as error:  # timm, where it is not installed
            print(f"{choice:<20}{error}")
            continue
        numbers = f"{row['parameters'] / 1e6:>10.1f} M{row['flops'] / 1e9:>17.2f}"
        print(f"{choice:<20}{numbers}  {', '.join(map(str, row['channels'])):<23}{row['weights']}")
    print("\nWeights are chosen with backbone.weights=...; imagenet is the first of those named.")
    print(
        "backbone=timm takes any timm model that gives feature maps: backbone=timm backbone.name=convnextv2_atto"
    )


def cost(choice: str, size: int) -> dict[str, Any]:
    """Of one backbone, without its classifier: parameters, FLOPs of a size x size image, channels,
    names of weights.
    """
    node = compose("train", [f"backbone={choice}"]).backbone
    try:
        with torch.device("meta"):  # shapes alone: no numbers are drawn, nothing is computed
            backbone = build(node)
    except NotImplementedError:  # RegNet reckons its widths with tensors
        backbone = build(node).to("meta")
    flops = count_flops(backbone.eval(), torch.zeros(1, 3, size, size, device="meta"))
    names = (
        [weights.name for weights in get_model_weights(backbone.name)]
        if isinstance(backbone, Backbone)
        else []
    )
    return {
        "parameters": count_parameters(backbone)["parameters"],
        "flops": flops,
        "channels": backbone.channels,
        "weights": ", ".join(names)
        or ("by name, from timm's hub" if not isinstance(backbone, Backbone) else "none"),
    }
