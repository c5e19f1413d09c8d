"""A COCO results json: writing it, reading one from anywhere, and saying what is wrong with it."""

import json
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
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
    needed = {"image_id", "category_id", "score", field}
    for number, entry in enumerate(results):
        if not isinstance(entry, dict) or not needed <= entry.keys():
            missing = needed - set(entry if isinstance(entry, dict) else ())
            raise UserError(
                f"entry {number} of the results has no {', '.join(map(repr, sorted(missing)))}; "
                "every entry needs image_id, category_id, score, and bbox or segmentation"
            )
    scores = [entry["score"] for entry in results]
    for number in _bad(scores, _is_number) if not _all_numbers(scores) else ():
        raise UserError(f"entry {number} of the results has score {scores[number]!r}; give a finite number")
    boxes = [entry["bbox"] for entry in results] if field == "bbox" else []
    for number in _bad(boxes, _is_box) if not _all_boxes(boxes) else ():
        raise UserError(f"entry {number} of the results has bbox {boxes[number]!r}; give [x, y, width, height]")
    for what, key, known in (("image", "image_id", image_ids), ("category", "category_id", category_ids)):
        for number in _bad([entry[key] for entry in results], _is_id):
            raise UserError(f"entry {number} of the results has {key} {results[number][key]!r}; give a number")
        unknown = list(dict.fromkeys(entry[key] for entry in results if entry[key] not in known))
        if unknown:
            raise UserError(
                f"the results name {what} ids that the ground truth does not have: {_some(unknown)} "
                f"(it has {_some(known)}); give the data that the results were made on"
            )


def mask_rle(result: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """The mask of a results entry (RLE, compressed or not, or polygons; `check_masks` passed it) as compressed RLE."""
    return compressed_rle(result["segmentation"], image)


def compressed_rle(mask: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """Polygons, run lengths or compressed RLE as compressed RLE."""
    size = image["height"], image["width"]
    if isinstance(mask, list):
        parts = rle_tools.frPyObjects(mask, *size)
        return parts[0] if len(parts) == 1 else rle_tools.merge(parts)
    return rle_tools.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask


def _bad(values: Sequence[Any], is_good: Callable[[Any], bool]) -> Iterator[int]:
    return (number for number, value in enumerate(values) if not is_good(value))


def _all_numbers(values: Sequence[Any]) -> bool:
    """Whether they are plain finite numbers; in milliseconds for hundreds of thousands."""
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))


def _all_boxes(boxes: Sequence[Any]) -> bool:
    shaped = set(map(type, boxes)) <= {list, tuple} and set(map(len, boxes)) <= {4}
    return shaped and _all_numbers(list(chain.from_iterable(boxes)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, Hashable)


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


def _some(ids: Iterable[Any]) -> str:
    listed = list(ids)
    return ", ".join(map(str, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
