"""LabelMe: one json for each image, beside it.

    root/a.jpg   root/a.json: imagePath, and shapes with label, points, shape_type

Each of them may also lie in root/train and root/val, and in folders below. Shapes with the same
label and group_id are parts of one object. A rectangle is a box without a mask.
"""

import base64
import binascii
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.annotations import NO_JSON
from maskrcnn_lit.data.coco.faults import BadEntryError, finite, shown
from maskrcnn_lit.data.coco.image_files import composed, spellings
from maskrcnn_lit.data.coco.rasterize import polygons_rle
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datasets.collector import (
    Collector,
    Shape,
    image_names,
    part_folder,
    part_folders,
    rle_of,
)
from maskrcnn_lit.errors import UserError

_CIRCLE = 64  # corners of a circle's polygon


@dataclass(frozen=True, kw_only=True)
class LabelMe:
    """Reads the jsons of LabelMe."""

    def parts(self, root: Path) -> Sequence[str]:
        return part_folders(root)

    def sources(self, root: Path) -> Sequence[Path]:
        return (root,)

    def read(self, root: Path, part: str) -> Part:
        folder = part_folder(root, part)
        files = sorted(folder.rglob("*.json"))
        if not files:
            raise UserError(f"{folder} has no json of LabelMe: check data.root")
        collector = Collector(folder)
        named: dict[str, str] = {}  # image -> its json
        for file in files:
            _read(collector, file, named)
        for name in sorted(set(image_names(folder)) - set(named)):
            collector.change(NO_JSON, name, "left out")
        return collector.part()


def _read(collector: Collector, file: Path, named: dict[str, str]) -> None:
    where = file.relative_to(collector.images).as_posix()
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        collector.fault("not a json of LabelMe", where, str(error))
        return
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        collector.fault("not a json of LabelMe", where, "it has no list `shapes`")
        return
    name = _image_of(file, content.get("imagePath"), collector.images)
    first = named.setdefault(name, where)
    if first != where:
        collector.fault("two files for one image", where, f"{name} has {first} too")
        return
    image = collector.image(name)
    if image is None:
        return
    given = content.get("imageHeight"), content.get("imageWidth")
    size = image["height"], image["width"]
    if None not in given and given != size:
        detail = f"{where} says {given[1]} x {given[0]}, the file is {size[1]} x {size[0]}"
        collector.fault("size differs", name, f"{detail}: its objects are left out")
        return
    for label, several in _objects(shapes).items():
        try:
            _add(collector, image, label[0], [shape for _, shape in several])
        except BadEntryError as bad:
            number = several[0][0]
            collector.fault(bad.args[0], where, f"shape {number}: {bad.args[1]}")


def _image_of(file: Path, path: Any, folder: Path) -> str:
    """The name of the image of a json, from `folder`: imagePath, or the json's own name."""
    plain = str(path).replace("\\", "/") if isinstance(path, str) and path else ""
    tried = [file.parent / plain, file.parent / plain.rsplit("/", 1)[-1]] if plain else []
    inside = [Path(os.path.normpath(other)) for one in tried for other in spellings(str(one))]
    for one in inside:
        if one.is_file() and one.is_relative_to(folder):
            return one.relative_to(folder).as_posix()
    stem = composed(file.stem)
    alike = [n for n in image_names(file.parent) if composed(os.path.splitext(n)[0]) == stem]
    name = alike[0] if alike else plain.rsplit("/", 1)[-1] or f"{file.stem}.jpg"
    return (file.parent / name).relative_to(folder).as_posix()


def _objects(shapes: Sequence[Any]) -> dict[tuple[str, str], list[tuple[int, Any]]]:
    """(label, group) -> numbered shapes of one object."""
    objects: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for number, shape in enumerate(shapes):
        entry = shape if isinstance(shape, dict) else {}
        group = entry.get("group_id")
        key = str(entry.get("label")), f"shape {number}" if group is None else f"group {group}"
        objects.setdefault(key, []).append((number, shape))
    return objects


def _add(collector: Collector, image: dict[str, Any], label: str, shapes: Sequence[Any]) -> None:
    """Add one object of one or more shapes."""
    if not all(isinstance(shape, dict) and shape.get("label") for shape in shapes):
        raise BadEntryError("no label", shown(shapes[0]))
    if len(shapes) == 1 and shapes[0].get("shape_type") == "rectangle":
        x, y = _points(shapes[0], 2).T
        box = [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
        collector.add_box(image, label, [float(side) for side in box])
        return
    size = image["height"], image["width"]
    outlines = [_outline(shape, size) for shape in shapes]
    polygons = [part for one in outlines if isinstance(one, list) for part in one]
    rles = [one for one in outlines if isinstance(one, dict)]
    if not rles:
        collector.add(image, label, polygons)
        return
    if polygons:
        rles.append(polygons_rle(polygons, *size))
    merged = coco_mask.merge(rles)
    collector.add(image, label, {**merged, "counts": merged["counts"].decode()})


def _outline(shape: dict[str, Any], size: tuple[int, int]) -> Shape:
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        return _mask(shape, size)
    if kind == "circle":
        (x, y), edge = _points(shape, 2)
        turn = 2 * math.pi * np.arange(_CIRCLE) / _CIRCLE
        radius = math.hypot(edge[0] - x, edge[1] - y)
        corners = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1)
        return [corners.ravel().tolist()]
    if kind == "rectangle":
        (x1, y1), (x2, y2) = _points(shape, 2).tolist()
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if kind != "polygon":
        raise BadEntryError("shape without an area", f"shape_type {shown(kind)}")
    return [_points(shape, 3).ravel().tolist()]


def _points(shape: dict[str, Any], least: int) -> np.ndarray:
    """P 2: the points of a shape."""
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < least:
        count = len(points) if isinstance(points, list) else 0
        kind = "polygon under 3 points" if least == 3 else "broken shape"
        raise BadEntryError(kind, f"{count} points")
    plain = [
        p for p in points if isinstance(p, list) and len(p) == 2 and None not in map(finite, p)
    ]
    if len(plain) < len(points):
        raise BadEntryError("broken shape", "a point is not two numbers")
    return np.array([[float(value) for value in point] for point in plain])


def _mask(shape: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of a shape of type mask: a png in text, placed at its first point."""
    x, y = np.rint(_points(shape, 2)[0]).astype(int).tolist()
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            own = np.asarray(image) != 0
    except (KeyError, TypeError, binascii.Error, OSError, ValueError) as error:
        raise BadEntryError("broken shape", f"its mask is not a png: {error!r}") from None
    mask = np.zeros(size, bool)
    if own.ndim != 2 or min(x, y) < 0 or y + own.shape[0] > size[0] or x + own.shape[1] > size[1]:
        raise BadEntryError("mask of another size", f"{own.shape} at {x}, {y} in {size}")
    mask[y : y + own.shape[0], x : x + own.shape[1]] = own
    if not mask.any():
        raise BadEntryError("broken shape", "its mask has no pixel")
    return rle_of(mask)
