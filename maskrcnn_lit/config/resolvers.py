"""Numbers that follow other options: the resolvers of conf/model/mask_rcnn.yaml and
conf/optimizer/adamw.yaml.

The published numbers are those of images with a short side of 800 pixels. On 128 x 128 they would
spend on regions many times what the backbone costs, and most of their anchors would be larger than
the image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.overrides import flat

PUBLISHED = 800  # pixels of the short side

STEP = 128  # numbers of regions are multiples of it

RULES = ("${regions:", "${pixels:", "${rate:", "${of_backbone:")

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # R G B, pixels in 0..1

TIMM = "maskrcnn_lit.model.timm_backbone.TimmBackbone"

SMALLEST = 1 / 4  # of the published anchors: 8 pixels at p2, whose cells have 4


def short_side(image_size: Any) -> int:
    """Of `data.image_size`: a number, the side of a square that an image fits into, or [short,
    long]. What is neither counts as published; the data module refuses it.
    """
    side = image_size[0] if isinstance(image_size, Sequence) and len(image_size) else image_size
    return side if isinstance(side, int) and side > 0 else PUBLISHED


def regions(published: int, image_size: Any) -> int:
    """So many proposals or samples of an image: in proportion to its short side, rounded up to a
    multiple of 128.
    """
    return min(published, STEP * math.ceil(published * short_side(image_size) / PUBLISHED / STEP))


def pixels(published: Sequence[int], image_size: Any) -> list[int]:
    """The sides of anchors: the published ones, their halves or quarters, whichever is next above
    the proportion of the images' sides. So images from 401 pixels on have the published anchors,
    and those up to 200 pixels the quarters.
    """
    share = 2.0 ** math.ceil(math.log2(short_side(image_size) / PUBLISHED))
    return [round(side * min(1.0, max(SMALLEST, share))) for side in published]


def pixel_statistics(backbone: Any) -> dict[str, list[float]]:
    """The mean and the standard deviation of the pixels, R G B, that a backbone is trained with:
    what timm says of its model, else ImageNet's.
    """
    if not isinstance(backbone, Mapping) or backbone.get("_target_") != TIMM:
        return IMAGENET
    try:
        from timm.models import get_pretrained_cfg
    except ImportError:  # the model's own message comes later
        return IMAGENET
    try:
        config = get_pretrained_cfg(str(backbone.get("name")), allow_unregistered=True)
    except RuntimeError:  # an unknown tag: likewise
        return IMAGENET
    if config is None:
        return IMAGENET
    return {"mean": list(config.mean), "std": list(config.std)}


def register() -> None:
    """Make known in yaml files: `${regions:512}` and `${pixels:[32]}`, the numbers at the config's
    `data.image_size`; `${rate:1e-4,1.5e-3}`, the first for trained weights, the second for random
    ones; `${of_backbone:mean}` and `${of_backbone:std}`, the statistics of its pixels.
    """
    for name, rule in (("regions", regions), ("pixels", pixels)):
        OmegaConf.register_new_resolver(name, partial(_at_size, rule), replace=True)
    OmegaConf.register_new_resolver("rate", _rate, replace=True)
    OmegaConf.register_new_resolver("of_backbone", _of_backbone, replace=True)


def plain(config: DictConfig) -> Any:
    """`config` as plain data: these numbers as they come out, every other reference as it is
    written.
    """
    for name, value in list(flat(OmegaConf.to_container(config))):
        if isinstance(value, str) and value.startswith(RULES):
            OmegaConf.update(config, name, OmegaConf.select(config, name))
    return OmegaConf.to_container(config)


def _at_size(rule: Callable[[Any, Any], Any], published: Any, *, _root_: DictConfig) -> Any:
    return rule(published, OmegaConf.select(_root_, "data.image_size"))


def _of_backbone(statistic: str, *, _root_: DictConfig) -> list[float]:
    return pixel_statistics(OmegaConf.select(_root_, "backbone"))[statistic]


def _rate(trained: float, random: float, *, _root_: DictConfig) -> float:
    weights = [OmegaConf.select(_root_, f"{part}.weights") for part in ("model", "model.backbone")]
    return random if all(name in (None, "none") for name in weights) else trained
