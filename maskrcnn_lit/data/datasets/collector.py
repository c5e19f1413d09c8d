"""What every reader does: finds image files, and collects images, objects and faults of one part.

A `Collector` numbers images and objects in the order in which they are added, so equal folders give
equal jsons.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.image_files import composed, image_size
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.images import SUFFIXES
from maskrcnn_lit.storage.sources import Folder

PARTS = ("train", "val")

Shape = list[list[float]] | dict[str, Any]  # polygons x y x y ... each, or a compressed RLE


class Collector:
    """Collects one part of a data set.

    Args:
        images: the folder from which file names start.
        names: the classes, in order; None: those of the objects, in alphabetical order.
    """

    def __init__(self, images: Path, names: Sequence[str] | None = None) -> None:
        self.images, self.names = images, names
        self.faults: list[Fault] = []
        self.changes: list[Fault] = []
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []

    def image(self, name: str, **fields: Any) -> dict[str, Any] | None:
        """Add the image file `name`, with further `fields` in its entry, and return the entry;
        None, and a fault, if it is missing or unreadable.
        """
        size = image_size(Folder(self.images), name)
        if size is None:
            missing = not (self.images / name).is_file()
            detail = f"no such file in {self.images.name}" if missing else "unknown format"
            self.fault("missing file" if missing else "not an image", name, detail)
            return None
        entry = {
            "id": len(self._images) + 1,
            "file_name": name,
            "height": size[0],
            "width": size[1],
            **fields,
        }
        self._images.append(entry)
        return entry

    def add(self, image: Mapping[str, Any], name: str, shape: Shape, **fields: Any) -> None:
        """Add an object of class `name`: its outline, and `iscrowd` and the like as `fields`. Its
        box is that of the outline, unless `fields` have another `bbox`.
        """
        self.add_entry(image, name, **{"bbox": _extent(shape), "segmentation": shape} | fields)

    def add_box(
        self, image: Mapping[str, Any], name: str, box: Sequence[float], **fields: Any
    ) -> None:
        """Add an object of which only the box (x y w h) is known."""
        area = float(box[2] * box[3])
        self.add_entry(image, name, bbox=list(map(float, box)), area=area, **fields)

    def add_entry(self, image: Mapping[str, Any], name: str, **fields: Any) -> None:
        """Add an object of class `name` with the `fields` of a COCO annotation, unchecked: they are
        checked when the json is read.
        """
        self._objects.append(
            {
                "id": len(self._objects) + 1,
                "image_id": image["id"],
                "category_id": name,  # a number in `part`
                "iscrowd": 0,
                **fields,
            }
        )

    @property
    def has_objects(self) -> bool:
        return bool(self._objects)

    def fault(self, kind: str, where: str, what: str) -> None:
        """Record that an image or an object was left out. where: its file."""
        self.faults.append(Fault(kind, where, None, what))

    def change(self, kind: str, where: str, what: str) -> None:
        """Record that something was filled in or corrected."""
        self.changes.append(Fault(kind, where, None, what))

    def part(self) -> Part:
        """What was collected.

        Raises:
            UserError: no image, or no class.
        """
        if not self._images:
            some = "; ".join(f"{fault.image}: {fault.what}" for fault in self.faults[:3])
            raise UserError(
                f"{self.images} has no image that can be used{f' ({some})' if some else ''}: check "
                "data.root and the options of data.reader"
            )
        names = self.names
        if names is None:
            names = sorted({entry["category_id"] for entry in self._objects})
        if not names:
            raise UserError(f"{self.images} has images, but no object: check data.root")
        numbers = {name: number for number, name in enumerate(names, 1)}
        content = {
            "images": self._images,
            "annotations": [
                {**entry, "category_id": numbers[entry["category_id"]]} for entry in self._objects
            ],
            "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        }
        return Part(content, self.images, self.faults, self.changes)


def rle_of(mask: NDArray[Any]) -> dict[str, Any]:
    """The compressed RLE of an H W mask, with text counts."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def masks_of(labels: NDArray[Any]) -> list[tuple[int, dict[str, Any]]]:
    """The value and the RLE of each object of a label image (H W, 0 is background), by value."""
    values, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape)
    if values[0] != 0:
        values, dense = np.r_[0, values], dense + 1
    masks = []
    for number, place in enumerate(ndimage.find_objects(dense.astype(np.int32)), 1):
        if place is None or values[number] == 0:
            continue
        mask = np.zeros(labels.shape, np.uint8)
        mask[place] = dense[place] == number
        masks.append((int(values[number]), rle_of(mask)))
    return masks


def one_channel(samples: NDArray[Any]) -> NDArray[Any]:
    """H W whole numbers of the samples of a mask (H W or H W C).

    Raises:
        ValueError: it has colors or fractions.
    """
    if samples.ndim == 3:
        colors = samples[..., : 3 if samples.shape[2] >= 3 else 1]
        if (colors != colors[..., :1]).any():
            raise ValueError("it has colors: one number for each pixel is expected")
        samples = colors[..., 0]
    if samples.dtype.kind == "f":
        if (samples != np.floor(samples)).any():
            raise ValueError("it has fractions: whole numbers are expected")
        samples = samples.astype(np.int64)
    return samples


def rles_of_mask(samples: NDArray[Any]) -> list[dict[str, Any]]:
    """The RLE of one object: every pixel over 0 belongs to it.

    Raises:
        ValueError: no pixel is over 0.
    """
    mask = samples != 0
    if not mask.any():
        raise ValueError("it has no pixel over 0")
    return [rle_of(mask)]


def rles_of_labels(samples: NDArray[Any]) -> list[dict[str, Any]]:
    """The RLE of each object of a label image, by value."""
    return [rle for _, rle in masks_of(samples)]


def image_names(folder: Path) -> list[str]:
    """The image files below `folder`, as sorted names with slashes; hidden ones are left out."""
    names = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [
            Path(where, name).relative_to(folder).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(names)


def by_stem(names: Iterable[str], collector: Collector) -> dict[str, str]:
    """Name without suffix, with composed letters -> name; a second file with the same stem is a
    fault.
    """
    stems: dict[str, str] = {}
    for name in names:
        first = stems.setdefault(composed(os.path.splitext(name)[0]), name)
        if first != name:
            collector.fault("two files for one image", name, f"{first} has the same name")
    return stems


def part_folders(root: Path) -> list[str]:
    """Of PARTS those that `root` has as folders."""
    return [part for part in PARTS if (root / part).is_dir()]


def part_folder(root: Path, part: str) -> Path:
    """The folder of a part; `root` for ALL."""
    return root / part if part in PARTS else root


def _extent(shape: Shape) -> list[float]:
    """x y w h."""
    if isinstance(shape, dict):
        return coco_mask.toBbox({**shape, "counts": shape["counts"].encode()}).tolist()
    points = np.concatenate([np.asarray(part, np.float64) for part in shape]).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]
