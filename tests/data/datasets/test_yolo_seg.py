from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datasets.yolo_seg import YoloSeg
from maskrcnn_lit.errors import UserError

YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
TRIANGLE = "0 0.1 0.1 0.5 0.1 0.5 0.5"


def write(root: Path, texts: dict[str, str], yaml: str = YAML) -> None:
    """Images of 200 x 100 with their texts."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name, text in texts.items():
        image, label = root / "images" / f"{name}.png", root / "labels" / f"{name}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(image)
        label.write_text(text)


def shapes(part: Part) -> list[tuple[str, Any]]:
    names = {entry["id"]: entry["name"] for entry in part.content["categories"]}
    return [
        (names[entry["category_id"]], entry.get("segmentation", entry["bbox"]))
        for entry in part.content["annotations"]
    ]


def test_polygons_and_boxes(tmp_path: Path):
    write(tmp_path, {"train/a": f"{TRIANGLE}\n\n1 0.5 0.5 0.2 0.4\n", "val/b": TRIANGLE})
    reader = YoloSeg()
    assert reader.parts(tmp_path) == ["train", "val"]
    assert reader.sources(tmp_path) == [tmp_path]
    part = reader.read(tmp_path, "train")
    assert shapes(part) == [("cat", [[20, 10, 100, 10, 100, 50]]), ("dog", [80, 30, 40, 40])]
    assert part.content["images"][0]["file_name"] == "images/train/a.png"
    assert len(reader.read(tmp_path, "all").content["images"]) == 2
    assert not part.faults
    assert not part.changes


def test_an_umlaut_may_be_one_character_or_two(tmp_path: Path):
    write(tmp_path, {"train/a": TRIANGLE, "val/b": TRIANGLE})
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train/Zelle_\u00e4.png")
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train/Zelle_a\u0308.txt")
    part = YoloSeg().read(tmp_path, "train")
    assert shapes(part) == [("cat", [[20, 10, 100, 10, 100, 50]])]
    assert not part.faults
    assert not part.changes


LISTED = {
    "names by number": "train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n",
    "an absolute path elsewhere": "path: /nowhere/at/all\n" + YAML.partition("\n")[2],
    "as roboflow writes": "train: ../images/train\nval: ../images/val\nnc: 2\nnames: [cat, dog]",
    "a list of files": "train: train.txt\nval: [images/val]\nnames: [cat, dog]\n",
    "windows": "train: images\\train\nval: images\\val\nnames: [cat, dog]\n",
}


@pytest.mark.parametrize("name", LISTED)
def test_every_way_to_list_images(name: str, tmp_path: Path):
    write(tmp_path, {"train/a": TRIANGLE, "val/b": TRIANGLE}, LISTED[name])
    (tmp_path / "train.txt").write_text("./images/train/a.png\n\n")
    for part, image in (("train", "a"), ("val", "b")):
        read = YoloSeg().read(tmp_path, part)
        assert [one["file_name"] for one in read.content["images"]] == [
            f"images/{part}/{image}.png"
        ]
        assert len(shapes(read)) == 1
        assert not read.faults


def test_images_outside_of_the_folder(tmp_path: Path):
    write(tmp_path / "data", {"train/a": TRIANGLE, "val/b": TRIANGLE})
    yaml = f"path: {tmp_path / 'data'}\n" + YAML.partition("\n")[2]
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "my.yaml").write_text(yaml)
    reader = YoloSeg(yaml="my.yaml")
    part = reader.read(tmp_path / "conf", "val")
    assert part.images == tmp_path / "data"
    assert len(shapes(part)) == 1
    assert reader.sources(tmp_path / "conf")[1:] == [
        tmp_path / "data" / "images" / "train",
        tmp_path / "data" / "images" / "val",
    ]


def test_images_without_objects_are_named(tmp_path: Path):
    write(tmp_path, {"train/a": TRIANGLE, "train/b": " \n", "train/c": "", "val/d": ""})
    (tmp_path / "labels" / "train" / "c.txt").unlink()
    part = YoloSeg().read(tmp_path, "train")
    assert len(part.content["images"]) == 3
    assert not part.faults
    assert [(change.kind, change.what) for change in part.changes] == [
        ("image without objects", "labels/train/b.txt is empty"),
        ("image without objects", "there is no labels/train/c.txt"),
    ]


BAD = {
    "0 0.5 0.5": ("polygon under 3 points", "line 2: 2 numbers after the class"),
    "0 0.5 0.5 0.2": ("broken line", "3 numbers"),
    "0 0.1 0.1 0.2 0.2 0.3": ("broken line", "5 numbers"),
    "2 0.1 0.1 0.2 0.2": ("unknown class", "class 2, but the yaml has names 0 to 1"),
    "0.5 0.1 0.1 0.2 0.2": ("unknown class", "class 0.5"),
    "cat 0.1 0.1 0.2 0.2": ("broken line", "is not a list of numbers"),
    "0 10 10 50 10 50 50": ("coordinates outside of 0 to 1", "10: divide x by"),
    "0 nan 0.1 0.2 0.2": ("coordinates outside of 0 to 1", "nan"),
    "0 0.5 0.5 0 0.2": ("box without area", "width 0"),
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named_by_file_and_number(line: str, tmp_path: Path):
    write(tmp_path, {"train/a": f"{TRIANGLE}\n{line}\n", "val/b": TRIANGLE})
    part = YoloSeg().read(tmp_path, "train")
    (fault,) = part.faults
    assert (fault.kind, fault.image) == (BAD[line][0], "labels/train/a.txt")
    assert BAD[line][1] in fault.what
    assert len(shapes(part)) == 1


def test_files_that_do_not_match(tmp_path: Path):
    write(tmp_path, {"train/a": TRIANGLE, "val/b": TRIANGLE})
    (tmp_path / "labels" / "train" / "lost.txt").write_text(TRIANGLE)
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\ndog")
    (tmp_path / "images" / "train" / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "train" / "a.jpg")
    (tmp_path / "labels" / "train" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    part = YoloSeg().read(tmp_path, "train")
    assert [(fault.kind, fault.image) for fault in part.faults] == [
        ("two files for one image", "images/train/a.png"),
        ("text cannot be read", "labels/train/bad.txt"),
        ("text without an image", "labels/train/lost.txt"),
    ]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\n", "data.yaml has no names: list the classes in it"),
        ("names: []\n", "has no names"),
        ("- a\n", "has no names"),
        ("names: [cat, cat]\n", "a list of different names"),
        ("names: cat\n", "a list of different names"),
        ("names: {1: cat}\n", "has no name of class 0: number the names from 0"),
        ("names: [cat\n", "cannot be read as yaml"),
        ("names: [cat]\ntrain: nowhere\n", "names train: nowhere, which does not exist in"),
        ("names: [cat, dog]\n", "the images of 'train' in .* are none"),
    ],
)
def test_a_bad_yaml(yaml: str, message: str, tmp_path: Path):
    write(tmp_path, {"train/a": TRIANGLE}, yaml)
    with pytest.raises(UserError, match=message):
        YoloSeg().read(tmp_path, "train")


def test_one_yaml_is_needed(tmp_path: Path):
    with pytest.raises(UserError, match="must have one yaml with names, and has none"):
        YoloSeg().parts(tmp_path)
    write(tmp_path, {"train/a": TRIANGLE, "val/b": ""})
    (tmp_path / "other.yaml").write_text(YAML)
    with pytest.raises(UserError, match=r"has data.yaml, other.yaml: give data.reader.yaml=FILE"):
        YoloSeg().parts(tmp_path)
    assert YoloSeg(yaml="other.yaml").parts(tmp_path) == ["train", "val"]
