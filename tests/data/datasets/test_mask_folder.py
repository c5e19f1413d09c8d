import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.reading import ALL
from maskrcnn_lit.data.datasets.mask_folder import MaskFolder
from maskrcnn_lit.errors import UserError

LABELS = np.zeros((20, 30), np.int64)
LABELS[2:8, 3:9], LABELS[10:18, 5:25], LABELS[12:14, 8:11] = 1, 2, 0  # the second has a hole
LABELS[0:2, 28:30] = 2  # and two parts


def save(path: Path, samples: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = samples if isinstance(samples, Image.Image) else Image.fromarray(samples)
    image.save(path)


def images(root: Path, *stems: str) -> None:
    for stem in stems:
        save(root / f"{stem}.png", np.full((20, 30, 3), 90, np.uint8))


def objects(root: Path, **options: Any) -> list[np.ndarray]:
    part = MaskFolder(**options).read(root, ALL)
    assert part.faults == []
    assert [c["name"] for c in part.content["categories"]] == ["object"]
    rles = [entry["segmentation"] for entry in part.content["annotations"]]
    return [coco_mask.decode({**rle, "counts": rle["counts"].encode()}) for rle in rles]


def palette() -> Image.Image:
    image = Image.fromarray(LABELS.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9])  # equal colors: the indices count
    return image


def spellings() -> dict[str, Callable[[Path], None]]:
    def label_image(name: str, samples: Any) -> Callable[[Path], None]:
        def write(root: Path) -> None:
            images(root / "images", "a")
            save(root / "masks" / name, samples)

        return write

    def one_each(root: Path) -> None:
        images(root / "images", "a")
        for k in (1, 2):
            save(root / "masks" / "a" / f"{k}.png", (k == LABELS).astype(np.uint8) * 255)

    def bowl(root: Path) -> None:
        images(root / "a" / "images", "a")
        for k in (1, 2):
            save(root / "a" / "masks" / f"{k}.png", (k == LABELS))

    return {
        "one png an object": one_each,
        "data science bowl": bowl,
        "8 bits": label_image("a.png", LABELS.astype(np.uint8)),
        "16 bits": label_image("a.png", (LABELS * 1000).astype(np.uint16)),
        "16 bits, tiff": label_image("a.tif", (LABELS * 30_000).astype(np.uint16)),
        "32 bits": label_image("a.tiff", (LABELS * 100_000).astype(np.int32)),
        "whole floats": label_image("a.tif", LABELS.astype(np.float32)),
        "gray as RGB": label_image("a.png", np.repeat(LABELS[..., None], 3, 2).astype(np.uint8)),
        "palette": label_image("a.png", palette()),
    }


@pytest.mark.parametrize("name", spellings())
def test_every_spelling_gives_the_same_masks(name: str, tmp_path: Path):
    spellings()[name](tmp_path)
    one, two = objects(tmp_path)
    np.testing.assert_array_equal(one, LABELS == 1)
    np.testing.assert_array_equal(two, LABELS == 2)


def test_an_index_without_a_color_in_the_palette_is_an_object(tmp_path: Path):
    images(tmp_path / "images", "a")
    rows = b"".join(b"\0" + row.tobytes() for row in LABELS.astype(np.uint8))
    chunks = {  # Pillow writes no such file
        b"IHDR": struct.pack(">IIBBBBB", 30, 20, 8, 3, 0, 0, 0),
        b"PLTE": b"\0\0\0",
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks.items():
        check = struct.pack(">I", zlib.crc32(name + body))
        content += struct.pack(">I", len(body)) + name + body + check
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(content)
    one, two = objects(tmp_path)
    np.testing.assert_array_equal(one, LABELS == 1)
    np.testing.assert_array_equal(two, LABELS == 2)


def test_other_names_and_parts(tmp_path: Path):
    for part in ("train", "val"):
        images(tmp_path / part / "raw", "deep/a")
        save(tmp_path / part / "seg" / "deep" / "a_masks.png", LABELS.astype(np.uint8))
    reader = MaskFolder(class_name="cell", images="raw", masks="seg", suffix="_masks")
    assert reader.parts(tmp_path) == ["train", "val"]
    assert reader.sources(tmp_path) == (tmp_path,)
    part = reader.read(tmp_path, "val")
    assert part.content["images"][0]["file_name"] == "raw/deep/a.png"
    assert part.images == tmp_path / "val"
    assert len(part.content["annotations"]) == 2
    assert part.content["categories"] == [{"id": 1, "name": "cell"}]


@pytest.mark.parametrize("mask", ["Zelle_a\u0308.tif", "Zelle_a\u0308/one.png"])
def test_an_umlaut_may_be_one_character_or_two(mask: str, tmp_path: Path):
    images(tmp_path / "images", "Zelle_\u00e4")
    save(tmp_path / "masks" / mask, (LABELS == 1).astype(np.uint8))
    (one,) = objects(tmp_path)
    np.testing.assert_array_equal(one, LABELS == 1)


def test_an_image_without_objects(tmp_path: Path):
    images(tmp_path / "images", "a", "b")
    (tmp_path / "masks" / "a").mkdir(parents=True)
    save(tmp_path / "masks" / "b.png", np.zeros((20, 30), np.uint8))
    assert objects(tmp_path) == []


BAD: dict[str, tuple[str, Any, str, str]] = {
    "another size": ("b.png", np.ones((30, 20), np.uint8), "mask of another size", "20 x 30, but"),
    "another size, an object": (
        "b/1.png",
        np.ones((9, 9), np.uint8),
        "mask of another size",
        "9 x 9, but images/b.png is 30 x 20",
    ),
    "colors": (
        "b.png",
        np.arange(1800).reshape(20, 30, 3).astype(np.uint8),
        "mask cannot be used",
        "it has colors",
    ),
    "fractions": ("b.tif", LABELS.astype(np.float32) / 3, "mask cannot be used", "fractions"),
    "empty mask": ("b/1.png", np.zeros((20, 30), np.uint8), "mask cannot be used", "no pixel"),
    "no mask": (
        "c.png",
        LABELS.astype(np.uint8),
        "no mask",
        "an empty folder, or a label image of zeros",
    ),
    "no picture": ("b.png", b"text", "mask cannot be used", "unknown format"),
    "two masks": ("a.tif", LABELS.astype(np.uint8), "two masks for one image", "another one"),
    "mask and folder": ("a/1.png", LABELS.astype(np.uint8), "two masks for one image", "another"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_faulty_is_counted(name: str, tmp_path: Path):
    file, samples, kind, what = BAD[name]
    images(tmp_path / "images", "a", "b")
    save(tmp_path / "masks" / "a.png", LABELS.astype(np.uint8))
    if file[0] == "a":
        save(tmp_path / "masks" / "b.png", LABELS.astype(np.uint8))
    if isinstance(samples, bytes):
        (tmp_path / "masks" / file).write_bytes(samples)
    else:
        save(tmp_path / "masks" / file, samples)
    part = MaskFolder().read(tmp_path, ALL)
    (fault,) = part.faults
    assert fault.kind == kind
    assert what in fault.what
    assert "/" in fault.image
    assert len(part.content["annotations"]) == 2  # those of the other image


def test_several_pages(tmp_path: Path):
    images(tmp_path / "images", "a", "b")
    save(tmp_path / "masks" / "b.png", LABELS.astype(np.uint8))
    pages = [Image.fromarray(LABELS.astype(np.uint8))] * 2
    pages[0].save(tmp_path / "masks" / "a.tif", save_all=True, append_images=pages[1:])
    (fault,) = MaskFolder().read(tmp_path, ALL).faults
    assert fault.image == "masks/a.tif"
    assert "several pages" in fault.what


def test_two_files_for_one_image(tmp_path: Path):
    images(tmp_path / "images", "a")
    save(tmp_path / "images" / "a.bmp", np.zeros((20, 30, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", LABELS.astype(np.uint8))
    part = MaskFolder().read(tmp_path, ALL)
    (fault,) = part.faults
    assert fault.kind == "two files for one image"
    assert len(part.content["images"]) == 1


def test_a_folder_of_another_form(tmp_path: Path):
    images(tmp_path, "a")
    with pytest.raises(UserError, match=r"neither images/ and masks/ nor .*data.reader.images"):
        MaskFolder().read(tmp_path, ALL)
