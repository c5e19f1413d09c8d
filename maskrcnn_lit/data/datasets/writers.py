"""Writes annotations in other forms, and measures what is lost.

    coco          PART/*.jpg          annotations/instances_PART.json
    yolo_seg      images/PART/*.jpg   labels/PART/*.txt   data.yaml
    mask_folder   PART/images/*.jpg   PART/masks/IMAGE/CLASS/0001.png

Without parts (PART is ""): images/, and instances.json or masks/. All of it is read back by
data=coco_json, yolo_seg, mask_folder. COCO jsons and masks lose no pixel of an object. A line of
YOLO cannot hold a hole, which is filled; parts are joined by a line of no width.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.rasterize import clip_polygon, polygons_rle
from maskrcnn_lit.data.datasets.shape_annotation import outlines, signed_area
from maskrcnn_lit.errors import UserError

Points = np.ndarray  # P 2 float64: x, y


class Loss(NamedTuple):
    """An object, or the void region of an image, that the new form does not hold fully."""

    image: str
    annotation: int | None  # its id; None: the void region
    iou: float  # of the masks before and after; 0: it is left out
    why: str


class Written(NamedTuple):
    """images, objects: how many; losses: the objects and void regions that are not the same
    afterwards.
    """

    images: int
    objects: int
    losses: list[Loss]


def new_names(index: AnnotationIndex) -> list[str]:
    """A file name for each image: its own without folders where these are unique, else with the
    folders as part of it. No two have the same name but for the suffix.
    """
    names = [name.replace("\\", "/") for name in index.file_names]
    short = [os.path.basename(name) for name in names]
    if len({_stem(name) for name in short}) == len(short):
        return short
    taken: set[str] = set()
    unique = []
    for name in (name.replace("/", "_") for name in names):
        stem, suffix = os.path.splitext(name)
        number, own = 1, stem
        while own.casefold() in taken:
            number, own = number + 1, f"{stem}_{number + 1}"
        taken.add(own.casefold())
        unique.append(own + suffix)
    return unique


def write_coco(index: AnnotationIndex, folder: Path, part: str, copy: bool) -> Written:
    """A COCO json, and the images if `copy`."""
    truth = index.coco_ground_truth()
    names = new_names(index) if copy else list(index.file_names)
    for entry, name in zip(truth["images"], names, strict=True):
        entry["file_name"] = name
    file = folder / "annotations" / f"instances_{part}.json" if part else folder / "instances.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(truth, separators=(",", ":")) + "\n", encoding="utf-8")
    if copy:
        _copy(index, folder / (part or "images"), names)
    return Written(len(index), len(truth["annotations"]), [])


def write_yolo(index: AnnotationIndex, folder: Path, part: str, copy: bool) -> Written:
    """Texts with a line for each object, data.yaml, and the images if `copy`."""
    names = new_names(index)
    labels = folder / "labels" / part
    labels.mkdir(parents=True, exist_ok=True)
    losses: list[Loss] = []
    objects = 0
    for i, name in enumerate(names):
        lines = []
        for j, label, crowd in _objects(index, i):
            objects += 1
            line, iou, why = (None, 0.0, "a crowd region") if crowd else _line(index, i, j)
            if line is not None:
                lines.append(f"{label - 1} {line}\n")
            if iou < 1:
                losses.append(_loss(index, i, j, iou, why))
        losses += _void_losses(index, i)
        (labels / f"{_stem(name)}.txt").write_text("".join(lines), encoding="utf-8")
    if copy:
        _copy(index, folder / "images" / part, names)
    _write_yaml(index, folder, part)
    return Written(len(index), objects, losses)


def write_mask_folder(index: AnnotationIndex, folder: Path, part: str, copy: bool) -> Written:
    """A folder of masks for each image, with a folder for each class, and the images if `copy`."""
    names = new_names(index)
    classes = [category.name.replace("/", "_") for category in index.categories]
    if len(set(classes)) < len(classes):
        raise UserError(
            "two classes have the same name but for a slash, and folders have none: rename one "
            "with data.classes={OLD: NEW}"
        )
    losses: list[Loss] = []
    objects = 0
    for i, name in enumerate(names):
        own = folder / part / "masks" / _stem(name)
        own.mkdir(parents=True, exist_ok=True)
        for j, label, crowd in _objects(index, i):
            objects += 1
            mask = coco_mask.decode(index.rle(i, j)).astype(bool)
            if crowd or not mask.any():
                why = "a crowd region" if crowd else "it has no mask with a pixel"
                losses.append(_loss(index, i, j, 0, why))
                continue
            (own / classes[label - 1]).mkdir(exist_ok=True)
            Image.fromarray(mask).save(own / classes[label - 1] / f"{j + 1:05}.png")
        losses += _void_losses(index, i)
    if copy:
        _copy(index, folder / part / "images", names)
    return Written(len(index), objects, losses)


WRITERS: dict[str, Callable[[AnnotationIndex, Path, str, bool], Written]] = {
    "coco": write_coco,
    "yolo_seg": write_yolo,
    "mask_folder": write_mask_folder,
}


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _objects(index: AnnotationIndex, i: int) -> Iterator[tuple[int, int, bool]]:
    """Position, label and crowd of the objects of image i, in the order of the json."""
    annotations, begin = index.annotations(i), index.span(i)[0]
    order = index.packed.arrays.order[begin : begin + len(annotations["labels"])]
    for j in np.argsort(order, kind="stable").tolist():
        yield j, int(annotations["labels"][j]), bool(annotations["crowd"][j])


def _loss(index: AnnotationIndex, i: int, j: int, iou: float, why: str) -> Loss:
    number = int(index.annotations(i)["ids"][j])
    return Loss(index.file_name(i), number, round(float(iou), 4), why)


def _void_losses(index: AnnotationIndex, i: int) -> list[Loss]:
    """The void region of image i, if it has one; with data.ignore_void=false it is background."""
    has_void = index.ignore_void and len(index.void(i)) > 0
    return [Loss(index.file_name(i), None, 0.0, "a void region")] if has_void else []


def _copy(index: AnnotationIndex, folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).write_bytes(index.read(i))


def _write_yaml(index: AnnotationIndex, folder: Path, part: str) -> None:
    file = folder / "data.yaml"
    before = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content: dict[str, Any] = {"path": ".", **before}
    content[part or "train"] = f"images/{part}" if part else "images"
    content["names"] = {n: category.name for n, category in enumerate(index.categories)}
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _line(index: AnnotationIndex, i: int, j: int) -> tuple[str | None, float, str]:
    """The numbers of a line for one object, the IoU of its mask with the original, and why that is
    below 1.
    """
    height, width = index.size(i)
    if len(index.outline(i, j)) == 0:  # only its box is known
        x1, y1, x2, y2 = index.annotations(i)["boxes"][j]
        center = np.array([[(x1 + x2) / 2, (y1 + y2) / 2], [x2 - x1, y2 - y1]])
        return _text(center, width, height), 1.0, ""
    original = index.rle(i, j)
    if not coco_mask.area(original):
        return None, 0.0, "it has no mask with a pixel"
    x, y, w, h = coco_mask.toBbox(original).astype(int).tolist()
    mask = coco_mask.decode(original)[y : y + h, x : x + w].astype(bool)
    loops = outlines(mask)
    corner = np.array([x, y], np.float64)
    around = [corner + loop for loop in loops if signed_area(loop) > 0]
    tries = [around]
    outline = index.outline(i, j)
    if not isinstance(outline, np.ndarray):
        inside = [clip_polygon(part, (0, 0), (width, height)) for part in outline]
        own = [part.reshape(-1, 2) for part in inside if len(part) >= 6]
        tries = [own, around] if own else tries
    best: tuple[str | None, float] = (None, -1.0)
    for parts in tries:
        text = _text(joined(parts), width, height)
        again = polygons_rle([_read(text, width, height)], height, width)
        iou = float(coco_mask.iou([again], [original], [0])[0, 0])
        if iou > best[1]:
            best = text, iou
        if iou == 1:
            return text, 1.0, ""
    holes = len(loops) > len(around)
    return *best, "its holes are filled" if holes else "its parts cannot be joined without a trace"


def joined(parts: Sequence[Points]) -> Points:
    """One polygon around all parts, joined by lines that go there and back between their nearest
    points.
    """
    whole = parts[0]
    for part in parts[1:]:
        distances = ((whole[:, None] - part[None]) ** 2).sum(-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(part, -int(there), axis=0)
        whole = np.concatenate(
            [whole[: here + 1], turned, turned[:1], whole[here : here + 1], whole[here + 1 :]]
        )
    return whole


def _text(points: Points, width: int, height: int) -> str:
    shares = (points / [width, height]).clip(0, 1).ravel().tolist()
    return " ".join(f"{share:.10f}".rstrip("0").rstrip(".") for share in shares)


def _read(text: str, width: int, height: int) -> list[float]:
    """The coordinates as the reader of YOLO texts reads them."""
    numbers = map(float, text.split())
    return [round(value * (height if n % 2 else width), 6) for n, value in enumerate(numbers)]
