"""Pascal VOC xml: one xml for each image, with boxes.

    root/Annotations/a.xml   root/JPEGImages/a.jpg   root/ImageSets/Main/train.txt, val.txt
    root/train/a.xml         root/train/a.jpg        likewise root/val; or both in root

Boxes are those of the VOC: from 1, both ends inclusive. `difficult` objects count as crowd regions.
Polygons, as Roboflow writes them, are masks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from maskrcnn_lit.data.coco.annotations import NO_JSON
from maskrcnn_lit.data.coco.faults import BadEntryError, finite, shown
from maskrcnn_lit.data.coco.image_files import composed
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datasets.collector import (
    PARTS,
    Collector,
    image_names,
    part_folder,
    part_folders,
)
from maskrcnn_lit.errors import UserError

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class VocXml:
    """Reads xml files.

    Args:
        lists: the folder of train.txt and val.txt, where the parts are lists.
        first_pixel: the coordinate of the first pixel: 1 as in the VOC, or 0.
    """

    lists: str = "ImageSets/Main"
    first_pixel: int = 1

    def parts(self, root: Path) -> Sequence[str]:
        listed = [part for part in PARTS if (root / self.lists / f"{part}.txt").is_file()]
        return listed or part_folders(root)

    def sources(self, root: Path) -> Sequence[Path]:
        return (root,)

    def read(self, root: Path, part: str) -> Part:
        listing = root / self.lists / f"{part}.txt"
        folder = root if listing.is_file() else part_folder(root, part)
        below = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
        files = sorted(below.rglob("*.xml"))
        collector = Collector(folder)
        if listing.is_file():
            words = [line.split() for line in listing.read_text(encoding="utf-8").splitlines()]
            stems = [line[0] for line in words if line]
            listed = set(map(composed, stems))
            files = [file for file in files if composed(file.stem) in listed]
            for stem in sorted(listed - {composed(file.stem) for file in files}):
                collector.fault("no xml", stem, f"{listing.name} names it, {below.name} has none")
        if not files:
            raise UserError(f"{below} has no xml of '{part}': check data.root")
        names = image_names(folder)
        places = {composed(os.path.basename(name)): name for name in reversed(names)}
        used: dict[str, str] = {}
        for file in files:
            self._read(collector, file, places, used)
        if not listing.is_file():
            for name in sorted(set(names) - set(used)):
                if "Segmentation" not in name:  # masks of the VOC
                    collector.change(NO_JSON, name, "left out")
        return collector.part()

    def _read(
        self, collector: Collector, file: Path, places: dict[str, str], used: dict[str, str]
    ) -> None:
        where = file.relative_to(collector.images).as_posix()
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, ValueError) as error:
            collector.fault("broken xml", where, str(error))
            return
        name = _image_of(file, root, places)
        first = used.setdefault(name, where)
        if first != where:
            collector.fault("two files for one image", where, f"{name} has {first} too")
            return
        image = collector.image(name)
        if image is None:
            return
        given = [finite(root.findtext(f"size/{side}")) or 0 for side in ("width", "height")]
        size = [image["width"], image["height"]]
        if min(given) > 0 and given != size:
            detail = f"{where} says {given[0]:g} x {given[1]:g}, the file is {size[0]} x {size[1]}"
            collector.fault("size differs", name, f"{detail}: its objects are left out")
            return
        for number, entry in enumerate(root.iter("object"), 1):
            try:
                self._add(collector, image, entry)
            except BadEntryError as bad:
                collector.fault(bad.args[0], where, f"object {number}: {bad.args[1]}")

    def _add(self, collector: Collector, image: dict[str, Any], entry: ElementTree.Element) -> None:
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise BadEntryError("no name", "its name is empty")
        more = {"ignore": 1} if (entry.findtext("difficult") or "0").strip() == "1" else {}
        polygon = entry.find("polygon")
        if polygon is not None and len(polygon):
            collector.add(image, name, [_polygon(polygon)], **more)
            return
        texts = [entry.findtext(f"bndbox/{side}") for side in _SIDES]
        sides = [value for value in map(finite, texts) if value is not None]
        if len(sides) < 4:
            raise BadEntryError("no box", f"bndbox has {', '.join(map(shown, texts))}")
        x1, y1, x2, y2 = sides
        inclusive = float(self.first_pixel)  # from 1, the last pixel is inside
        box = [x1 - inclusive, y1 - inclusive, x2 - x1 + inclusive, y2 - y1 + inclusive]
        if x2 < x1 or y2 < y1 or min(box[2:]) <= 0:
            raise BadEntryError("box without area", f"from {x1:g}, {y1:g} to {x2:g}, {y2:g}")
        collector.add_box(image, name, box, **more)


def _polygon(entry: ElementTree.Element) -> list[float]:
    """x1 y1 x2 y2 ... of the elements with these names."""
    points: list[float] = []
    for number in range(1, len(entry) // 2 + 1):
        pair = [finite(entry.findtext(f"{axis}{number}")) for axis in "xy"]
        points += [value for value in pair if value is not None]
    if len(points) < 6 or len(points) != len(entry):
        raise BadEntryError("polygon under 3 points", f"{len(points)} numbers")
    return points


def _image_of(file: Path, root: ElementTree.Element, places: dict[str, str]) -> str:
    """The name of the image of an xml: its filename, or the image with the xml's own name."""
    written = (root.findtext("filename") or "").replace("\\", "/").rsplit("/", 1)[-1]
    if composed(written) in places:
        return places[composed(written)]
    stem = composed(file.stem)
    alike = [name for base, name in places.items() if os.path.splitext(base)[0] == stem]
    return alike[0] if alike else written or f"{file.stem}.jpg"
