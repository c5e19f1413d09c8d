"""Annotations of other tools are named, with their reader."""

import json
from pathlib import Path
from typing import Any

import pytest
from coco_file import coco_dict, write_coco

from maskrcnn_lit.data.coco.formats import describe_file, describe_folder
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.errors import UserError

NAMED = [
    ("xml", "<annotation></annotation>", "Pascal VOC xml", "voc_xml"),
    ("txt", "0 0.5 0.5 0.2 0.2\n", "YOLO txt", "yolo_seg"),
    ("yaml", "train: images\nnames: [cat]\n", "yaml of a YOLO data set", "yolo_seg"),
]


@pytest.mark.parametrize(("suffix", "text", "name", "reader"), NAMED)
@pytest.mark.parametrize("where", ["file", "folder", "folders"])
def test_the_format_and_its_reader_are_named(
    suffix: str, text: str, name: str, reader: str, where: str, tmp_path: Path
):
    _, images = write_coco(tmp_path, coco_dict(2))
    labels = tmp_path / "labels"
    folder = labels / "train" if where == "folders" else labels
    folder.mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.{suffix}").write_text(text)
    given = labels / f"1.{suffix}" if where == "file" else labels
    with pytest.raises(UserError) as raised:
        read_index(given, images, "error", cache=tmp_path / "cache")
    message = str(raised.value)
    assert str(given) in message
    assert name in message
    assert "COCO json is required" in message
    assert f"data={reader} data.root=DIR" in message
    assert "\n" not in message


def test_a_folder_of_jsons(tmp_path: Path):
    assert describe_folder(tmp_path) == "give the path of the COCO json"
    (tmp_path / "a.json").write_text("{}")
    assert describe_folder(tmp_path) == "give the path of the COCO json"
    (tmp_path / "b.json").write_text("{}")
    described = describe_folder(tmp_path)
    assert "it has 2 jsons" in described
    assert "data=labelme data.root=DIR" in described


def test_what_is_a_json_by_its_name_is_not_described():
    assert describe_file("https://host/a/instances.json") is None
    assert describe_file("instances") is None


def test_a_coco_json_may_have_another_name(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(2))
    other = annotations.rename(tmp_path / "instances.txt")
    assert len(read_index(other, images, "error", cache=tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": "5", "shapes": [], "imagePath": "a.png"}, "read its folder with data=labelme"),
        ([{"id": 1, "data": {}, "annotations": []}], "export COCO from it"),
        (
            [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}],
            "these are COCO results: give the annotation file",
        ),
        ([], "images, annotations and categories: give the annotation file"),
    ],
)
def test_a_json_of_another_kind_is_named(content: Any, message: str, tmp_path: Path):
    _, images = write_coco(tmp_path, coco_dict(2))
    (tmp_path / "own.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        read_index(tmp_path / "own.json", images, "error", cache=tmp_path / "cache")
    assert message in str(raised.value)
