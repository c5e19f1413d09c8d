"""Published weights by name: URL, hash and classes."""

import re
from typing import NamedTuple

from torchvision.models import get_model_weights
from torchvision.models.detection import (
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)

from maskrcnn_lit.data.coco.categories import UNUSED, Category
from maskrcnn_lit.errors import UserError


class Published(NamedTuple):
    """A file of weights on the web."""

    url: str
    digest: str  # the first digits of its SHA-256
    algorithm: str = "sha256"


def _of_torchvision(url: str) -> Published:
    match = re.search(r"-([0-9a-f]{8,})\.", url)
    if match is None:
        raise UserError(
            f"{url} has no hash in its name: download the file yourself and give its path"
        )
    return Published(url, match[1])


def _of_detectron2(path: str, digest: str) -> Published:
    root = "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation"
    return Published(f"{root}/{path}/model_final_{digest}.pkl", digest, "md5")


def _of_vitdet(path: str, digest: str) -> Published:
    root = "https://dl.fbaipublicfiles.com/detectron2/ViTDet/COCO"
    return Published(f"{root}/{path}/model_final_{digest}.pkl", digest, "md5")


# Their published COCO box and mask AP: docs/guide/weights.md.
PUBLISHED = {
    "torchvision_v1": _of_torchvision(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url),
    "torchvision_v2": _of_torchvision(MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url),
    "detectron2_r50_1x": _of_detectron2("mask_rcnn_R_50_FPN_1x/137260431", "a54504"),
    "detectron2_r50_3x": _of_detectron2("mask_rcnn_R_50_FPN_3x/137849600", "f10217"),
    "detectron2_r101_3x": _of_detectron2("mask_rcnn_R_101_FPN_3x/138205316", "a3ec72"),
    "vitdet_b": _of_vitdet("mask_rcnn_vitdet_b/f325346929", "61ccd1"),
    "vitdet_l": _of_vitdet("mask_rcnn_vitdet_l/f325599698", "6146ed"),
    "vitdet_h": _of_vitdet("mask_rcnn_vitdet_h/f329145471", "7224f1"),
}

# torchvision uses an epsilon of 0 in the batch norms of only this file: it was trained so.
WITHOUT_EPSILON = PUBLISHED["torchvision_v1"].digest


def coco_categories(rows: int) -> tuple[Category, ...]:
    """The classes of a model with `rows` rows: COCO's 80 by id, or the 90 ids of torchvision's
    models (with gaps); for other numbers "class 1" and so on.
    """
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    all_ids = tuple(
        Category(i, f"{UNUSED} {i}" if n == UNUSED else n) for i, n in enumerate(names) if i > 0
    )
    used = tuple(category for category in all_ids if not category.name.startswith(UNUSED))
    unnamed = tuple(Category(i, f"class {i}") for i in range(1, rows + 1))
    return {len(all_ids): all_ids, len(used): used}.get(rows, unnamed)


class PublishedBackbone(NamedTuple):
    """The weights of a classifier, and the mean and standard deviation of R G B in its training."""

    file: Published
    mean: list[float]
    std: list[float]


def published_backbone(name: str, weights_name: str) -> PublishedBackbone:
    """The published weights of a torchvision classifier: "imagenet" for those of the published
    detectors (IMAGENET1K_V1 if there are several), or a name of torchvision.

    Raises:
        UserError: the classifier has no weights, or none of that name.
    """
    known = {member.name: member for member in get_model_weights(name)}
    if not known:
        raise UserError(
            f"torchvision has no weights for {name}: use backbone.weights=none or a file"
        )
    chosen = known.get(weights_name) or (
        next(iter(known.values())) if weights_name == "imagenet" else None
    )
    if chosen is None:
        raise UserError(
            f"backbone.weights={weights_name} is neither a file nor one of imagenet, none, "
            f"{', '.join(known)}"
        )
    pixels = chosen.transforms()
    return PublishedBackbone(_of_torchvision(chosen.url), pixels.mean, pixels.std)
