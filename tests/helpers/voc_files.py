"""A small folder in the form of Pascal VOC 2012: two images with a cat and a dog each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_lit.data.datasets.voc2012 import CLASSES, VOID, palette

HEIGHT, WIDTH = 20, 30

CAT, DOG = CLASSES.index("cat") + 1, CLASSES.index("dog") + 1

OBJECTS = np.zeros((HEIGHT, WIDTH), np.uint8)
OBJECTS[2:10, 3:13], OBJECTS[5:18, 15:27] = VOID, VOID
OBJECTS[3:9, 4:12], OBJECTS[6:17, 16:26] = 1, 2

KINDS = np.array([0, CAT, DOG, *[0] * 252, VOID], np.uint8)[OBJECTS]  # of a class each

# from 1, both ends included; with the border
BOXES = (("cat", (4, 3, 13, 10)), ("dog", (16, 6, 27, 18)))


def save_indexed(path: Path, indices: np.ndarray, colors: bool = False) -> None:
    """A palette png, or an RGB one in the palette's colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if colors:
        Image.fromarray(palette()[indices]).save(path)
        return
    picture = Image.fromarray(indices, "L").convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(palette().ravel().tolist())
    picture.save(path)


def xml(objects: Sequence[tuple[str, Sequence[Any]]], difficult: Sequence[int] = ()) -> str:
    entries = "".join(
        f"<object><name>{name}</name><difficult>{int(n in difficult)}</difficult><bndbox>"
        + "".join(f"<{side}>{v}</{side}>" for side, v in zip(SIDES, box, strict=True))
        + "</bndbox></object>"
        for n, (name, box) in enumerate(objects)
    )
    return f"<annotation>{entries}</annotation>"


SIDES = ("xmin", "ymin", "xmax", "ymax")


def write_voc(root: Path, colors: bool = False) -> Path:
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, stem in (("train", "a"), ("val", "b")):
        (lists / f"{part}.txt").write_text(f"{stem}\n")
        write_image(root, stem)
        save_indexed(root / "SegmentationObject" / f"{stem}.png", OBJECTS, colors)
        save_indexed(root / "SegmentationClass" / f"{stem}.png", KINDS, colors)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(xml(BOXES))
    return root


def write_image(root: Path, stem: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    (root / "JPEGImages").mkdir(exist_ok=True)
    Image.new("RGB", size, (90, 120, 200)).save(root / "JPEGImages" / f"{stem}.jpg")
