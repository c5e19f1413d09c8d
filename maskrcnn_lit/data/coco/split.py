"""Divides the images of one COCO instances dict into training and validation.

By image, seeded, and stratified by class (Sechidis et al. 2011): both parts get their share of the
images with each class, the rarest class first. Groups of images, such as those of one patient, stay
together.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError


class Split(NamedTuple):
    """share: of the images that become validation, between 0 and 1. group_by: a key of the image
    entries; images of equal value stay together. None: each image is its own group.
    """

    share: float
    group_by: str | None = None
    seed: int = 0


def split_content(content: Mapping[str, Any], split: Split, where: str) -> dict[str, Any]:
    """{"train": dict, "val": dict}, with all other keys in both. An annotation of no image, which
    is a fault, goes to "train".

    Raises:
        UserError: there are fewer than two groups, or an image has no key `group_by`.
    """
    images, annotations = list(content["images"]), list(content["annotations"])
    groups = _groups(images, split.group_by, where)
    names = sorted(set(groups))
    if len(names) < 2:
        kind = "image" if split.group_by is None else f"group of data.group_by={split.group_by}"
        raise UserError(
            f"{where} has {len(names)} {kind}, which cannot be divided into training and "
            "validation: give data with two or more"
        )
    classes = _classes_by_image(annotations)
    counts = {name: Counter[str]() for name in names}
    for image, name in zip(images, groups, strict=True):
        counts[name].update(["", *classes.get(_key(image), ())])  # "": every image
    chosen = set(choose_groups(counts, split.share, split.seed))
    inside = [name in chosen for name in groups]
    keys = {_key(image) for image, val in zip(images, inside, strict=True) if val}
    parts = {}
    for part, wanted in (("train", False), ("val", True)):
        own = [image for image, val in zip(images, inside, strict=True) if val == wanted]
        of_own = [entry for entry in annotations if (_image_key(entry) in keys) == wanted]
        parts[part] = {**content, "images": own, "annotations": of_own}
    return parts


def choose_groups(counts: Mapping[str, Mapping[str, int]], share: float, seed: int) -> list[str]:
    """The groups that become validation.

    Args:
        counts: group -> class -> number of its images with the class; the class "" is every image.
        share: of validation.
        seed: of the order among equals.
    """
    names = sorted(counts)
    classes = sorted({kind for group in counts.values() for kind in group})
    table = np.array([[counts[name].get(kind, 0) for kind in classes] for name in names], float)
    order = np.random.default_rng(seed).permutation(len(names))
    table = table[order]
    val = _assign(table, share, classes.index(""))
    return sorted(names[i] for i in order[val].tolist())


def _assign(table: NDArray[np.float64], share: float, images: int) -> NDArray[np.bool_]:
    """G: whether each group, a row of `table` (G K), becomes validation."""
    total = table.sum(0)
    wanted = np.stack([total * (1 - share), total * share])  # 2 K: what each part still needs
    left, remaining = np.ones(len(table), bool), total.copy()
    val = np.zeros(len(table), bool)
    while left.any():
        rare = remaining.copy()
        rare[rare <= 0] = np.inf
        rare[images] = np.inf  # last: images without any class
        kind = int(rare.argmin()) if np.isfinite(rare).any() else images
        for row in np.flatnonzero(left & (table[:, kind] > 0)).tolist():
            need = wanted[:, kind], wanted[:, images]
            first = 0 if need[0][0] != need[0][1] else 1
            part = int(need[first][1] > need[first][0])
            val[row], left[row] = bool(part), False
            wanted[part] -= table[row]
            remaining -= table[row]
    if val.all() or not val.any():  # each part needs one group, the smallest
        smallest = int(table[:, images].argmin())
        val[smallest] = not val[smallest]
    return val


def _groups(images: list[Any], group_by: str | None, where: str) -> list[str]:
    if group_by is None:
        return [f"{position:012}" for position in range(len(images))]
    lost = [image for image in images if not isinstance(image, dict) or group_by not in image]
    if lost:
        known = {key for image in images if isinstance(image, dict) for key in image}
        raise UserError(
            f"{len(lost)} of {len(images)} images of {where} have no field '{group_by}': choose "
            f"data.group_by from {', '.join(sorted(map(str, known)))}"
        )
    return [str(image[group_by]) for image in images]


def _classes_by_image(annotations: list[Any]) -> dict[str, set[str]]:
    classes: dict[str, set[str]] = {}
    for entry in annotations:
        if isinstance(entry, dict):
            kind = f"class {entry.get('category_id')}"
            classes.setdefault(_image_key(entry), set()).add(kind)
    return classes


def _key(image: Any) -> str:
    return str(image.get("id")) if isinstance(image, dict) else ""


def _image_key(entry: Any) -> str:
    return str(entry.get("image_id")) if isinstance(entry, dict) else ""
