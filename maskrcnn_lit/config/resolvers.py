"""Resolvers for defaults that depend on other options (conf/model/mask_rcnn.yaml,
conf/optimizer/adamw.yaml, conf/data).

The published numbers are for images with a short side of 800 pixels. On 128 x 128 pixels the
regions would cost many times more than the backbone, and most anchors would be larger than the
image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.overrides import flat

PUBLISHED = 800  # pixels of the short side

STEP = 128  # region counts are multiples of it

RESOLVERS = (
    "${regions:",
    "${pixels:",
    "${rate:",
    "${compiled:",
    "${filled:",
    "${of_backbone:",
    "${shapes_folder:",
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # R G B, pixels in 0..1

TIMM = "maskrcnn_lit.model.timm_backbone.TimmBackbone"

SMALLEST = 1 / 4  # factor of the published anchors: 8 pixels at p2, which has stride 4


def short_side(image_size: Any) -> int:
    """The short side of `data.image_size`: a number (side of the enclosing square) or [short,
    long]. Any other value returns the published side; the data module rejects it.
    """
    side = image_size[0] if isinstance(image_size, Sequence) and len(image_size) else image_size
    return side if isinstance(side, int) and side > 0 else PUBLISHED


def regions(published: int, image_size: Any) -> int:
    """A count of proposals or samples per image, scaled by its short side and rounded up to a
    multiple of 128.
    """
    return min(published, STEP * math.ceil(published * short_side(image_size) / PUBLISHED / STEP))


def pixels(published: Sequence[int], image_size: Any) -> list[int]:
    """Anchor sizes: the published ones, a half or a quarter of them, rounding up the ratio of the
    image sides. Images of 401 pixels or more get the published sizes, up to 200 pixels a quarter.
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
    """Register the resolvers: `${regions:512}` and `${pixels:[32]}` scale with `data.image_size`;
    `${rate:1e-4,1.5e-3}` is the first for pretrained weights, the second for random ones;
    `${compiled:1,3}` is the first where trainer.compile is not off; `${filled:1}` is auto with
    data.batch_size=auto, else 1; `${of_backbone:mean}` and
    `${of_backbone:std}` are the statistics of the pixels that the backbone was trained with;
    `${shapes_folder:DIR}` is DIR, or another folder for each `data.overlap`.
    """
    for name, rule in (("regions", regions), ("pixels", pixels)):
        OmegaConf.register_new_resolver(name, partial(_at_size, rule), replace=True)
    OmegaConf.register_new_resolver("rate", _rate, replace=True)
    OmegaConf.register_new_resolver("compiled", _compiled, replace=True)
    OmegaConf.register_new_resolver("filled", _filled, replace=True)
    OmegaConf.register_new_resolver("of_backbone", _of_backbone, replace=True)
    OmegaConf.register_new_resolver("shapes_folder", _shapes_folder, replace=True)


def plain(config: DictConfig) -> Any:
    """`config` as plain data, with these resolvers applied and all other references unresolved."""
    for name, value in list(flat(OmegaConf.to_container(config))):
        if isinstance(value, str) and value.startswith(RESOLVERS):
            OmegaConf.update(config, name, OmegaConf.select(config, name))
    return OmegaConf.to_container(config)


def _at_size(rule: Callable[[Any, Any], Any], published: Any, *, _root_: DictConfig) -> Any:
    return rule(published, OmegaConf.select(_root_, "data.image_size"))


def _of_backbone(statistic: str, *, _root_: DictConfig) -> list[float]:
    return pixel_statistics(OmegaConf.select(_root_, "backbone"))[statistic]


def _rate(trained: float, random: float, *, _root_: DictConfig) -> float:
    weights = [OmegaConf.select(_root_, f"{part}.weights") for part in ("model", "model.backbone")]
    return random if all(name in (None, "none") for name in weights) else trained


def _compiled(few: int, many: int, *, _root_: DictConfig) -> int:
    return many if OmegaConf.select(_root_, "trainer.compile") in (None, "off") else few


def _filled(number: int, *, _root_: DictConfig) -> int | str:
    return "auto" if OmegaConf.select(_root_, "data.batch_size") == "auto" else number


def _shapes_folder(folder: str, *, _root_: DictConfig) -> str:
    overlap = OmegaConf.select(_root_, "data.overlap")
    return folder if overlap is None else f"{folder}_overlap_{overlap}"
