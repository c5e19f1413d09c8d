import json
from pathlib import Path
from typing import Any

import pytest
from coco_file import coco_dict

from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.parse import read_categories, read_images, read_instances
from maskrcnn_lit.errors import UserError


def test_the_keys_may_come_in_any_order():
    """Images before annotations, as in the official files, lets these be read one by one; the
    result is the same.
    """
    content = coco_dict()
    expected = read_instances(json.dumps(content).encode(), "a.json")
    turned = read_instances(json.dumps(dict(reversed(content.items()))).encode(), "a.json")
    assert expected.faults == turned.faults == [] and expected.images == turned.images
    assert expected.categories == turned.categories
    assert vars(expected.annotations) == vars(turned.annotations)
    assert len(expected.annotations.ids) == len(content["annotations"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_any_encoding_that_json_allows(encoding: str):
    content = coco_dict(2)
    content["images"][0]["file_name"] = "äß😀.jpg"
    found = read_instances(json.dumps(content, ensure_ascii=False).encode(encoding), "a.json")
    assert found.images[0].name == "äß😀.jpg"


def test_a_category_that_there_is_not_is_a_fault_with_its_annotation():
    content = coco_dict(3)
    content["annotations"][1]["category_id"] = 44
    found = read_instances(json.dumps(content).encode(), "a.json")
    assert found.faults == [
        Fault("unknown category", "02.jpg", 2, "category_id 44 is not in categories")
    ]
    assert list(found.annotations.labels).count(0) == 1


def test_real_annotations_are_read_whole(test_data: Path):
    file = test_data / "coco_mini/annotations/instances_val2017.json"
    content: dict[str, Any] = json.loads(file.read_bytes())
    found = read_instances(file.read_bytes(), str(file))
    assert found.faults == [] and list(found.annotations.ids) == [
        a["id"] for a in content["annotations"]
    ]
    assert list(found.annotations.areas) == [a["area"] for a in content["annotations"]]
    assert [image.url for image in found.images] == [
        image["coco_url"] for image in content["images"]
    ]


def test_image_entries():
    good = {"id": 1, "file_name": "a.jpg", "height": 5, "width": 6}
    entries = [
        good,
        {**good, "file_name": "b.jpg"},
        {**good, "id": 2, "height": 0},
        {"id": 3},
        {**good, "id": None},
        4,
    ]
    faults: list[Fault] = []
    assert [tuple(image) for image in read_images(entries, faults)] == [(1, 5, 6, "a.jpg", "")]
    assert [fault.kind for fault in faults] == ["duplicate image id"] + [
        "incomplete image entry"
    ] * 4
    assert faults[0].image == "b.jpg"


def test_categories_must_be_told_apart():
    table = read_categories([{"id": 9, "name": "b"}, {"id": 3.0, "name": "a"}], "some.json")
    assert [tuple(c) for c in table] == [(3, "a"), (9, "b")]
    with pytest.raises(UserError, match=r"two categories of some\.json have the same name a"):
        read_categories([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "some.json")
    with pytest.raises(UserError, match="same id 1"):
        read_categories([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "some.json")
    with pytest.raises(UserError, match="lacks a whole number as id, or a name"):
        read_categories([{"id": 1}], "some.json")
    with pytest.raises(UserError, match="has no categories"):
        read_categories([], "some.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds a list, not a COCO instances json"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        (
            '{"images": [], "info": {}}',
            "no list under 'annotations' and 'categories'; its keys are 'images', 'info'",
        ),
        ('{"images": {}, "annotations": [], "categories": []}', "no list under 'images'"),
        ("{}", "its keys are none"),
    ],
)
def test_what_is_no_coco_json(text: str, said: str):
    with pytest.raises(UserError, match=f"^some.json .*{said}"):
        read_instances(text.encode("latin-1"), "some.json")
