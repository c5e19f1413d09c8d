"""YOLO texts: one text for each image, one object a line, and a yaml with the names.

    root/data.yaml                 names, and train and val: folders, lists of files, or several
    root/images/train/a.jpg        root/labels/train/a.txt
    a.txt: CLASS X1 Y1 X2 Y2 ...   a polygon, or CLASS X Y WIDTH HEIGHT, a box by its center; from 0
                                   to 1

A text cannot hold a hole or an object of two parts. An image without a text, or with an empty one,
has no objects.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from maskrcnn_lit.data.coco.annotations import NO_OBJECTS
from maskrcnn_lit.data.coco.faults import BadEntryError, shown
from maskrcnn_lit.data.coco.image_files import spellings
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datasets.collector import PARTS, Collector, by_stem, image_names
from maskrcnn_lit.errors import UserError

DIGITS = 6  # decimals of a pixel: division and multiplication by the size leave no trace

_SLACK = 0.01  # by which a coordinate may exceed 0..1, because of rounding


class _Set(NamedTuple):
    """The content of the yaml: its folder, the classes, and what train and val are."""

    base: Path
    names: list[str]
    parts: dict[str, list[Path]]


@dataclass(frozen=True, kw_only=True)
class YoloSeg:
    """Reads YOLO texts.

    Args:
        yaml: the yaml, relative to the root; None: the only one there.
    """

    yaml: str | None = None

    def parts(self, root: Path) -> Sequence[str]:
        return list(_open(root, self.yaml).parts)

    def sources(self, root: Path) -> Sequence[Path]:
        listed = [path for paths in _open(root, self.yaml).parts.values() for path in paths]
        inside = root.resolve()
        return [root, *(path for path in listed if not path.resolve().is_relative_to(inside))]

    def read(self, root: Path, part: str) -> Part:
        content = _open(root, self.yaml)
        listed = {name: _files(paths) for name, paths in content.parts.items()}
        files = sorted(
            {file for name, own in listed.items() if part in (name, "all") for file in own}
        )
        if not files:
            raise UserError(f"the images of '{part}' in {root} are none: check its yaml")
        inside = all(file.is_relative_to(content.base) for file in files)
        images = content.base if inside else Path(os.path.commonpath([f.parent for f in files]))
        collector = Collector(images, content.names)
        for name in by_stem([f.relative_to(images).as_posix() for f in files], collector).values():
            _add(collector, name, content.names)
        _without_image(collector, content.parts, listed)
        return collector.part()


def _add(collector: Collector, name: str, names: Sequence[str]) -> None:
    text = label_file(collector.images / name)
    where = os.path.relpath(text, collector.images)
    try:
        lines = text.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        collector.change(NO_OBJECTS, name, f"there is no {where}")
        lines = []
    except (OSError, UnicodeDecodeError) as error:
        collector.fault("text cannot be read", where, str(error))
        return
    else:
        if not "".join(lines).strip():
            collector.change(NO_OBJECTS, name, f"{where} is empty")
    image = collector.image(name)
    if image is None:
        return
    size = (image["width"], image["height"])
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            kind, numbers = _numbers(line, names)
            if len(numbers) == 4:
                collector.add_box(image, kind, _box(numbers, size))
            else:
                collector.add(image, kind, [_polygon(numbers, size)])
        except BadEntryError as bad:
            collector.fault(bad.args[0], where, f"line {number}: {bad.args[1]}")


def _numbers(line: str, names: Sequence[str]) -> tuple[str, list[float]]:
    """The class of a line, and its coordinates."""
    first, *words = line.split()
    try:
        numbers = [float(word) for word in words]
        number = float(first)
    except ValueError:
        raise BadEntryError("broken line", f"{shown(line)} is not a list of numbers") from None
    if not number.is_integer() or not 0 <= number < len(names):
        raise BadEntryError(
            "unknown class", f"class {first}, but the yaml has names 0 to {len(names) - 1}"
        )
    if len(numbers) % 2 or len(numbers) < 4:
        points = "a polygon has 3 points or more, and a box has 4 numbers"
        kind = "polygon under 3 points" if len(numbers) == 2 else "broken line"
        raise BadEntryError(kind, f"{len(numbers)} numbers after the class: {points}")
    outside = [v for v in numbers if not (math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK)]
    if outside:
        raise BadEntryError(
            "coordinates outside of 0 to 1",
            f"{outside[0]:g}: divide x by the image's width and y by its height",
        )
    return names[int(number)], numbers


def _box(numbers: Sequence[float], size: tuple[int, int]) -> list[float]:
    """x y w h in pixels."""
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        raise BadEntryError("box without area", f"width {width:g}, height {height:g}")
    box = [(x - width / 2) * size[0], (y - height / 2) * size[1], width * size[0], height * size[1]]
    return [round(side, DIGITS) for side in box]


def _polygon(numbers: Sequence[float], size: tuple[int, int]) -> list[float]:
    return [round(value * size[n % 2], DIGITS) for n, value in enumerate(numbers)]


def label_file(image: Path) -> Path:
    """The text of an image: in labels/ instead of its last images/, or beside it."""
    parts = list(image.parts)
    places = [n for n, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    text = Path(*parts).with_suffix(".txt")
    named = (text.with_name(name) for name in spellings(text.name))
    return next((file for file in named if file.is_file()), text)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The images of a part: those in folders, and those that a list names."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [path / name for name in image_names(path)]
            continue
        names = path.read_text(encoding="utf-8").split("\n")
        files += [
            Path(os.path.normpath(path.parent / name.strip())) for name in names if name.strip()
        ]
    return files


def _without_image(
    collector: Collector, parts: dict[str, list[Path]], listed: dict[str, list[Path]]
) -> None:
    """Texts in the folders of the parts that belong to no image."""
    texts = {label_file(file) for files in listed.values() for file in files}
    folders = {
        label_file(path / "a").parent for own in parts.values() for path in own if path.is_dir()
    }
    for folder in sorted(folders):
        for text in sorted(folder.rglob("*.txt")):
            if text not in texts and text.name != "classes.txt":
                where = os.path.relpath(text, collector.images)
                collector.fault("text without an image", where, "no image has its name")


def _open(root: Path, name: str | None) -> _Set:
    """The yaml of `root`.

    Raises:
        UserError: it is missing, has no names, or names files that are missing.
    """
    file = root if root.is_file() else _yaml_of(root, name)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as yaml ({line}): give another file") from None
    if not isinstance(content, dict) or not content.get("names"):
        raise UserError(f"{file} has no names: list the classes in it, names: [cat, dog]")
    base = _base(file, content.get("path"))
    parts = {part: _paths(file, base, part, content.get(part)) for part in PARTS}
    return _Set(base, _names(file, content["names"]), {k: v for k, v in parts.items() if v})


def _yaml_of(root: Path, name: str | None) -> Path:
    if name is not None:
        return root / name
    files = sorted(path for path in root.iterdir() if path.suffix in (".yaml", ".yml"))
    if len(files) != 1:
        some = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"{root} must have one yaml with names, and has {some}: give data.reader.yaml=FILE"
        )
    return files[0]


def _names(file: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        try:
            names = [names[number] for number in range(len(names))]
        except KeyError as error:
            raise UserError(
                f"{file} has no name of class {error}: number the names from 0, without gaps"
            ) from None
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        raise UserError(f"{file} must have a list of different names: names: [cat, dog]")
    return [str(name) for name in names]


def _base(file: Path, path: Any) -> Path:
    """The folder that train and val start from: `path` where it exists, else that of the yaml."""
    folder = file.parent.absolute()
    given = Path(os.path.normpath(folder / str(path))) if path else folder
    return given if given.is_dir() else folder


def _paths(file: Path, base: Path, part: str, value: Any) -> list[Path]:
    """The folders and lists of a part. Some tools write ../train/images for train/images."""
    paths = []
    for entry in value if isinstance(value, list) else [value] if value else []:
        plain = str(entry).replace("\\", "/")
        tried = [base / plain, base / plain.removeprefix("../")]
        path = next((path for path in tried if path.exists()), None)
        if path is None:
            raise UserError(
                f"{file} names {part}: {entry}, which does not exist in {base}: correct it there"
            )
        paths.append(Path(os.path.normpath(path)))
    return paths
