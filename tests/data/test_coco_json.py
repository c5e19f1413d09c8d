import json
import math
from pathlib import Path
from typing import Any

import pytest
from coco_file import coco_dict

from maskrcnn_lit.data.coco_json import Fault, load_json, read_annotations, read_categories, read_images
from maskrcnn_lit.errors import UserError

PATH = Path("some.json")


def faults_of(change: dict[str, Any], annotation: int = 0) -> list[Fault]:
    content = coco_dict(3)
    content["annotations"][annotation].update(change)
    faults: list[Fault] = []
    images = read_images(content["images"], faults)
    columns = read_annotations(content["annotations"], images, read_categories(content["categories"], PATH), faults)
    assert len(columns.ids) == 3 - len(faults)
    return faults


def test_a_sound_json_has_no_faults():
    assert faults_of({}) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [1, 2, 3]}, "incomplete annotation"),
        ({"bbox": None}, "incomplete annotation"),
        ({"bbox": "1234"}, "incomplete annotation"),
        ({"id": "7"}, "incomplete annotation"),
        ({"id": 2**64}, "incomplete annotation"),
        ({"category_id": None}, "incomplete annotation"),
        ({"category_id": 44}, "unknown category"),
        ({"image_id": 9}, "unknown image"),
        ({"bbox": [1, 2, 0, 5]}, "box without area"),
        ({"bbox": [1, 2, -4, 5]}, "negative box"),
        ({"bbox": [1, 2, math.inf, 5]}, "box not finite"),
        ({"bbox": [-9, 2, 9, 5]}, "box outside of the image"),
        ({"segmentation": []}, "no segmentation"),
        ({"segmentation": None}, "no segmentation"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon under 3 points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "broken segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "broken segmentation"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "broken segmentation"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "RLE of another size"),
        ({"segmentation": {"size": [70, 95], "counts": [70]}}, "broken segmentation"),
        ({"segmentation": {"size": [70, 95], "counts": [7000, -350]}}, "broken segmentation"),
        ({"segmentation": {"size": [70, 95], "counts": "]["}}, "broken segmentation"),
        ({"segmentation": {"size": [70, 95]}}, "broken segmentation"),
    ],
)
def test_each_fault_is_told_with_its_annotation(change: dict[str, Any], kind: str):
    (fault,) = faults_of(change)
    assert fault.kind == kind
    assert fault.annotation == (None if "id" in change else 1)


def test_of_two_with_one_id_the_first_is_kept():
    (fault,) = faults_of({"id": 1}, annotation=2)
    assert fault == Fault("duplicate annotation id", "02.jpg", 1, "an earlier annotation has it")


def test_image_entries():
    good = {"id": 1, "file_name": "a.jpg", "height": 5, "width": 6}
    entries = [good, {**good, "file_name": "b.jpg"}, {**good, "id": 2, "height": 0}, {"id": 3}, {**good, "id": None}, 4]
    faults: list[Fault] = []
    assert [tuple(image) for image in read_images(entries, faults)] == [(1, 5, 6, "a.jpg")]
    assert [fault.kind for fault in faults] == ["duplicate image id"] + ["incomplete image entry"] * 4
    assert faults[0].image == "b.jpg"


def test_categories_must_be_told_apart():
    table = read_categories([{"id": 9, "name": "b"}, {"id": 3.0, "name": "a"}], PATH)
    assert [tuple(c) for c in table] == [(3, "a"), (9, "b")]
    with pytest.raises(UserError, match=r"two categories of some\.json have the same name a"):
        read_categories([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], PATH)
    with pytest.raises(UserError, match="same id 1"):
        read_categories([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], PATH)
    with pytest.raises(UserError, match="lacks a whole number as id, or a name"):
        read_categories([{"id": 1}], PATH)
    with pytest.raises(UserError, match="has no categories"):
        read_categories([], PATH)


def test_what_is_no_coco_json(tmp_path: Path):
    file = tmp_path / "a.json"
    for text, said in (
        ("[]", "holds a list, not a COCO instances json"),
        ("{", "cannot be read as JSON"),
        (json.dumps({"images": [], "info": {}}), "no list under 'annotations' and 'categories'; its keys are 'images'"),
        (json.dumps({"images": {}, "annotations": [], "categories": []}), "no list under 'images'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            load_json(file)
    with pytest.raises(UserError, match=r"no annotation file .*gone\.json"):
        load_json(tmp_path / "gone.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_json(tmp_path)
