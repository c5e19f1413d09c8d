"""The weights of ViTDet's Mask R-CNN: names and shapes as Detectron2 publishes them
(projects/ViTDet/configs/COCO/mask_rcnn_vitdet_*_100ep.py).
"""

from typing import NamedTuple

Shapes = dict[str, tuple[int, ...]]


class Size(NamedTuple):
    """Of a ViT and of the parts behind it. grid: side of the map of its training; pretrained: that
    of its position embeddings, which have a class token, too.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: int = 64
    pretrained: int = 14
    window: int = 14
    channels: int = 256
    classes: int = 80
    hidden: int = 1024

    @property
    def everywhere(self) -> set[int]:
        """The blocks that attend over the whole map: the last of each quarter."""
        return {self.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)}


def vitdet_shapes(size: Size) -> Shapes:
    """Name -> shape of everything that the model learns."""
    width, channels = size.width, size.channels
    shapes: Shapes = {"backbone.net.pos_embed": (1, 1 + size.pretrained**2, width)}
    shapes |= _affine("backbone.net.patch_embed.proj", (width, 3, 16, 16))
    for block in range(size.depth):
        name = f"backbone.net.blocks.{block}"
        side = size.grid if block in size.everywhere else size.window
        for axis in "hw":
            shapes[f"{name}.attn.rel_pos_{axis}"] = (2 * side - 1, width // size.heads)
        shapes |= _affine(f"{name}.norm1", (width,)) | _affine(f"{name}.norm2", (width,))
        shapes |= _affine(f"{name}.attn.qkv", (3 * width, width))
        shapes |= _affine(f"{name}.attn.proj", (width, width))
        shapes |= _affine(f"{name}.mlp.fc1", (4 * width, width))
        shapes |= _affine(f"{name}.mlp.fc2", (width, 4 * width))
    half, quarter = width // 2, width // 4
    shapes |= _deconv("backbone.simfp_2.0", (width, half)) | _affine("backbone.simfp_2.1", (half,))
    shapes |= _deconv("backbone.simfp_2.3", (half, quarter))
    shapes |= _deconv("backbone.simfp_3.0", (width, half))
    for level, first, inputs in ((2, 4, quarter), (3, 1, half), (4, 0, width), (5, 1, width)):
        shapes |= _normed(f"backbone.simfp_{level}.{first}", (channels, inputs, 1, 1))
        shapes |= _normed(f"backbone.simfp_{level}.{first + 1}", (channels, channels, 3, 3))
    for layer in (0, 1):
        shapes |= _affine(
            f"proposal_generator.rpn_head.conv.conv{layer}", (channels, channels, 3, 3)
        )
    shapes |= _affine("proposal_generator.rpn_head.objectness_logits", (3, channels, 1, 1))
    shapes |= _affine("proposal_generator.rpn_head.anchor_deltas", (12, channels, 1, 1))
    for layer in (1, 2, 3, 4):
        shapes |= _normed(f"roi_heads.box_head.conv{layer}", (channels, channels, 3, 3))
        shapes |= _normed(f"roi_heads.mask_head.mask_fcn{layer}", (channels, channels, 3, 3))
    shapes |= _affine("roi_heads.box_head.fc1", (size.hidden, channels * 7 * 7))
    shapes |= _affine("roi_heads.box_predictor.cls_score", (size.classes + 1, size.hidden))
    shapes |= _affine("roi_heads.box_predictor.bbox_pred", (4 * size.classes, size.hidden))
    shapes |= _affine("roi_heads.mask_head.deconv", (channels, channels, 2, 2))
    shapes |= _affine("roi_heads.mask_head.predictor", (size.classes, channels, 1, 1))
    return shapes


def _affine(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _deconv(name: str, shape: tuple[int, int]) -> Shapes:
    return {f"{name}.weight": (*shape, 2, 2), f"{name}.bias": shape[1:]}


def _normed(name: str, shape: tuple[int, ...]) -> Shapes:
    norm = {f"{name}.norm.{part}": shape[:1] for part in ("weight", "bias")}
    return {f"{name}.weight": shape, **norm}
