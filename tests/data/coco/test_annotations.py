import math
from array import array
from typing import Any

import numpy as np
import pytest
from coco_file import coco_dict
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.annotations import (
    Columns,
    ImageEntry,
    label_annotations,
    read_annotations,
)
from maskrcnn_lit.data.coco.categories import Category
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
        ({"bbox": [True, 2, 3, 4]}, "incomplete annotation"),
        ({"bbox": "1234"}, "incomplete annotation"),
        ({"bbox": [1, 2, 10**400, 5]}, "box not finite"),
        ({"bbox": [1, 2, 1e-300, 5]}, "box without area"),
        ({"bbox": [94.9999999, 2, 9, 5]}, "box outside of the image"),
        ({"bbox": [0.1, 0.1, 0.4, 0.4]}, "coordinates from 0 to 1"),
        ({"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]}, "coordinates from 0 to 1"),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "broken segmentation"),
        ({"segmentation": [[1, 2, 3, 4, "5", 6]]}, "broken segmentation"),
        ({"segmentation": [[1e9, 2, 1e9, 4, 2e9, 6]]}, "polygon outside of the image"),
        (
            {"segmentation": {"size": [70, 95], "counts": [2**62] * 4 + [6650]}},
            "broken segmentation",
        ),
        ({"iscrowd": "maybe"}, "incomplete annotation"),
        ({"ignore": [1]}, "incomplete annotation"),
        ({"category_id": None}, "incomplete annotation"),
        ({"image_id": 9}, "unknown image"),
        ({"bbox": [1, 2, 0, 5]}, "box without area"),
        ({"bbox": [1, 2, -4, 5]}, "negative box"),
        ({"bbox": [1, 2, math.inf, 5]}, "box not finite"),
        ({"bbox": [-9, 2, 9, 5]}, "box outside of the image"),
        ({"segmentation": [], "bbox": None}, "no segmentation"),
        ({"segmentation": None, "bbox": []}, "no segmentation"),
        ({"segmentation": "polygon"}, "broken segmentation"),
        ({"segmentation": [], "bbox": [0.1, 0.1, 0.4, 0.4]}, "coordinates from 0 to 1"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon under 3 points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "broken segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "broken segmentation"),
        ({"segmentation": [1, 2, 3, "4", 5, 6]}, "broken segmentation"),
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
    assert fault.annotation == 1


@pytest.mark.parametrize("entry", [None, 7, "text", [1]])
def test_what_is_no_object_is_a_fault(entry: Any):
    assert faults_of(entry) == [Fault("incomplete annotation", "?", None, repr(entry))]


def read_changed(*changes: dict[str, Any], drop: str = "") -> tuple[Columns, list[Fault]]:
    """The first annotations of a sound json, of 70 x 95 pixels, changed one by one."""
    content = coco_dict(3)
    entries = content["annotations"]
    for entry, change in zip(entries, changes, strict=False):
        entry.update(change)
        entry.pop(drop, None)
    faults: list[Fault] = []
    told: list[Fault] = []
    columns = read_annotations(entries, read_images(content["images"], faults), faults, told)
    assert faults == []
    return columns, told


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 0, 0], [0, 1, 2]),
        ([2, 2, 1], [2, 3, 1]),
        ([None, 1, None], [2, 1, 3]),
        (["5", "x", 5.0], [5, 1, 2]),
        ([2**64, [1], True], [1, 2, 3]),
    ],
)
def test_ids_that_are_missing_or_repeated_lose_no_object(ids: list[Any], expected: list[int]):
    columns, told = read_changed(*({"id": number} for number in ids))
    assert columns.ids.tolist() == expected
    numbered = [fault.annotation for fault in told if "annotation id" in fault.kind]
    assert numbered == [
        new
        for old, new in zip(ids, expected, strict=True)
        if str(old) != str(new) and not (isinstance(old, float) and old == new)
    ]


@pytest.mark.parametrize(
    ("change", "crowd"),
    [
        ({"iscrowd": "0"}, 0),
        ({"iscrowd": "False"}, 0),
        ({"iscrowd": None}, 0),
        ({"iscrowd": False}, 0),
        ({"iscrowd": "1"}, 1),
        ({"iscrowd": True}, 1),
        ({"iscrowd": 1.0}, 1),
        ({"iscrowd": 0, "ignore": 1}, 1),
        ({"iscrowd": 0, "ignore": "true"}, 1),
        ({"iscrowd": 0, "ignore": 0}, 0),
    ],
)
def test_flags_are_read_as_they_are_meant(change: dict[str, Any], crowd: int):
    columns, told = read_changed(change)
    assert columns.crowd[0] == crowd
    quoted = any(isinstance(value, str) for value in change.values())
    ignored = bool(change.get("ignore"))
    assert [fault.kind for fault in told] == ["ignored region"] * ignored + [
        "number in quotes"
    ] * quoted


def test_a_missing_box_is_that_of_the_mask():
    polygon = {"bbox": None, "segmentation": [[10, 5, 30, 5, 30.5, 25], [40, 9, 41, 9, 41, 10]]}
    mask = np.zeros((70, 95), np.uint8)
    mask[7:20, 11:30] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    columns, told = read_changed(polygon)
    assert columns.boxes[:4].tolist() == [10, 5, 31, 20]
    assert [(fault.kind, fault.annotation) for fault in told] == [("no box", 1)]
    images = [ImageEntry(1, 70, 95, "a.jpg")]
    whole = {"size": [70, 95], "counts": [3 * 70 + 60, 20, 70 * 91 - 10]}  # over two columns
    for shape, expected in (
        (rle | {"counts": rle["counts"].decode()}, [11, 7, 19, 13]),
        (whole, [3, 0, 2, 70]),
    ):
        entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": shape}
        assert read_annotations([entry], images, []).boxes.tolist() == expected


@pytest.mark.parametrize("missing", [None, [], {}, "", [[]], [[], []]])
def test_without_an_outline_an_object_is_its_box(missing: Any):
    columns, changes = read_changed({"bbox": [10, 10, 20, 30], "segmentation": missing})
    assert columns.boxes[:4].tolist() == [10, 10, 20, 30]
    assert columns.part_ends[0] == 0
    assert changes == []


def test_one_bad_part_does_not_lose_the_object():
    good = [10.0, 10, 50, 10, 50, 40]
    for bad in (
        [11, 11, 12, 12],
        [1, 2, 3, 4, 5],
        [1, 2, math.nan, 4, 5, 6],
        "part",
        None,
        [[1, 2]],
    ):
        columns, told = read_changed({"segmentation": [good, bad]})
        assert columns.coordinates[:6].tolist() == good
        assert columns.part_ends[0] == 1
        assert [fault.kind for fault in told] == ["part of an outline left out"]


def test_coordinates_of_any_size_are_bounded():
    for far in (1e9, -1e9, 1e300, -1e308):
        columns, told = read_changed({"segmentation": [[10, 10, 30, far, 40, 10]]})
        values = np.frombuffer(columns.coordinates)[: columns.coordinate_ends[0]]
        assert np.abs(values).max() <= 3 * 95
        assert {fault.kind for fault in told} == {"coordinates far outside of the image"}
    columns, told = read_changed({"bbox": [1, 2, 1e308, 1e308]})
    assert columns.boxes[2:4].tolist() == [1e7 - 1, 1e7 - 2]
    assert [fault.kind for fault in told] == ["coordinates far outside of the image"]


def test_an_area_that_no_mask_can_have_is_that_of_the_mask():
    square = {"bbox": [10, 10, 20, 10], "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]}
    for area in (-200, 0, 1e300, 10**400, math.nan, "wide", [1], True, -0.0):
        columns, told = read_changed(square | {"area": area})
        assert columns.areas[0] == 200
        assert [fault.kind for fault in told] == ["impossible area"]
    for area in (1, 150.5, 6650):
        assert read_changed(square | {"area": area})[0].areas[0] == area
        assert read_changed(square | {"area": area})[1] == []


def test_the_pixels_of_a_whole_object_are_those_of_its_amodal_mask_or_as_given():
    square = {"bbox": [10, 10, 20, 10], "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]}
    whole = {"amodal_segmentation": [[10, 10, 30, 10, 30, 25, 10, 25]]}
    for more, pixels in (
        (whole, 300.0),
        (whole | {"amodal_area": 7}, 300.0),
        ({"amodal_area": 450.5}, 450.5),
        ({}, 0.0),
        ({"amodal_area": 0}, 0.0),
        ({"amodal_area": "wide"}, 0.0),
        ({"amodal_segmentation": []}, 0.0),
    ):
        columns, told = read_changed(square | more)
        assert columns.amodal_areas[0] == pixels
        assert told == []
    columns, told = read_changed(square | {"amodal_segmentation": {"size": [1, 1], "counts": "1"}})
    assert set(columns.amodal_areas) == {0}
    assert [fault.kind for fault in told] == ["broken amodal mask"]


def test_numbers_in_quotes_are_numbers():
    columns, told = read_changed(
        {"image_id": "2", "category_id": "3", "bbox": ["1", 2, "3.5", 4], "area": "9.5", "id": "8"}
    )
    assert columns.boxes[:4].tolist() == [1, 2, 3.5, 4]
    assert (columns.images[0], columns.labels[0], columns.areas[0], columns.ids[0]) == (
        1,
        3,
        9.5,
        8,
    )
    assert {fault.what for fault in told} == {"image_id, category_id, area, bbox", "id"}


def test_category_ids_that_are_text():
    columns, _ = read_changed(
        {"category_id": "cat"}, {"category_id": "dog"}, {"category_id": "cat"}
    )
    images = read_images(coco_dict(3)["images"], [])
    faults: list[Fault] = []
    categories = (Category(1, "a"), Category(2, "b"))
    label_annotations(columns, categories, images, faults, {"cat": 2})
    assert columns.labels.tolist() == [2, 0, 2]
    assert [fault.what for fault in faults] == ["category_id 'dog' is not in categories"]


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
    assert columns.images == array("q", [1, 0])
    assert columns.labels == array("q", [8, 8])
    assert columns.crowd == array("b", [0, 1])
    assert columns.areas == array("d", [5.5, 4.0])  # without one: counted
    assert columns.coordinate_ends == array("q", [6, 12])
    assert columns.part_ends == array("q", [2, 2])
    assert columns.run_ends == array("q", [0, 3])
    assert columns.runs == array("I", [42, 4, 1954])
