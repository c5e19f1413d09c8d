"""Reads, checks and writes COCO results jsons."""

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.arrays import Packed
from maskrcnn_lit.data.coco.categories import Category, some
from maskrcnn_lit.data.coco.faults import shown
from maskrcnn_lit.data.coco.rasterize import expand_counts, polygons_rle
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.json_lines import SUFFIX, read_json_lines
from maskrcnn_lit.storage.files import atomic_write

# Checks the masks of a COCO results json. pycocotools does not: damaged run lengths or polygons
# with huge coordinates make it hang or crash. Compressed counts of a thousand masks are decoded at
# once, since NumPy is slow for single masks.

_AT_ONCE = 1000  # masks

_FAR = 1e7  # maximum coordinate of a detection, in pixels


def check_masks(results: Sequence[dict[str, Any]], images: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raise UserError for the first "segmentation" that is neither RLE (compressed or not) of the
    size of its image, nor polygons.

    images: id -> height and width, for all images in the results.
    """
    numbers = iter(range(len(results)))
    while some := list(islice(numbers, _AT_ONCE)):
        entries = [results[n] for n in some]
        sizes = [
            (images[entry["image_id"]]["height"], images[entry["image_id"]]["width"])
            for entry in entries
        ]
        if _all_compressed([entry["segmentation"] for entry in entries], sizes):
            continue
        for n, entry, size in zip(some, entries, sizes, strict=True):
            if fault := _fault(entry["segmentation"], size):
                raise UserError(
                    f"entry {n} of the results, a mask of image {entry['image_id']}, {fault}: give "
                    "RLE (size and counts) of the full image, or polygons"
                )


def _fault(mask: Any, size: tuple[int, int]) -> str | None:
    """The fault of a mask, or None."""
    if isinstance(mask, list):
        return (
            None
            if mask and all(map(_is_polygon, mask))
            else f"is {shown(mask)}: not polygons [[x, y, x, y, ...], ...]"
        )
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        return f"is {shown(mask)}"
    counts, given = mask["counts"], mask["size"]
    if not isinstance(given, (list, tuple)) or tuple(given) != size:
        return f"has size {shown(given)} (height, width), but the image is {list(size)}"
    if isinstance(counts, (str, bytes)):
        try:
            runs = expand_counts(_bytes(counts)).tolist()
        except ValueError as error:
            return f"has counts {shown(counts)}: {error}"
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        return f"has counts {shown(counts)}: neither text nor a list of whole numbers"
    if min(runs, default=0) < 0:
        return f"has counts {shown(counts)} with a negative run"
    if sum(runs) != size[0] * size[1]:
        return (
            f"has counts {shown(counts)} of {sum(runs)} pixels, but the image has "
            f"{size[0] * size[1]}"
        )
    return None


def _is_polygon(points: Any) -> bool:
    """Whether `points` has three points or more."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(map(_is_near, points))
    )


def _all_compressed(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether all masks are valid compressed RLE; if not, each must be checked."""
    if not all(type(m) is dict and type(m.get("counts")) in (str, bytes) for m in masks):
        return False
    if not all(type(m.get("size")) in (list, tuple) for m in masks):
        return False
    if [tuple(m["size"]) for m in masks] != list(sizes):
        return False
    try:
        totals = _pixels([_bytes(m["counts"]) for m in masks])
    except UnicodeEncodeError:
        return False
    return totals is not None and bool((totals == np.array(sizes, dtype=np.int64).prod(1)).all())


def _bytes(counts: str | bytes) -> bytes:
    return counts if isinstance(counts, bytes) else counts.encode()


def _pixels(counts: Sequence[bytes]) -> NDArray[np.int64] | None:
    """The sum of the run lengths of each mask, see `expand_counts`; None if one is invalid."""
    ends = np.cumsum([len(text) for text in counts])
    begins = np.append(0, ends[:-1])
    digits = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(
        48
    )  # values below 0 wrap to more than 63
    if (begins == ends).any() or digits.max() > 63 or (digits[ends - 1] & 32).any():
        return None
    stops = np.flatnonzero((digits & 32) == 0)
    starts = np.append(0, stops[:-1] + 1)
    lengths = stops - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any image has pixels, and the sums below stay exact
        return None
    bits = digits & 31
    values = bits[starts].astype(np.int64)
    for digit in range(1, lengths.max()):
        longer = np.flatnonzero(lengths > digit)
        values[longer] += bits[starts[longer] + digit].astype(np.int64) << (5 * digit)
    values -= np.where(digits[stops] & 16, np.int64(1) << (5 * lengths), 0)

    firsts = np.searchsorted(starts, begins)  # the first number of each mask
    totals, lowest = values[firsts], values[firsts].min()
    values[firsts] = 0
    for parity in (0, 1):  # from the fourth on, numbers are differences to the one two before
        sums = np.cumsum(np.append(0, values[parity::2]))
        cuts = (firsts + 1 - parity) // 2 + 1  # begin of each mask in `sums`
        number, before = np.diff(np.append(cuts, len(sums))), sums[cuts - 1]
        sums = np.append(sums, sums[-1])  # a last mask of one number may have none here
        totals += np.where(number > 0, np.add.reduceat(sums, cuts) - number * before, 0)
        totals[-1] -= sums[-1] if number[-1] else 0
        lowest = min(lowest, (np.minimum.reduceat(sums, cuts) - before).min())
    return None if lowest < 0 else totals


def read_results(path: Path) -> list[dict[str, Any]]:
    """The entries of a COCO results json, or of the lines of a .jsonl (json_lines.py); UserError if
    the file is missing or invalid.
    """
    try:
        lines = path.suffix.lower() == SUFFIX
        results = read_json_lines(path) if lines else json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"the results file {path} does not exist: give a COCO results json"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): give a COCO results json"
        ) from None
    if not isinstance(results, list):
        raise UserError(
            f"{path} does not contain a list: give a COCO results json, a list of detections"
        )
    return results


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write a COCO results json atomically, one entry per line."""
    atomic_write(path, "[" + ",\n".join(json.dumps(entry) for entry in results) + "]\n")


def choose_results(results: Sequence[Any], packed: Packed) -> list[Any]:
    """The entries with the category ids of `data.classes`, without the classes that it leaves out.
    Invalid entries stay, for `check_results`.
    """
    ids = {category.name: category.id for category in packed.categories}
    chosen = {
        category.id: ids.get(category.chosen or "", category.id) for category in packed.originals
    }
    left_out = {category.id for category in packed.originals if category.chosen is None}
    selected = []
    for entry in results:
        number = entry.get("category_id") if isinstance(entry, dict) else None
        if type(number) in (int, float) and number in chosen:
            if number in left_out:
                continue
            entry = entry | {"category_id": chosen[int(number)]}
        selected.append(entry)
    return selected


def of_categories(
    results: Sequence[dict[str, Any]],
    categories: Sequence[Category],
    listed: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], str | None]:
    """The results of the categories in `listed` (as in a COCO json), and a sentence on the number
    of results in other `categories`, or "".
    """
    ids = {category["id"] for category in listed}
    names = {category.id: category.name for category in categories}
    others = [entry["category_id"] for entry in results if entry["category_id"] not in ids]
    if not others:
        return list(results), None
    left_out = some({names[number] for number in others})
    message = (
        f"left out {len(others)} of {len(results)} detections: the annotations do not have "
        f"their classes ({left_out})"
    )
    return [entry for entry in results if entry["category_id"] in ids], message


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
                f"entry {number} of the results has no {', '.join(map(repr, sorted(missing)))}: "
                "every entry needs image_id, category_id, score, and bbox or segmentation"
            )
    scores = [entry["score"] for entry in results]
    for number in _bad(scores, _is_near) if not _all_numbers(scores) else ():
        raise UserError(
            f"entry {number} of the results has score {shown(scores[number])}: give a finite number"
        )
    boxes = [entry["bbox"] for entry in results] if field == "bbox" else []
    for number in _bad(boxes, _is_box) if not _all_boxes(boxes) else ():
        raise UserError(
            f"entry {number} of the results has bbox {shown(boxes[number])}: give [x, y, width, "
            "height]"
        )
    for description, key, known in (
        ("image", "image_id", image_ids),
        ("category", "category_id", category_ids),
    ):
        for number in _bad([entry[key] for entry in results], _is_id):
            raise UserError(
                f"entry {number} of the results has {key} {shown(results[number][key])}: give a "
                "number"
            )
        unknown = list(dict.fromkeys(entry[key] for entry in results if entry[key] not in known))
        if unknown:
            raise UserError(
                f"the results have {description} ids that the ground truth does not have, "
                f"{_some(unknown)} (it has {_some(known)}): give the data that the results "
                "belong to"
            )


def mask_rle(result: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """The mask of a results entry (RLE, compressed or not, or polygons, checked by `check_masks`)
    as compressed RLE.
    """
    return compressed_rle(result["segmentation"], image)


def compressed_rle(mask: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """Convert polygons, run lengths or compressed RLE to compressed RLE."""
    size = image["height"], image["width"]
    if isinstance(mask, list):
        return polygons_rle(mask, *size)
    return rle_tools.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask


def _bad(values: Sequence[Any], is_good: Callable[[Any], bool]) -> Iterator[int]:
    return (number for number, value in enumerate(values) if not is_good(value))


def _all_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers within the limit; fast for hundreds of thousands."""
    if not set(map(type, values)) <= {int, float}:
        return False
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        return False
    return bool((np.abs(numbers) <= _FAR).all())  # False for NaN


def _all_boxes(boxes: Sequence[Any]) -> bool:
    shaped = set(map(type, boxes)) <= {list, tuple} and set(map(len, boxes)) <= {4}
    return shaped and _all_numbers(list(chain.from_iterable(boxes)))


def _is_near(value: Any) -> bool:
    """Whether `value` is a finite number, not a bool, within the limit for a score or
    coordinate.
    """
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and -_FAR <= value <= _FAR


def _is_id(value: Any) -> bool:
    return isinstance(value, Hashable) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_near, value))


def _some(ids: Iterable[Any]) -> str:
    listed = list(ids)
    return ", ".join(shown(one) for one in listed[:5]) + (
        f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    )
