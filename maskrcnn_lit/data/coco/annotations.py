"""The annotations of a COCO json, checked one by one, as flat columns."""

import math
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import BadEntryError, Fault, whole
from maskrcnn_lit.data.coco.rasterize import expand_counts


class ImageEntry(NamedTuple):
    id: int
    height: int
    width: int
    name: str
    url: str = ""  # its coco_url


class Columns:
    """The sound annotations in the order of the file, one growing C array a column (no Python
    object each).
    """

    def __init__(self) -> None:
        self.images, self.ids, self.labels, self.crowd = (
            array("q"),
            array("q"),
            array("q"),
            array("b"),
        )
        self.areas, self.boxes = array("d"), array("d")  # boxes: x y w h
        self.part_ends, self.coordinate_ends, self.coordinates = array("q"), array("q"), array("d")
        self.run_ends, self.runs = array("q"), array("I")


def read_annotations(
    entries: Iterable[Any], images: list[ImageEntry], faults: list[Fault]
) -> Columns:
    """The sound annotations, with category ids for labels. Of two with one id the first is kept."""
    columns, seen = Columns(), set[int]()
    positions = {image.id: position for position, image in enumerate(images)}
    for entry in entries:
        number, name = None, "?"
        try:
            if not isinstance(entry, dict):
                raise BadEntryError("incomplete annotation", str(entry)[:40])
            number = whole(entry, "id")
            image_id = whole(entry, "image_id")
            if image_id not in positions:
                name = f"image id {image_id}"
                raise BadEntryError("unknown image", "no such id in images")
            position = positions[image_id]
            image = images[position]
            name = image.name
            if number in seen:
                raise BadEntryError("duplicate annotation id", "an earlier annotation has it")
            seen.add(number)
            keys = (position, number, whole(entry, "category_id"))
            box = _box(entry, image)
            outline = _outline(entry.get("segmentation"), image)
            _append(columns, entry, outline, box, keys, image)
        except BadEntryError as bad:
            faults.append(Fault(bad.args[0], name, number, bad.args[1]))
    return columns


def label_annotations(
    columns: Columns,
    categories: tuple[Category, ...],
    images: list[ImageEntry],
    faults: list[Fault],
) -> None:
    """Labels 1..K for category ids, in place; 0 for a category that there is not, which is a fault."""
    labels = {category.id: label for label, category in enumerate(categories, 1)}
    for n, category_id in enumerate(columns.labels):
        columns.labels[n] = label = labels.get(category_id, 0)
        if not label:
            name, what = (
                images[columns.images[n]].name,
                f"category_id {category_id} is not in categories",
            )
            faults.append(Fault("unknown category", name, columns.ids[n], what))


def _append(
    columns: Columns,
    entry: dict[str, Any],
    outline: list[array] | NDArray[np.uint32],
    box: list[float],
    keys: tuple[int, int, int],
    image: ImageEntry,
) -> None:
    area = entry.get("area")
    area = (
        float(area)
        if isinstance(area, (int, float)) and math.isfinite(area)
        else _area(outline, image)
    )
    columns.images.append(keys[0])
    columns.ids.append(keys[1])
    columns.labels.append(keys[2])
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


def _box(entry: dict[str, Any], image: ImageEntry) -> list[float]:
    box = entry.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(value, (int, float)) for value in box)
    ):
        raise BadEntryError("incomplete annotation", f"bbox is {box!r}, not [x, y, w, h]")
    x, y, width, height = map(float, box)
    if not all(map(math.isfinite, (x, y, width, height))):
        raise BadEntryError("box not finite", f"bbox {box}")
    if width < 0 or height < 0:
        raise BadEntryError("negative box", f"bbox {box}")
    if width == 0 or height == 0:
        raise BadEntryError("box without area", f"bbox {box}")
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        raise BadEntryError(
            "box outside of the image", f"bbox {box} in {image.width} x {image.height}"
        )
    return [x, y, width, height]


def _outline(value: Any, image: ImageEntry) -> list[array] | NDArray[np.uint32]:
    """Polygons as arrays x0 y0 x1 y1 ..., or the run lengths of an RLE."""
    if isinstance(value, dict):
        return _runs(value, image)
    if not isinstance(value, list) or not value:
        raise BadEntryError(
            "no segmentation",
            "neither polygons nor an RLE: masks cannot be learnt from a box alone",
        )
    try:
        parts = [array("d", part) for part in value]
    except TypeError:
        raise BadEntryError("broken segmentation", "a polygon is not a list of numbers") from None
    for part in parts:
        if len(part) < 6:
            raise BadEntryError("polygon under 3 points", f"{len(part)} numbers")
        if len(part) % 2 or not all(map(math.isfinite, part)):
            raise BadEntryError(
                "broken segmentation", "a polygon has a coordinate that is missing or not finite"
            )
    return parts


def _runs(rle: dict[str, Any], image: ImageEntry) -> NDArray[np.uint32]:
    if rle.get("size") != [image.height, image.width]:
        raise BadEntryError(
            "RLE of another size",
            f"size {rle.get('size')}, the image has {[image.height, image.width]}",
        )
    counts = rle.get("counts")
    try:
        runs = expand_counts(counts.encode()) if isinstance(counts, str) else np.asarray(counts)
        if runs.dtype.kind not in "iu":
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadEntryError("broken segmentation", "the RLE's counts are damaged") from None
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != image.height * image.width:
        raise BadEntryError(
            "broken segmentation", "the RLE's counts do not add up to the image's pixels"
        )
    return runs.astype(np.uint32)


def _area(outline: list[array] | NDArray[np.uint32], image: ImageEntry) -> float:
    if not isinstance(outline, list):
        return float(outline[1::2].sum())
    parts = coco_mask.frPyObjects([list(part) for part in outline], image.height, image.width)
    return float(coco_mask.area(coco_mask.merge(parts)))
