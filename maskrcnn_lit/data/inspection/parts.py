"""Train and val as the data commands take them: either may be left out, and then is the other."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError

PARTS = ("train", "val")


def fill_parts(data: MutableMapping[str, Any]) -> list[str]:
    """Give a part of `data` (as in conf/data) of which nothing is said what the other has.

    Returns: the parts that are files of their own: both, or one where the other was left out or has
        the same json.

    Raises:
        UserError: neither part is given.
    """
    given = [part for part in PARTS if any(data[part][key] for key in ("images", "annotations"))]
    if not given:
        raise UserError(
            "the data has neither train nor val: give data.train.images=DIR data.train.annotations=FILE, the same with "
            "data.val, or both"
        )
    if len(given) == 1:
        (other,) = set(PARTS) - set(given)
        data[other] = data[given[0]]
    elif part_paths(data, "train") == part_paths(data, "val"):
        return ["train"]
    return given


def same_images(data: MutableMapping[str, Any]) -> bool:
    """Whether training and validation are given as the same json and images, unchosen by id: then
    every score would be of images that were trained on.
    """
    given = all(data[part][key] for part in PARTS for key in ("images", "annotations"))
    chosen = data.get("image_ids") is not None
    return given and not chosen and part_paths(data, "train") == part_paths(data, "val")


def part_paths(data: MutableMapping[str, Any], part: str) -> tuple[Path, Path]:
    """The json and the folder of the images, from `root` on; UserError: one of them is not given."""
    for key in ("annotations", "images"):
        if not data[part][key]:
            raise UserError(
                f"data.{part}.{key} is missing: give both data.{part}.annotations and data.{part}.images"
            )
    root = Path(data["root"] or ".")
    return root / data[part]["annotations"], root / data[part]["images"]
