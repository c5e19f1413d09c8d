"""Train and val of the data commands: a missing part is filled from the other."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError

PARTS = ("train", "val")


def fill_parts(data: MutableMapping[str, Any]) -> list[str]:
    """Fill a missing part of `data` (as in conf/data) from the other.

    Returns: the parts with distinct files: both, or one if the other is missing or has the same
    json; none if the data are not one json for each part, see `CocoDataModule.parts`.

    Raises:
        UserError: neither part is given.
    """
    if data.get("reader") is not None or data.get("annotations") is not None:
        return []
    given = [part for part in PARTS if any(data[part][key] for key in ("images", "annotations"))]
    if not given:
        raise UserError(
            "the data have neither train nor val: give data.train.images=DIR "
            "data.train.annotations=FILE, the same with "
            "data.val, or both"
        )
    if len(given) == 1:
        (other,) = set(PARTS) - set(given)
        data[other] = data[given[0]]
    elif part_paths(data, "train") == part_paths(data, "val"):
        return ["train"]
    return given


def same_images(data: MutableMapping[str, Any]) -> bool:
    """Whether training and validation use the same json and images, without a selection by id: then
    all scores would be on training images.
    """
    given = all(data[part][key] for part in PARTS for key in ("images", "annotations"))
    chosen = data.get("image_ids") is not None
    return given and not chosen and part_paths(data, "train") == part_paths(data, "val")


def part_paths(data: MutableMapping[str, Any], part: str) -> tuple[Path, Path]:
    """The paths of the json and the image folder, relative to `root`; UserError: one is missing."""
    for key in ("annotations", "images"):
        if not data[part][key]:
            raise UserError(
                f"data.{part}.{key} is missing: give both data.{part}.annotations and "
                f"data.{part}.images"
            )
    root = Path(data["root"] or ".")
    return root / data[part]["annotations"], root / data[part]["images"]
