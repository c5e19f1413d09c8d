"""A COCO results json: writing it, reading one from anywhere, and saying what is wrong with it."""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as rle_tools

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.files import atomic_write


def read_results(path: Path) -> list[dict[str, Any]]:
    """The entries of a COCO results json; UserError if it is none."""
    try:
        results = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no results file {path}; give a COCO results json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as json ({error}); give a COCO results json") from None
    if not isinstance(results, list):
        raise UserError(f"{path} holds no list; give a COCO results json: a list of detections")
    return results


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write a COCO results json, one entry a line; the file is complete or as it was before."""
    atomic_write(path, "[" + ",\n".join(json.dumps(entry) for entry in results) + "]\n")


def check_results(
    results: Sequence[Any], image_ids: Collection[Any], category_ids: Collection[Any], field: str
) -> None:
    """Raise UserError unless every entry has image_id, category_id, score and `field` ("bbox" or
    "segmentation"), and names an image and a category of the ground truth."""
    for number, entry in enumerate(results):
        missing = {"image_id", "category_id", "score", field} - set(entry if isinstance(entry, dict) else ())
        if missing:
            raise UserError(
                f"entry {number} of the results has no {', '.join(map(repr, sorted(missing)))}; "
                "every entry needs image_id, category_id, score, and bbox or segmentation"
            )
        if not _is_number(entry["score"]):
            raise UserError(f"entry {number} of the results has score {entry['score']!r}; give a finite number")
        if field == "bbox" and not _is_box(entry["bbox"]):
            raise UserError(f"entry {number} of the results has bbox {entry['bbox']!r}; give [x, y, width, height]")
    for what, key, known in (("image", "image_id", image_ids), ("category", "category_id", category_ids)):
        unknown = list(dict.fromkeys(entry[key] for entry in results if entry[key] not in known))
        if unknown:
            raise UserError(
                f"the results name {what} ids that the ground truth does not have: {_some(unknown)} "
                f"(it has {_some(known)}); give the data that the results were made on"
            )


def mask_rle(result: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """The mask of a results entry (RLE, compressed or not, or polygons) as compressed RLE of its image."""
    mask, size = result["segmentation"], [image["height"], image["width"]]
    if not isinstance(mask, list):
        if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
            raise UserError(f"a mask of image {result['image_id']} is {mask!r:.60}; give RLE: size and counts")
        if list(mask["size"]) != size:
            raise UserError(
                f"a mask of image {result['image_id']} is {list(mask['size'])} (height, width) and the image is "
                f"{size}; give masks in the pixels of the original image"
            )
    return compressed_rle(mask, image)


def compressed_rle(mask: Any, image: dict[str, Any]) -> dict[str, Any]:
    """Polygons, run lengths or compressed RLE as compressed RLE."""
    size = image["height"], image["width"]
    if isinstance(mask, list):
        return rle_tools.merge(rle_tools.frPyObjects(mask, *size))
    return rle_tools.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


def _some(ids: Iterable[Any]) -> str:
    listed = list(ids)
    return ", ".join(map(str, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
