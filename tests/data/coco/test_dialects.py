"""Small jsons in the true form of annotation tools: what is read, and what is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.errors import UserError

SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
BOX = [2.0, 3.0, 10.0, 6.0]
ATTRIBUTES = {"occluded": False, "rotation": 0.0}
RUNS = [3 + 2 * 30, *[6, 24] * 9, 6, 30 * 40 - (3 + 2 * 30) - 9 * 30 - 6]  # the square, as runs


def entry(number: int = 1, **more: Any) -> dict[str, Any]:
    given = {"id": number, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "bbox": BOX}
    return {**given, "area": 60.0, "iscrowd": 0, **more}


def image(name: str = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 1, "width": 40, "height": 30, "file_name": name, **more}


CAT = {"id": 1, "name": "cat", "supercategory": ""}

CVAT = {
    "licenses": [{"name": "", "id": 0, "url": ""}],
    "info": {"contributor": "", "date_created": "", "year": ""},
    "categories": [CAT],
    "images": [image("job_7/sub/a.jpg", license=0, flickr_url="", coco_url="", date_captured=0)],
    "annotations": [
        entry(1, attributes=ATTRIBUTES),
        entry(2, attributes=ATTRIBUTES, segmentation={"counts": RUNS, "size": [30, 40]}),
    ],
}
LABEL_STUDIO = {
    "images": [{"width": 40, "height": 30, "id": 0, "file_name": "images/f00d-a.jpg"}],
    "categories": [{"id": 0, "name": "cat"}],
    "annotations": [entry(0, image_id=0, category_id=0, ignore=0, area=60)],
    "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
}
ROBOFLOW = {
    "info": {"year": "2026", "version": "1", "description": "Exported from roboflow.com"},
    "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC"}],
    "categories": [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
    ],
    "images": [image("a_jpg.rf.0123.jpg", license=1, extra={"name": "a.jpg"})],
    "annotations": [entry(1, bbox=[2, 3, 10, 6], area=60)],
}
VIA = {
    "info": {"year": 2026, "description": "VIA project exported to COCO format"},
    "images": [image("a.jpg", width=0, height=0, flickr_url="a.jpg", coco_url="a.jpg")],
    "annotations": [entry(1, segmentation=SQUARE, category_id="1", area=60)],
    "licenses": [{"id": 0, "name": "Unknown License", "url": ""}],
    "categories": [{"supercategory": "type", "id": "1", "name": "cat"}],
}
BARE = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "cat"}]}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in entry().items() if key not in keys}


def rle_text() -> dict[str, Any]:
    rle = coco_mask.frPyObjects({"counts": RUNS, "size": [30, 40]}, 30, 40)
    return {"size": [30, 40], "counts": rle["counts"].decode()}


# name -> the json, the file on the disk, and what is said of each correction
DIALECTS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "CVAT": (CVAT, "job_7/sub/a.jpg", []),
    "Label Studio": (LABEL_STUDIO, "images/f00d-a.jpg", []),
    "Label Studio, uploads": (
        LABEL_STUDIO
        | {"images": [{"width": 40, "height": 30, "id": 0, "file_name": "/data/upload/1/x-a.jpg"}]},
        "x-a.jpg",
        ["file name: the file is x-a.jpg"],
    ),
    "Label Studio, Windows": (
        LABEL_STUDIO
        | {
            "images": [
                {"width": 40, "height": 30, "id": 0, "file_name": "..\\..\\media\\upload\\1\\a.jpg"}
            ]
        },
        "upload/1/a.jpg",
        ["file name: the file is upload/1/a.jpg"],
    ),
    "an absolute path of Windows": (
        LABEL_STUDIO
        | {"images": [{"width": 40, "height": 30, "id": 0, "file_name": "C:\\Users\\x\\b\\a.jpg"}]},
        "b/a.jpg",
        ["file name: the file is b/a.jpg"],
    ),
    "a path of a Windows share, with an umlaut as macOS writes it": (
        LABEL_STUDIO
        | {
            "images": [
                {"width": 40, "height": 30, "id": 0, "file_name": "\\\\nas\\x\\Zelle_a\u0308.jpg"}
            ]
        },
        "Zelle_\u00e4.jpg",
        ["file name: the file is Zelle_\u00e4.jpg"],
    ),
    "Roboflow": (
        ROBOFLOW,
        "a_jpg.rf.0123.jpg",
        ["super-category without annotations: id 0 only groups other categories: left out"],
    ),
    "VIA": (
        VIA,
        "a.jpg",
        [
            "no image size: the file gives 40 x 30",
            "polygon without a list: 8 numbers are one polygon",
            "number in quotes: category_id",
        ],
    ),
    "nothing but outlines": (
        BARE | {"annotations": [without("area", "iscrowd", "bbox", "id")]},
        "a.jpg",
        [
            "no image size: the file gives 40 x 30",
            "no box: the mask gives [2.0, 3.0, 10.0, 6.0]",
            "no annotation id: its id is None; it is 1 here",
        ],
    ),
    "RLE as text": (
        BARE | {"images": [image()], "annotations": [entry(segmentation=rle_text())]},
        "a.jpg",
        [],
    ),
    "a segmentation in quotes": (
        BARE | {"images": [image()], "annotations": [entry(segmentation=json.dumps(rle_text()))]},
        "a.jpg",
        ["segmentation in quotes: it is JSON in text"],
    ),
}


def read(
    folder: Path, content: dict[str, Any], name: str, on_bad: Any = "error"
) -> AnnotationIndex:
    path = folder / "export" / name
    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(path)
    (folder / "a.json").write_text(json.dumps(content))
    return read_index(folder / "a.json", folder / "export", on_bad, cache=folder / "cache")


@pytest.mark.parametrize("tool", DIALECTS)
def test_an_export_is_read_and_what_is_filled_in_is_said(tool: str, tmp_path: Path):
    content, name, said = DIALECTS[tool]
    index = read(tmp_path, content, name)
    assert [f"{change.kind}: {change.what}" for change in index.changes] == said
    assert [category.name for category in index.categories] == ["cat"]
    assert index.decode(0)[0].shape == (30, 40, 3)
    found = index.annotations(0)
    assert len(found["ids"]) == len(content["annotations"])
    assert not found["crowd"].any()
    for j in range(len(found["ids"])):
        assert coco_mask.area(index.rle(0, j)) == 60
        assert found["areas"][j] == 60
        assert found["boxes"][j].tolist() == [2, 3, 12, 9]


def test_a_super_category_with_annotations_or_of_its_own_stays(tmp_path: Path):
    used = ROBOFLOW | {"annotations": [entry(1), entry(2, category_id=0)]}
    assert len(read(tmp_path / "used", used, "a_jpg.rf.0123.jpg").categories) == 2
    person = [{"id": 0, "name": "pets", "supercategory": "pets"}, ROBOFLOW["categories"][1]]
    index = read(tmp_path / "own", ROBOFLOW | {"categories": person}, "a_jpg.rf.0123.jpg")
    assert len(index.categories) == 2


def test_a_name_that_leaves_the_folder_is_never_followed(tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(b"")
    content = BARE | {"images": [image("../secret.jpg")], "annotations": [entry()]}
    with pytest.raises(UserError, match="file name outside of the folder"):
        read(tmp_path, content, "a.jpg")
