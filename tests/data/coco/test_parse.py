import json
from pathlib import Path
from typing import Any

import pytest
from coco_file import coco_dict

from maskrcnn_lit.data.coco.annotations import ImageEntry
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.parse import Instances, read_categories, read_images, read_instances
from maskrcnn_lit.errors import UserError


def test_the_keys_may_come_in_any_order():
    """Images before annotations, as in the official files, lets these be read one by one; the
    result is the same.
    """
    content = coco_dict()
    expected = read_instances(json.dumps(content).encode(), "a.json")
    turned = read_instances(json.dumps(dict(reversed(content.items()))).encode(), "a.json")
    assert expected.faults == turned.faults == []
    assert expected.images == turned.images
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
    assert found.faults == []
    assert list(found.annotations.ids) == [a["id"] for a in content["annotations"]]
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
    assert read_images(entries, faults) == [ImageEntry(1, 5, 6, "a.jpg")]
    assert [fault.kind for fault in faults] == ["duplicate image id"] + [
        "incomplete image entry"
    ] * 4
    assert faults[0].image == "b.jpg"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"height": 2**40}, "image too large"),
        ({"height": 50_000, "width": 50_000}, "image too large"),
        ({"height": "tall"}, "incomplete image entry"),
        ({"height": 10**400}, "incomplete image entry"),
        ({"width": None}, "incomplete image entry"),
        ({"width": True}, "incomplete image entry"),
        ({"file_name": "\ud800.jpg"}, "incomplete image entry"),
        ({"file_name": ["a.jpg"]}, "incomplete image entry"),
        ({"id": [1]}, "incomplete image entry"),
    ],
)
def test_an_image_entry_that_cannot_be_used(change: dict[str, Any], kind: str):
    faults: list[Fault] = []
    assert (
        read_images([{"id": 1, "file_name": "a.jpg", "height": 5, "width": 6} | change], faults)
        == []
    )
    assert [fault.kind for fault in faults] == [kind]
    assert str(faults).encode()


def read(content: dict[str, Any]) -> Instances:
    return read_instances(json.dumps(content).encode(), "a.json")


def test_ids_that_are_text_are_numbered():
    content = coco_dict(4)
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for category in content["categories"]:
        category["id"] = f"class {category['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
        annotation["category_id"] = f"class {annotation['category_id']}"
    found, plain = read(content), read(coco_dict(4))
    assert found.faults == []
    assert found.annotations.images == plain.annotations.images
    assert found.annotations.labels == plain.annotations.labels
    assert [image.id for image in found.images] == [1, 2, 3, 4]
    assert [fault.kind for fault in found.changes] == ["id that is text"] * 7


def test_a_category_twice_of_which_one_is_used():
    content = coco_dict(6)
    group = {"id": 0, "name": "ant", "supercategory": "none"}
    content["categories"].insert(0, group)
    found, plain = read(content), read(coco_dict(6))
    assert found.categories == plain.categories
    assert found.annotations.labels == plain.annotations.labels
    assert [fault.kind for fault in found.changes] == ["category twice"]
    content["annotations"][0]["category_id"] = 0
    with pytest.raises(UserError, match=r"two categories of a\.json have the same name ant"):
        read(content)


def test_an_image_without_a_size_is_measured():
    content = coco_dict(3)
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    for image in content["images"]:
        del image["height"]
    data = json.dumps(content).encode()
    found = read_instances(data, "a.json", sizes.get)
    assert found.faults == []
    assert [image[1:4] for image in found.images] == [(*sizes[n], n) for n in sizes]
    assert found.measured == [(name, *size) for name, size in sizes.items()]
    assert [fault.kind for fault in found.changes] == ["no image size"] * 3
    lost = read_instances(data, "a.json", {"01.jpg": (70, 95)}.get)
    assert [image.name for image in lost.images] == ["01.jpg"]
    assert lost.measured == [("00.jpg", 0, 0), ("01.jpg", 70, 95), ("02.jpg", 0, 0)]
    assert {fault.what for fault in lost.faults if fault.annotation is None} == {
        "no height and width, and no image file to measure them"
    }


def test_categories_must_be_told_apart():
    def table(*entries: Any, used: set[int | str] = frozenset()) -> tuple[Category, ...]:
        return read_categories(list(entries), "some.json", used, [])[0]

    first, second = {"id": 9, "name": "b"}, {"id": 3.0, "name": "a"}
    assert [tuple(c) for c in table(first, second)] == [(3, "a"), (9, "b")]
    assert [tuple(c) for c in table(first, {"id": "x", "name": "c"})] == [(9, "b"), (1, "c")]
    assert table(first, first) == (Category(9, "b"),)
    with pytest.raises(UserError, match=r"two categories of some\.json have the same name a"):
        table({"id": 1, "name": "a"}, {"id": 2, "name": "a"}, used={1, 2})
    with pytest.raises(UserError, match="same id 1"):
        table({"id": 1, "name": "a"}, {"id": 1, "name": "b"})
    for bad in ({"id": 1}, {"name": "a"}, {"id": 1, "name": None}, {"id": 1, "name": "\ud800"}, 7):
        with pytest.raises(UserError, match="has no integer id or no name"):
            table(bad)
    with pytest.raises(UserError, match="has no categories"):
        table()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "contains a list, but a COCO instances json"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        ("1" * 5000, "cannot be read as JSON"),
        ('{"images": ' + "1" * 5000 + "}", "cannot be read as JSON"),
        ("7", "contains a int, but a COCO instances json"),
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


DEEP = 200_000


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("key", [None, "images", "annotations", "categories", "info"])
def test_a_json_that_is_nested_deeply_is_one_sentence(opening: str, key: str | None):
    closing = opening.replace("[", "]").replace('{"a":', "}")[::-1]
    for deep in (opening * DEEP, opening * DEEP + "1" + closing * DEEP):
        text = deep
        if key is not None:
            others = ("images", "annotations", "categories")
            rest = "".join(f', "{name}": []' for name in others if name != key)
            text = f'{{"{key}": {deep}{rest}}}'
        with pytest.raises(UserError) as raised:
            read_instances(text.encode(), "a.json")
        assert len(str(raised.value)) < 500
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("depth", [100, 400, 900])
@pytest.mark.parametrize("key", ["segmentation", "bbox", "category_id", "id", "image_id", "area"])
def test_a_value_that_is_nested_less_deeply_is_a_fault(depth: int, key: str):
    deep: Any = [1]
    for _ in range(depth):
        deep = [deep]
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 1, 5, 5],
        "area": 25,
        "segmentation": [[1, 1, 6, 1, 6, 6]],
    }
    text = json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
            "annotations": [entry | {key: deep}],
            "categories": [{"id": 1, "name": "a"}],
        }
    )
    found = read_instances(text.encode(), "a.json")
    (fault,) = [*found.faults, *found.changes]
    assert len(fault.what) < 300
