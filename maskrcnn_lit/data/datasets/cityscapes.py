"""Cityscapes as downloaded: instances of the eight classes of things.

    root/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    root/gtFine/SPLIT/CITY/NAME_gtFine_instanceIds.png    16 bits; or, without it,
    root/gtFine/SPLIT/CITY/NAME_gtFine_polygons.json      drawn in order, as the official scripts do

A pixel of object n of a class with id L has the value 1000 L + n; one of a group of such objects,
or of what has no instances, L. Groups are crowd regions. Masks do not overlap: what is in front
hides what is behind.

Pixels of labels that the official AP ignores (unlabeled, ego vehicle, parking, ...) are void. Its
scripts read them; trainings that are published and their COCO AP do not (`data.ignore_void=false`).
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from maskrcnn_lit.data.coco.faults import shown
from maskrcnn_lit.data.coco.image_files import image_size
from maskrcnn_lit.data.coco.reading import ALL, Part
from maskrcnn_lit.data.datasets.collector import PARTS, Collector, masks_of, rle_of
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sources import Folder

# The label ids of www.cityscapes-dataset.com: objects that are scored,
THINGS = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}

# objects that are not,
UNSCORED_THINGS = {"caravan": 29, "trailer": 30}

# regions that the official AP ignores (so are UNSCORED_THINGS that are groups),
IGNORED = {
    "unlabeled": 0,
    "ego vehicle": 1,
    "rectification border": 2,
    "out of roi": 3,
    "static": 4,
    "dynamic": 5,
    "ground": 6,
    "parking": 9,
    "rail track": 10,
    "guard rail": 14,
    "bridge": 15,
    "tunnel": 16,
    "polegroup": 18,
}

# and background.
STUFF = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "license plate": -1,  # not drawn
}

LABELS = THINGS | UNSCORED_THINGS | IGNORED | STUFF

INSTANCES = 1000  # ids of objects are label ids times this, plus their number

VOID_IDS = (*IGNORED.values(), *UNSCORED_THINGS.values())

IMAGE, IDS, POLYGONS = "_leftImg8bit.png", "_gtFine_instanceIds.png", "_gtFine_polygons.json"

GROUP = "group"  # the end of the label of a group, as in cargroup


@dataclass(frozen=True, kw_only=True)
class Cityscapes:
    """Reads a folder with leftImg8bit/ and gtFine/.

    Args:
        train, val: the splits that are trained and scored on, of those that the folder has: train,
            val, test (whose public annotations have no objects), or several.
    """

    train: str | tuple[str, ...] = "train"
    val: str | tuple[str, ...] = "val"

    def __post_init__(self) -> None:
        for part in PARTS:
            value = getattr(self, part)
            object.__setattr__(self, part, (value,) if isinstance(value, str) else tuple(value))

    def parts(self, root: Path) -> Sequence[str]:
        present = [
            part
            for part in PARTS
            if any((root / "leftImg8bit" / split).is_dir() for split in getattr(self, part))
        ]
        if not present:
            raise UserError(
                f"{root} has no leftImg8bit/train and leftImg8bit/val: give the folder with "
                "leftImg8bit/ and gtFine/, both unpacked, with data.root=DIR"
            )
        return present

    def sources(self, root: Path) -> Sequence[Path]:
        return [path for path in (root / "leftImg8bit", root / "gtFine") if path.is_dir()]

    def read(self, root: Path, part: str) -> Part:
        parts = self.parts(root) if part == ALL else [part]
        splits = [split for one in parts for split in getattr(self, one)]
        names = [name for split in dict.fromkeys(splits) for name in _image_names(root, split)]
        collector = Collector(root, tuple(THINGS))
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda name: _tried(root, name), names)
            for name, ids in zip(names, read, strict=True):
                if isinstance(ids, UnusableError):
                    collector.fault(*ids.args)
                else:
                    self._add(collector, name, ids)
        return collector.part()

    def _add(self, collector: Collector, name: str, ids: NDArray[np.int64]) -> None:
        size = image_size(Folder(collector.images), name)
        if size is not None and size != ids.shape:
            (height, width), (own_height, own_width) = ids.shape, size
            detail = f"{width} x {height}, but {name} is {own_width} x {own_height}"
            collector.fault("mask of another size", truth_name(name, IDS), detail)
            return
        values = np.unique(ids)
        of = np.where(values >= INSTANCES, values // INSTANCES, values)
        unknown = values[~np.isin(of, list(LABELS.values()))]
        if len(unknown):
            detail = f"the value {unknown[0]} is of no label of Cityscapes"
            collector.fault("unknown label", truth_name(name, IDS), detail)
            return
        void = np.isin(ids, VOID_IDS)
        image = collector.image(name, **({"ignore": rle_of(void)} if void.any() else {}))
        if image is None:
            return
        classes = {number: label for label, number in THINGS.items()}
        things = np.where(np.isin(ids, values[np.isin(of, list(THINGS.values()))]), ids, 0)
        for value, mask in masks_of(things):
            if value >= INSTANCES:
                collector.add(image, classes[value // INSTANCES], mask)
            else:
                collector.add(image, classes[value], mask, iscrowd=1)


def truth_name(name: str, kind: str) -> str:
    """The file of gtFine that belongs to an image; kind: IDS or POLYGONS."""
    _, split, city, file = name.split("/")
    return f"gtFine/{split}/{city}/{file.removesuffix(IMAGE)}{kind}"


def draw_ids(content: dict[str, Any]) -> NDArray[np.int64]:
    """H W: the instance ids of the polygons of one image.

    Raises:
        ValueError: an unknown label, or a broken polygon.
    """
    try:
        height, width, objects = content["imgHeight"], content["imgWidth"], content["objects"]
        picture = Image.new("I", (width, height), IGNORED["unlabeled"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no imgHeight, imgWidth and objects ({error!r})") from None
    drawer, numbers = ImageDraw.Draw(picture), Counter[str]()
    for n, entry in enumerate(objects):
        if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
            raise ValueError(f"objects[{n}] is {shown(entry)}, without a label")
        if entry.get("deleted"):
            continue
        label = entry["label"]
        group = label not in LABELS and label.endswith(GROUP)
        label = label.removesuffix(GROUP) if group else label
        if label not in LABELS:
            raise ValueError(f"objects[{n}] has the label {label!r}, which Cityscapes has not")
        value = LABELS[label]
        if label in THINGS | UNSCORED_THINGS and not group:
            value = value * INSTANCES + numbers[label]
            numbers[label] += 1
        if value >= 0:
            drawer.polygon(_points(entry.get("polygon"), n), fill=value)
    return np.asarray(picture).astype(np.int64)


def _points(polygon: Any, n: int) -> list[tuple[float, float]]:
    try:
        points = [(x, y) for x, y in polygon]
        if len(points) < 2 or not np.isfinite(np.array(points, np.float64)).all():
            raise ValueError
        return points
    except (TypeError, ValueError):
        raise ValueError(
            f"objects[{n}] has the polygon {shown(polygon)}: a list of at least two [x, y] is "
            "expected"
        ) from None


class UnusableError(Exception):
    """kind, file, detail: why an image cannot be used."""


def _tried(root: Path, name: str) -> NDArray[np.int64] | UnusableError:
    try:
        return _read_ids(root, name)
    except UnusableError as error:
        return error


def _read_ids(root: Path, name: str) -> NDArray[np.int64]:
    picture, polygons = truth_name(name, IDS), truth_name(name, POLYGONS)
    if (root / picture).is_file():
        try:
            with Image.open(root / picture) as image:
                ids = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            text = "unknown format" if "cannot identify" in str(error) else str(error)
            raise UnusableError("mask cannot be used", picture, text) from None
        if ids.ndim != 2:
            raise UnusableError("mask cannot be used", picture, "it has colors: ids are expected")
        return ids.astype(np.int64)
    try:
        return draw_ids(json.loads((root / polygons).read_bytes()))
    except FileNotFoundError:
        detail = f"neither this file nor {polygons} exists"
        raise UnusableError("missing mask", picture, detail) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableError("broken polygons", polygons, str(error)) from None


def _image_names(root: Path, split: str) -> Iterator[str]:
    folder = root / "leftImg8bit" / split
    for path in sorted(folder.glob(f"*/*{IMAGE}")):
        yield path.relative_to(root).as_posix()
