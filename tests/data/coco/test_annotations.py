import math
from array import array
from typing import Any

import pytest
from coco_file import coco_dict

from maskrcnn_lit.data.coco.annotations import ImageEntry, read_annotations
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.parse import read_images


def faults_of(change: Any, annotation: int = 0) -> list[Fault]:
    content = coco_dict(3)
    entries = content["annotations"]
    entries[annotation] = entries[annotation] | change if isinstance(change, dict) else change
    faults: list[Fault] = []
    columns = read_annotations(iter(entries), read_images(content["images"], faults), faults)
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


@pytest.mark.parametrize("entry", [None, 7, "text", [1]])
def test_what_is_no_object_is_a_fault(entry: Any):
    assert faults_of(entry) == [Fault("incomplete annotation", "?", None, str(entry))]


def test_columns_are_the_annotations_in_the_order_of_the_file():
    images = [ImageEntry(9, 40, 50, "a.jpg"), ImageEntry(3, 40, 50, "b.jpg")]
    common = {"bbox": [1, 2, 4, 4], "category_id": 8}
    entries = [
        {
            **common,
            "id": 1,
            "image_id": 3,
            "area": 5.5,
            "segmentation": [[1, 2, 5, 2, 5, 6], [1, 2, 1, 6, 5, 6]],
        },
        {
            **common,
            "id": 2,
            "image_id": 9,
            "iscrowd": 1,
            "segmentation": {"size": [40, 50], "counts": [42, 4, 1954]},
        },
    ]
    columns = read_annotations(entries, images, [])
    assert columns.images == array("q", [1, 0]) and columns.labels == array("q", [8, 8])
    assert columns.crowd == array("b", [0, 1]) and columns.areas == array(
        "d", [5.5, 4.0]
    )  # without one: counted
    assert columns.coordinate_ends == array("q", [6, 12]) and columns.part_ends == array(
        "q", [2, 2]
    )
    assert columns.run_ends == array("q", [0, 3]) and columns.runs == array("I", [42, 4, 1954])
