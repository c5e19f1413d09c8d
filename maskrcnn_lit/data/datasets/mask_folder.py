"""Masks as pictures: one png for each object, or one label image for each image.

    root/IMAGE/images/IMAGE.png   root/IMAGE/masks/*.png     as in the Data Science Bowl 2018
    root/images/IMAGE.png         root/masks/IMAGE/*.png     one mask for each object, or
                                  root/masks/IMAGE/CLASS/*.png
    root/images/IMAGE.png         root/masks/IMAGE.tif       a label image: pixels of object n have
                                                             the value n, background 0

Each of them may also lie in root/train and root/val. Label images have 8, 16 or 32 bits, or a
palette, whose indices count. Of a mask, every pixel over 0 belongs to the object.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_lit.data.coco.image_files import composed
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datasets.collector import (
    Collector,
    by_stem,
    image_names,
    one_channel,
    part_folder,
    part_folders,
    rles_of_labels,
    rles_of_mask,
)
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.images import SUFFIXES

# file, class (None: the only one), RLE, and its fault where there is no RLE
Mask = tuple[Path, str | None, dict[str, Any] | None, str]


@dataclass(frozen=True, kw_only=True)
class MaskFolder:
    """Reads masks.

    Args:
        class_name: the name of the class of masks without a folder of their class.
        images, masks: the names of the two folders.
        suffix: of the masks: "_masks" where IMAGE_masks.png are those of IMAGE.png.
    """

    class_name: str = "object"
    images: str = "images"
    masks: str = "masks"
    suffix: str = ""

    def parts(self, root: Path) -> Sequence[str]:
        return part_folders(root)

    def sources(self, root: Path) -> Sequence[Path]:
        return (root,)

    def read(self, root: Path, part: str) -> Part:
        folder = part_folder(root, part)
        collector = Collector(folder)
        pairs = dict(self._pairs(folder, collector))
        with ThreadPoolExecutor() as pool:
            for name, masks in zip(pairs, pool.map(_read, pairs.values()), strict=True):
                if pairs[name] is None:
                    detail = (
                        f"neither a folder nor a label image in {self.masks} (an image without "
                        "objects has an empty folder, or a label image of zeros)"
                    )
                    collector.fault("no mask", name, detail)
                else:
                    self._add(collector, name, masks)
        if not collector.has_objects:
            collector.names = [self.class_name]
        return collector.part()

    def _pairs(self, folder: Path, collector: Collector) -> Iterator[tuple[str, Path | None]]:
        """Every image, and the folder or file of its masks."""
        if (folder / self.images).is_dir():
            named = self._masks(folder)
            for stem, name in by_stem(image_names(folder / self.images), collector).items():
                own = named[composed(f"{stem}{self.suffix}")]
                if len(own) > 1:
                    where = f"{self.masks}/{own[-1].name}"
                    collector.fault("two masks for one image", where, "there is another one")
                    continue
                yield f"{self.images}/{name}", own[0] if own else None
            return
        inner = sorted(path for path in folder.iterdir() if (path / self.images).is_dir())
        if not inner:
            raise UserError(
                f"{folder} has neither {self.images}/ and {self.masks}/ nor a folder with both for "
                "each image: give data.root, or other names with data.reader.images and "
                "data.reader.masks"
            )
        for path in inner:
            names = image_names(path / self.images)
            for name in names[1:]:
                collector.fault(
                    "two files for one image",
                    f"{path.name}/{self.images}/{name}",
                    f"{names[0]} too",
                )
            masks = path / self.masks
            for name in names[:1]:
                yield f"{path.name}/{self.images}/{name}", masks if masks.is_dir() else None

    def _masks(self, folder: Path) -> defaultdict[str, list[Path]]:
        """The folders and files of masks by their `composed` names without suffix."""
        root = folder / self.masks
        named = defaultdict[str, list[Path]](list)
        for where, folders, _ in os.walk(root, followlinks=True):
            for path in (Path(where, name) for name in folders):
                named[composed(path.relative_to(root).as_posix())].append(path)
        for name in image_names(root):
            named[composed(os.path.splitext(name)[0])].append(root / name)
        return named

    def _add(self, collector: Collector, name: str, masks: Sequence[Mask]) -> None:
        image = collector.image(name)
        if image is None:
            return
        for file, kind, rle, fault in masks:
            where = file.relative_to(collector.images).as_posix()
            if rle is None:
                collector.fault("mask cannot be used", where, fault)
            elif rle["size"] != [image["height"], image["width"]]:
                height, width = rle["size"]
                collector.fault(
                    "mask of another size",
                    where,
                    f"{width} x {height}, but {name} is {image['width']} x {image['height']}",
                )
            else:
                collector.add(image, kind or self.class_name, rle)


def _read(masks: Path | None) -> list[Mask]:
    """The objects of one image."""
    if masks is None:
        return []
    if not masks.is_dir():
        return _tried(masks, None, rles_of_labels)
    read = [one for file in _pictures(masks) for one in _tried(file, None, rles_of_mask)]
    for folder in sorted(path for path in masks.iterdir() if path.is_dir()):
        files = _pictures(folder)
        read += [one for file in files for one in _tried(file, folder.name, rles_of_mask)]
    return read


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _tried(
    file: Path, kind: str | None, read: Callable[[NDArray[Any]], list[dict[str, Any]]]
) -> list[Mask]:
    try:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError("it has several pages, and one is expected")
            samples = np.asarray(image)
        return [(file, kind, rle, "") for rle in read(one_channel(samples))]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        text = "unknown format" if "cannot identify" in str(error) else str(error)
        return [(file, kind, None, text)]
