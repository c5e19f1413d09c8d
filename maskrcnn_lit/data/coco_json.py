"""A COCO instances json, read once and checked entry by entry, as flat columns.

One policy for every fault: the entry is noted as a `Fault` and left out; whether faults stop the program or are only
told is for `index.read_index` to decide. What makes the file useless (no such file, not a COCO json) is a UserError.
"""

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.categories import Category
from maskrcnn_lit.data.rasterise import expand_counts
from maskrcnn_lit.errors import UserError


class Fault(NamedTuple):
    kind: str  # "missing file", "box without area", ...
    image: str  # file name, or what is known of it
    annotation: int | None  # its id; None if the image itself is at fault
    what: str


class ImageEntry(NamedTuple):
    id: int
    height: int
    width: int
    name: str


class _BadEntryError(Exception):
    """kind, what"""


class Columns:
    """The sound annotations in the order of the file, one growing C array a column (no Python object each)."""

    def __init__(self) -> None:
        self.images, self.ids, self.labels, self.crowd = array("q"), array("q"), array("q"), array("b")
        self.areas, self.boxes = array("d"), array("d")  # boxes: x y w h
        self.part_ends, self.coordinate_ends, self.coordinates = array("q"), array("q"), array("d")
        self.run_ends, self.runs = array("q"), array("I")


def load_json(path: Path) -> dict[str, Any]:
    """The parsed file. UserError: no such file, no JSON, or one of the three lists is missing."""
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise UserError(f"there is no annotation file {path}: check the path in data.*.annotations") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): expected a COCO instances json") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a COCO instances json, which is an object with the keys "
            "images, annotations and categories (a list is what results look like)"
        )
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"{path} is not a COCO instances json: it has no list under {' and '.join(map(repr, missing))}; "
            f"its keys are {', '.join(map(repr, content)) or 'none'}"
        )
    return content


def read_categories(entries: list[Any], path: Path) -> tuple[Category, ...]:
    """The categories by name. UserError: none, one without id or name, or an id or a name twice."""
    try:
        categories = sorted((Category(_whole(e, "id"), str(e["name"])) for e in entries), key=lambda c: c.name)
    except (KeyError, TypeError, AttributeError, _BadEntryError):
        raise UserError(f"a category of {path} lacks a whole number as id, or a name: give each both") from None
    if not categories:
        raise UserError(f"{path} has no categories: name at least one under 'categories'")
    for what, values in (("name", [c.name for c in categories]), ("id", [str(c.id) for c in categories])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise UserError(f"two categories of {path} have the same {what} {', '.join(twice)}: make them differ")
    return tuple(categories)


def read_images(entries: list[Any], faults: list[Fault]) -> list[ImageEntry]:
    """The image entries that are whole and of a new id, in the order of the file."""
    images: dict[int, ImageEntry] = {}
    for entry in entries:
        name = str(entry.get("file_name")) if isinstance(entry, dict) else str(entry)[:40]
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
                raise _BadEntryError("incomplete image entry", "no file_name")
            image = ImageEntry(_whole(entry, "id"), _whole(entry, "height"), _whole(entry, "width"), name)
            if min(image.height, image.width) < 1:
                raise _BadEntryError("incomplete image entry", f"size {image.width} x {image.height}")
            if image.id in images:
                raise _BadEntryError("duplicate image id", f"id {image.id} is that of {images[image.id].name} too")
            images[image.id] = image
        except _BadEntryError as bad:
            faults.append(Fault(bad.args[0], name, None, bad.args[1]))
    return list(images.values())


def read_annotations(
    entries: list[Any], images: list[ImageEntry], categories: tuple[Category, ...], faults: list[Fault]
) -> Columns:
    """The sound annotations. Of two with one id the first is kept."""
    columns, seen = Columns(), set[int]()
    positions = {image.id: position for position, image in enumerate(images)}
    labels = {category.id: label for label, category in enumerate(categories, 1)}
    for entry in entries:
        number, name = None, "?"
        try:
            if not isinstance(entry, dict):
                raise _BadEntryError("incomplete annotation", str(entry)[:40])
            number = _whole(entry, "id")
            image_id = _whole(entry, "image_id")
            if image_id not in positions:
                name = f"image id {image_id}"
                raise _BadEntryError("unknown image", "no such id in images")
            image = images[positions[image_id]]
            name = image.name
            if number in seen:
                raise _BadEntryError("duplicate annotation id", "an earlier annotation has it")
            seen.add(number)
            label = labels.get(_whole(entry, "category_id"))
            if label is None:
                raise _BadEntryError("unknown category", f"category_id {entry['category_id']} is not in categories")
            box = _box(entry, image)
            outline = _outline(entry.get("segmentation"), image)
            _append(columns, entry, outline, box, (positions[image_id], number, label), image)
        except _BadEntryError as bad:
            faults.append(Fault(bad.args[0], name, number, bad.args[1]))
    return columns


def _append(
    columns: Columns,
    entry: dict[str, Any],
    outline: list[array] | NDArray[np.uint32],
    box: list[float],
    keys: tuple[int, int, int],
    image: ImageEntry,
) -> None:
    area = entry.get("area")
    area = float(area) if isinstance(area, (int, float)) and math.isfinite(area) else _area(outline, image)
    for column, value in zip((columns.images, columns.ids, columns.labels), keys, strict=True):
        column.append(value)
    columns.crowd.append(bool(entry.get("iscrowd", 0)))
    columns.areas.append(area)
    columns.boxes.extend(box)
    if isinstance(outline, list):
        for part in outline:
            columns.coordinates.extend(part)
            columns.coordinate_ends.append(len(columns.coordinates))
    else:
        columns.runs.frombytes(outline.tobytes())
    columns.part_ends.append(len(columns.coordinate_ends))
    columns.run_ends.append(len(columns.runs))


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        kind = "incomplete image entry" if "file_name" in entry else "incomplete annotation"
        raise _BadEntryError(kind, f"{key} is {value!r}, not a whole number")
    return value


def _box(entry: dict[str, Any], image: ImageEntry) -> list[float]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        raise _BadEntryError("incomplete annotation", f"bbox is {box!r}, not [x, y, w, h]")
    x, y, width, height = map(float, box)
    if not all(map(math.isfinite, (x, y, width, height))):
        raise _BadEntryError("box not finite", f"bbox {box}")
    if width < 0 or height < 0:
        raise _BadEntryError("negative box", f"bbox {box}")
    if width == 0 or height == 0:
        raise _BadEntryError("box without area", f"bbox {box}")
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        raise _BadEntryError("box outside of the image", f"bbox {box} in {image.width} x {image.height}")
    return [x, y, width, height]


def _outline(value: Any, image: ImageEntry) -> list[array] | NDArray[np.uint32]:
    """Polygons as arrays x0 y0 x1 y1 ..., or the run lengths of an RLE."""
    if isinstance(value, dict):
        return _runs(value, image)
    if not isinstance(value, list) or not value:
        raise _BadEntryError("no segmentation", "neither polygons nor an RLE: masks cannot be learnt from a box alone")
    try:
        parts = [array("d", part) for part in value]
    except TypeError:
        raise _BadEntryError("broken segmentation", "a polygon is not a list of numbers") from None
    for part in parts:
        if len(part) < 6:
            raise _BadEntryError("polygon under 3 points", f"{len(part)} numbers")
        if len(part) % 2 or not all(map(math.isfinite, part)):
            raise _BadEntryError("broken segmentation", "a polygon has a coordinate that is missing or not finite")
    return parts


def _runs(rle: dict[str, Any], image: ImageEntry) -> NDArray[np.uint32]:
    if rle.get("size") != [image.height, image.width]:
        raise _BadEntryError(
            "RLE of another size", f"size {rle.get('size')}, the image has {[image.height, image.width]}"
        )
    counts = rle.get("counts")
    try:
        runs = expand_counts(counts.encode()) if isinstance(counts, str) else np.asarray(counts)
        if runs.dtype.kind not in "iu":
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise _BadEntryError("broken segmentation", "the RLE's counts are damaged") from None
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != image.height * image.width:
        raise _BadEntryError("broken segmentation", "the RLE's counts do not add up to the image's pixels")
    return runs.astype(np.uint32)


def _area(outline: list[array] | NDArray[np.uint32], image: ImageEntry) -> float:
    if not isinstance(outline, list):
        return float(outline[1::2].sum())
    parts = coco_mask.frPyObjects([list(part) for part in outline], image.height, image.width)
    return float(coco_mask.area(coco_mask.merge(parts)))


def describe(faults: Sequence[Fault], names: int = 3) -> Iterator[str]:
    """One line for each kind of fault: how many, and the first few by file and annotation id."""
    for kind in dict.fromkeys(fault.kind for fault in faults):
        same = [fault for fault in faults if fault.kind == kind]
        told = [
            f"{fault.image}: {fault.what}"
            if fault.annotation is None
            else f"annotation {fault.annotation} of {fault.image}: {fault.what}"
            for fault in same[:names]
        ]
        yield f"{len(same)} x {kind} ({'; '.join(told)}{'; ...' if len(same) > names else ''})"
