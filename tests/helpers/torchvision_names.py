"""Weights of torchvision's Mask R-CNN under the names that its files have."""

import re

from torch import Tensor


def as_first_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From today's state dict of `maskrcnn_resnet50_fpn` to
    maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth: the names of torchvision before 0.13, without the
    counters that frozen norms lack.
    """
    renamed = {}
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name)
            name = re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
            renamed[
                re.sub(
                    r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name
                )
            ] = value
    return renamed
