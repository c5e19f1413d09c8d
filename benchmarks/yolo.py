"""A one-stage segmenter of the package ultralytics, for scale."""

from typing import Any

import torch


def yolo11n_seg() -> Any:
    """YOLO11n-seg with random weights, of which every mask has pixels: Ultralytics drops empty
    ones, and a benchmark wants every slot filled.
    """
    from ultralytics import YOLO  # type: ignore[import-not-found]

    made = YOLO("yolo11n-seg.yaml", task="segment", verbose=False)
    head = made.model.model[-1]
    with torch.no_grad():
        head.proto.cv3.bn.bias.fill_(1.0)
        for coefficients in head.cv4:
            coefficients[-1].weight.zero_()
            coefficients[-1].bias.fill_(1.0)
    return made
