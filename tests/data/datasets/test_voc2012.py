"""The reader of Pascal VOC 2012."""

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_server import Server
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat
from scipy.sparse import csc_matrix
from voc_files import BOXES, CAT, DOG, KINDS, OBJECTS, save_indexed, write_image, write_voc, xml

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.coco.reading import ALL, Part, located
from maskrcnn_lit.data.datasets.voc2012 import (
    CLASSES,
    VOID,
    Entry,
    Instance,
    Voc2012,
    assign,
    indices,
    palette,
    prepare,
)
from maskrcnn_lit.errors import UserError

pytest_plugins = ("local_server",)


def masks(part: Part) -> list[np.ndarray]:
    return [coco_mask.decode(entry["segmentation"]) for entry in part.content["annotations"]]


def names(part: Part) -> list[str]:
    return [CLASSES[entry["category_id"] - 1] for entry in part.content["annotations"]]


@pytest.mark.parametrize("colors", [False, True])
def test_masks_classes_boxes_and_void_of_both_kinds_of_pictures(tmp_path: Path, colors: bool):
    root = write_voc(tmp_path, colors)
    reader = Voc2012()
    assert reader.parts(root) == ["train", "val"]
    part = reader.read(root, "train")
    assert (part.faults, part.changes) == ([], [])
    assert [category["name"] for category in part.content["categories"]] == list(CLASSES)
    (image,) = part.content["images"]
    assert image["file_name"] == "JPEGImages/a.jpg"
    np.testing.assert_array_equal(coco_mask.decode(image["ignore"]), OBJECTS == VOID)
    assert names(part) == ["cat", "dog"]
    for number, mask in enumerate(masks(part), 1):
        np.testing.assert_array_equal(mask, number == OBJECTS)
    cat, dog = part.content["annotations"]
    assert cat["bbox"] == [3, 2, 10, 8]  # from 0, with the border
    assert dog["bbox"] == [15, 5, 12, 13]
    assert cat["area"] == 48
    assert len(reader.read(root, ALL).content["images"]) == 2


def test_difficult_objects_are_ignored_regions(tmp_path: Path):
    root = write_voc(tmp_path)
    (root / "Annotations" / "a.xml").write_text(xml(BOXES, difficult=[1]))
    place = located(Voc2012(), root, "train", tmp_path / "cache")["train"]
    index = read_index(place.annotations, place.images, "error", cache=tmp_path / "cache")
    assert index.annotations(0)["crowd"].tolist() == [False, True]
    assert [change.kind for change in index.changes] == ["ignored region"]


def test_entries_belong_to_masks_by_number_or_by_place(tmp_path: Path):
    root = write_voc(tmp_path)
    (root / "Annotations" / "a.xml").write_text(xml([*BOXES[::-1], ("bird", (1, 1, 3, 3))]))
    part = Voc2012().read(root, "train")
    cat, dog, bird = part.content["annotations"]
    assert (cat["bbox"], dog["bbox"]) == ([3, 2, 10, 8], [15, 5, 12, 13])
    assert bird["bbox"] == [0, 0, 3, 3]
    assert "segmentation" not in bird
    (change,) = part.changes
    assert change.kind == "missing object mask"
    assert change.what == "object 3 (bird) of the xml is a box without a mask"
    (root / "Annotations" / "a.xml").write_text(xml(BOXES[:1]))
    part = Voc2012().read(root, "train")
    assert part.content["annotations"][1]["bbox"] == [16, 6, 10, 11]  # of the mask
    assert [change.what for change in part.changes] == ["object 2 (dog) gets the box of its mask"]
    (root / "Annotations" / "a.xml").unlink()
    part = Voc2012().read(root, "train")
    assert [change.kind for change in part.changes] == ["no xml"]
    assert part.content["annotations"][0]["bbox"] == [4, 3, 8, 6]


def test_an_entry_is_used_once():
    mask = np.ones((1, 1), bool)
    boxes = [[0.0, 0, 10, 10], [1.0, 0, 10, 10], [50.0, 0, 10, 10]]
    instances = [Instance(n, "cat", mask, box) for n, box in enumerate(boxes, 5)]
    entries = [Entry("cat", [1.0, 0, 10, 10], False), Entry("dog", [50.0, 0, 10, 10], False)]
    assert assign(instances, entries) == [None, 0, None]
    assert assign(instances, []) == [None] * 3
    assert assign([], entries) == []


def test_the_palette_is_that_of_voc():
    colors = palette()
    assert colors[[0, 1, 2, 8, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [64, 0, 0],
        [0, 64, 128],
    ]
    assert colors[VOID].tolist() == [224, 224, 192]
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(indices(Image.fromarray(colors[every])), every)


def write_sbd(folder: Path, stem: str, objects: np.ndarray, classes: list[int]) -> None:
    """A file of GTinst as SBD has it: a struct with Segmentation, Boundaries and Categories."""
    (folder / "inst").mkdir(parents=True, exist_ok=True)
    struct = np.zeros((1, 1), [(k, object) for k in ("Segmentation", "Boundaries", "Categories")])
    struct[0, 0]["Segmentation"] = objects.astype(np.uint8)
    struct[0, 0]["Boundaries"] = cells = np.empty((len(classes), 1), object)
    cells[:, 0] = [csc_matrix(objects == n) for n in range(1, len(classes) + 1)]
    struct[0, 0]["Categories"] = np.array(classes, np.uint8)[:, None]
    savemat(folder / "inst" / f"{stem}.mat", {"GTinst": struct})


def test_sbd_adds_the_images_that_voc_does_not_list(tmp_path: Path):
    root, sbd = write_voc(tmp_path / "voc"), tmp_path / "dataset"
    plain = np.where(OBJECTS == VOID, 0, OBJECTS)
    write_image(root, "c")
    write_image(root, "d")
    write_sbd(sbd, "c", plain, [CAT, DOG])
    write_sbd(sbd, "d", plain == 2, [DOG])
    (sbd / "train.txt").write_text("a\nc\n")
    (sbd / "val.txt").write_text("b\nd\n")
    reader = Voc2012(sbd=str(sbd))
    assert sbd in reader.sources(root)
    part = reader.read(root, "train")
    files = [Path(image["file_name"]).stem for image in part.content["images"]]
    assert files == ["a", "c", "d"]
    assert names(part) == ["cat", "dog", "cat", "dog", "dog"]
    np.testing.assert_array_equal(masks(part)[2], plain == 1)
    assert ["ignore" in image for image in part.content["images"]] == [True, False, False]
    assert part.faults == []
    assert len(reader.read(root, "val").content["images"]) == 1
    write_sbd(sbd, "d", plain, [DOG])
    (sbd / "inst" / "c.mat").write_bytes(b"text")
    faults = reader.read(root, "train").faults
    assert [(fault.kind, fault.image) for fault in faults] == [
        ("mask cannot be used", "inst/c.mat"),
        ("mask cannot be used", "inst/d.mat"),
    ]
    assert faults[1].what == "2 objects and 1 classes"
    (sbd / "val.txt").unlink()
    with pytest.raises(UserError, match=r"has no inst/, train\.txt and val\.txt"):
        reader.read(root, "train")


def wrong_size(root: Path) -> None:
    write_image(root, "b", (8, 9))


def two_sizes(root: Path) -> None:
    save_indexed(root / "SegmentationClass" / "b.png", KINDS[:-1])


def unknown_value(root: Path) -> None:
    save_indexed(root / "SegmentationClass" / "b.png", np.where(KINDS == CAT, 77, KINDS))


def unknown_background(root: Path) -> None:
    kinds = KINDS.copy()
    kinds[0, :2] = 21
    save_indexed(root / "SegmentationClass" / "b.png", kinds)


def unknown_color(root: Path) -> None:
    picture = np.array(palette()[KINDS])
    picture[4, 5] = [1, 2, 3]
    Image.fromarray(picture).save(root / "SegmentationClass" / "b.png")


def no_class(root: Path) -> None:
    save_indexed(root / "SegmentationClass" / "b.png", np.where(KINDS == CAT, 0, KINDS))


def deep(root: Path) -> None:
    Image.fromarray(KINDS.astype(np.uint16) * 9).save(root / "SegmentationClass" / "b.png")


def removed(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / name).write_text(text)

    return write


BAD: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "image of another size": (
        wrong_size,
        "mask of another size",
        "SegmentationObject/b.png",
        "30 x 20, but JPEGImages/b.jpg is 8 x 9",
    ),
    "two sizes": (
        two_sizes,
        "mask of another size",
        "SegmentationObject/b.png",
        "30 x 20, but SegmentationClass has 30 x 19",
    ),
    "value without a class": (
        unknown_value,
        "palette value without a class",
        "SegmentationClass/b.png",
        "object 1 has the value 77: a class has 1 to 20",
    ),
    "value without a class beside the objects": (
        unknown_background,
        "palette value without a class",
        "SegmentationClass/b.png",
        "2 pixels of the value 21: a class has 1 to 20, void has 255",
    ),
    "object on background": (
        no_class,
        "palette value without a class",
        "SegmentationClass/b.png",
        "object 1 has the value 0: a class has 1 to 20",
    ),
    "color without an index": (
        unknown_color,
        "mask cannot be used",
        "SegmentationClass/b.png",
        "the color [1, 2, 3] is not in VOC's palette",
    ),
    "16 bits": (
        deep,
        "mask cannot be used",
        "SegmentationClass/b.png",
        "it has mode I;16: a palette or RGB is expected",
    ),
    "missing object mask": (
        removed("SegmentationObject/b.png"),
        "missing mask",
        "SegmentationObject/b.png",
        "no such file",
    ),
    "no picture": (
        written("SegmentationObject/b.png", "text"),
        "mask cannot be used",
        "SegmentationObject/b.png",
        "unknown format",
    ),
    "missing image": (
        removed("JPEGImages/b.jpg"),
        "missing file",
        "JPEGImages/b.jpg",
        "no such file in voc",
    ),
    "broken xml": (
        written("Annotations/b.xml", "<annotation>"),
        "broken xml",
        "Annotations/b.xml",
        "no element found: line 1, column 12: boxes are those of the masks",
    ),
    "class of another set": (
        written("Annotations/b.xml", xml([*BOXES, ("zebra", (1, 1, 2, 2))])),
        "broken object",
        "Annotations/b.xml",
        "object 3: the class 'zebra' is not one of VOC",
    ),
    "box without area": (
        written("Annotations/b.xml", xml([*BOXES, ("cow", (9, 1, 2, 2))])),
        "broken object",
        "Annotations/b.xml",
        "object 3: its box [9.0, 1.0, 2.0, 2.0] has no area",
    ),
    "box of text": (
        written("Annotations/b.xml", xml([*BOXES, ("cow", ("x", 1, 2, 2))])),
        "broken object",
        "Annotations/b.xml",
        "object 3: could not convert string to float: 'x'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, name: str):
    spoil, kind, where, what = BAD[name]
    root = write_voc(tmp_path / "voc")
    spoil(root)
    (fault,) = Voc2012().read(root, ALL).faults
    assert (fault.kind, fault.image, fault.what) == (kind, where, what)


def test_another_folder_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no ImageSets/Segmentation/train\.txt and val\.txt"):
        Voc2012().parts(tmp_path)


ARCHIVE = "VOCtrainval_11-May-2012.tar"


def archive(folder: Path) -> bytes:
    """The tar of the official server."""
    write_voc(folder / "VOCdevkit" / "VOC2012")
    with tarfile.open(folder / ARCHIVE, "w") as tar:
        tar.add(folder / "VOCdevkit", "VOCdevkit")
    return (folder / ARCHIVE).read_bytes()


def test_it_is_fetched_once_and_verified(tmp_path: Path, server: Server):
    content = archive(tmp_path / "official")
    server.offer(content, ARCHIVE)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    root = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    options: dict[str, Any] = {"mirror": server.address, "md5": md5}
    prepare(root=root, download=False, **options)
    assert not root.exists()
    with pytest.raises(UserError, match="md5"):
        prepare(root=root, download=True, mirror=server.address)
    with pytest.raises(UserError, match=r"give data\.root=DIR/VOCdevkit/VOC2012"):
        prepare(root=tmp_path / "other", download=True, **options)
    prepare(root=root, download=True, **options)
    assert len(Voc2012().read(root, ALL).content["images"]) == 2
    asked = len(server.asked)
    prepare(root=root, download=True, **options)
    assert len(server.asked) == asked


def test_the_command_downloads(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    content = archive(tmp_path / "official")
    server.offer(content, ARCHIVE)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(prepare.__kwdefaults__, "md5", md5)
    root = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    mirror = f"data.mirror={server.address}"
    assert cli.main(["download", "data=voc2012", f"data.root={root}", mirror]) == 0
    assert Voc2012().parts(root) == ["train", "val"]


@pytest.mark.data
def test_voc_mini_is_as_its_readme_says(test_data: Path):
    root = test_data / "voc_mini"
    for part, images, objects in (("train", 16, 112), ("val", 8, 63)):
        read = Voc2012().read(root, part)
        assert (read.faults, read.changes) == ([], [])
        assert len(read.content["images"]) == images
        assert len(read.content["annotations"]) == objects
        assert all("ignore" in image for image in read.content["images"])


@pytest.mark.data
def test_colors_and_palette_of_voc_mini_agree(test_data: Path, tmp_path: Path):
    """Its rgb_masks have no void: where the palette has an object, they have the same one."""
    root = tmp_path / "voc"
    shutil.copytree(
        test_data / "voc_mini", root, ignore=shutil.ignore_patterns("Segmentation[CO]*")
    )
    for folder in ("SegmentationClass", "SegmentationObject"):
        shutil.copytree(test_data / "voc_mini" / "rgb_masks" / folder, root / folder)
    ours, theirs = (Voc2012().read(one, "val") for one in (test_data / "voc_mini", root))
    assert not any("ignore" in image for image in theirs.content["images"])
    assert names(ours) == names(theirs)
    inside = [(a & b).sum() / a.sum() for a, b in zip(masks(ours), masks(theirs), strict=True)]
    assert min(inside) == 1.0
