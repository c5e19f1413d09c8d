"""Chosen, renamed and merged classes, against the json written by hand with these classes."""

import copy
from pathlib import Path
from typing import Any

import pytest
from coco_file import coco_dict, small_index, write_coco

from maskrcnn_lit.data.coco.classes import describe_choice, read_choice
from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.stores.mask_crops import MaskCrops
from maskrcnn_lit.errors import UserError


def chosen(folder: Path, value: Any, **options: Any) -> AnnotationIndex:
    """The small set (classes zebra 1, ant 2, mole 3) with `data.classes=value`."""
    return small_index(folder, classes=read_choice(value), **options)


def by_hand(folder: Path, names: dict[int, tuple[int, str] | None]) -> AnnotationIndex:
    """The small set with the classes of `names`: id -> id and name, None: left out."""
    content = copy.deepcopy(coco_dict())
    kept = {number: new for number, new in names.items() if new is not None}
    content["categories"] = [{"id": n, "name": name} for n, name in sorted(set(kept.values()))]
    content["annotations"] = [
        entry | {"category_id": kept[entry["category_id"]][0]}
        for entry in content["annotations"]
        if entry["category_id"] in kept
    ]
    return read_index(*write_coco(folder, content), "error")


CASES: list[tuple[Any, dict[int, tuple[int, str] | None]]] = [
    (["ant", "mole"], {1: None, 2: (2, "ant"), 3: (3, "mole")}),
    (["mole"], {1: None, 2: None, 3: (3, "mole")}),
    ({"ant": "insect"}, {1: (1, "zebra"), 2: (2, "insect"), 3: (3, "mole")}),
    ({"zebra": "mammal", "mole": "mammal"}, {1: (1, "mammal"), 2: (2, "ant"), 3: (1, "mammal")}),
    ({"mole": "ant"}, {1: (1, "zebra"), 2: (2, "ant"), 3: (2, "ant")}),
    ({"mole": None}, {1: (1, "zebra"), 2: (2, "ant"), 3: None}),
    (["ant", {"zebra": "mammal"}], {1: (1, "mammal"), 2: (2, "ant"), 3: None}),
    ({"zebra": "ant", "ant": "zebra"}, {1: (1, "ant"), 2: (2, "zebra"), 3: (3, "mole")}),
]


@pytest.mark.parametrize(("value", "names"), CASES)
def test_it_is_the_json_with_these_classes(tmp_path: Path, value: Any, names: Any):
    index = chosen(tmp_path / "chosen", value)
    expected = by_hand(tmp_path / "by_hand", names)
    assert index.categories == expected.categories
    assert index.coco_ground_truth() == expected.coco_ground_truth()


def test_the_order_of_the_names_does_not_matter(tmp_path: Path):
    one = chosen(tmp_path, ["mole", "ant"])
    other = chosen(tmp_path, ["ant", "mole"])
    assert one.packed.key == other.packed.key


def test_masks_are_stored_apart_from_those_of_other_classes(tmp_path: Path):
    whole, part = small_index(tmp_path), chosen(tmp_path, ["mole"])
    for index in (whole, part):
        crops = MaskCrops(index, 28, tmp_path / "cache")
        boxes = index.annotations(5)["boxes"]
        assert len(crops.of(5, boxes)[0]) == len(boxes)
    assert whole.packed.key != part.packed.key


def test_images_without_a_chosen_object_are_empty(tmp_path: Path):
    assert "01.jpg" in chosen(tmp_path, ["mole"]).file_names  # its object is an ant
    assert "01.jpg" not in chosen(tmp_path, ["mole"], keep_empty=False).file_names


def test_what_is_changed_is_counted(tmp_path: Path):
    content = coco_dict()
    index = chosen(tmp_path, ["ant", {"zebra": "mammal"}])
    moles = sum(entry["category_id"] == 3 for entry in content["annotations"])
    assert describe_choice(index.packed) == [
        f"data.classes leaves out {moles} objects of 1 class (mole {moles})",
        "data.classes: zebra -> mammal",
    ]
    assert describe_choice(small_index(tmp_path).packed) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must name at least one class"),
        ({}, "must name at least one class"),
        ("ant", r"data\.classes='ant' must name"),
        (5, r"data\.classes=5 must name"),
        ([True], "has True instead of a name"),
        ([["ant"]], r"has \['ant'\] instead of a name"),
        (["ant", ""], "has '' instead of a name"),
        ([None], "has None instead of a name"),
        (["ant", "ant"], "names ant twice"),
        (["ant", {"ant": "bee"}], "names ant twice"),
        ([{"ant": None}], "leaves out every class"),
    ],
)
def test_what_is_no_choice(value: Any, message: str):
    with pytest.raises(UserError, match=message):
        read_choice(value)


def test_names_may_be_numbers_in_the_config():
    choice = read_choice([7, {8: 9}])
    assert choice is not None
    assert choice.names == {"7": "7", "8": "9"}


def test_a_choice_that_leaves_nothing_names_what_there_is(tmp_path: Path):
    with pytest.raises(UserError, match=r"has Zebra, .* ant, mole, zebra; did you mean zebra\?"):
        chosen(tmp_path, ["Zebra"])
    with pytest.raises(UserError, match=r"leaves out every class of .*name one to keep"):
        chosen(tmp_path, {"zebra": None, "ant": None, "mole": None})


def faulty_moles() -> dict[str, Any]:
    """The small set; of its moles the first has no area, the second an id that is text, and an ant
    has a segmentation that is a number.
    """
    content = coco_dict()
    first, second, *_ = (a for a in content["annotations"] if a["category_id"] == 3)
    first["bbox"][2] = 0
    second["ignore"] = "1"
    ant = next(a for a in content["annotations"] if a["category_id"] == 2)
    ant["segmentation"] = 7
    return content


def test_faults_of_classes_that_are_left_out_are_counted_apart(tmp_path: Path):
    annotations, images = write_coco(tmp_path, faulty_moles())
    whole = read_index(annotations, images, "skip", cache=tmp_path / "cache")
    assert [fault.kind for fault in whole.faults] == ["broken segmentation", "box without area"]
    assert {change.kind for change in whole.changes} == {"ignored region", "number in quotes"}
    without = read_choice({"mole": None})
    index = read_index(annotations, images, "skip", classes=without, cache=tmp_path / "cache")
    assert [fault.kind for fault in index.faults] == ["broken segmentation"]
    assert index.changes == ()
    (line,) = describe_choice(index.packed)
    assert line.endswith(") and 1 faulty annotation of theirs")


@pytest.mark.parametrize("first", ["annotations", "categories"])
def test_faults_of_a_class_that_is_left_out_stop_nothing(tmp_path: Path, first: str):
    """Whatever its category ids are, and wherever in the file the categories stand."""
    content = faulty_moles()
    content["annotations"] = [a for a in content["annotations"] if a["segmentation"] != 7]
    content = {"images": content["images"], first: content[first], **content}
    for entry in [*content["categories"], *content["annotations"]]:
        key = "category_id" if "category_id" in entry else "id"
        entry[key] = f"c{entry[key]}"
    annotations, images = write_coco(tmp_path, content)
    with pytest.raises(UserError, match="1 x box without area"):
        read_index(annotations, images, "error", cache=tmp_path / "cache")
    without = read_choice(["ant", "zebra"])
    index = read_index(annotations, images, "error", classes=without, cache=tmp_path / "cache")
    assert index.faults == ()
    assert {change.category for change in index.changes} == {None}  # of the ids that are text


def test_a_fault_of_no_known_class_stays(tmp_path: Path):
    content = coco_dict()
    content["annotations"][0]["category_id"] = 44
    content["annotations"][1] |= {"category_id": 44, "segmentation": 7}
    content["annotations"][2]["category_id"] = None
    content["annotations"][3]["image_id"] = 99
    annotations, images = write_coco(tmp_path, content)
    moles = content["annotations"][3]["category_id"] == 3
    value = {"mole": None} if moles else {"ant": None, "zebra": None}
    index = read_index(annotations, images, "skip", classes=read_choice(value))
    kinds = ["broken segmentation", "incomplete annotation", "unknown category", "unknown image"]
    whole = read_index(annotations, images, "skip")
    assert sorted(fault.kind for fault in whole.faults) == kinds
    assert {fault.annotation for fault in index.faults} >= {1, 2, 3}


def test_a_renamed_or_merged_class_keeps_its_faults(tmp_path: Path):
    annotations, images = write_coco(tmp_path, faulty_moles())
    for value in ({"mole": "rodent"}, {"mole": "ant"}, ["zebra", {"mole": "ant", "ant": "ant"}]):
        index = read_index(annotations, images, "skip", classes=read_choice(value))
        assert len(index.faults) == 2


def test_lists_of_lvis_follow_the_chosen_classes(tmp_path: Path):
    """A merged class is surely absent if all of its parts are, and incomplete if one is."""
    content = coco_dict()
    lists = [([1, 3], [2]), ([1], []), ([], [1, 3]), ([2], [2]), ([3], [3]), ([1, 2, 3], [])]
    for image, (negatives, incompletes) in zip(content["images"], lists, strict=True):
        image |= {"neg_category_ids": negatives, "not_exhaustive_category_ids": incompletes}
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    files = write_coco(tmp_path, content)
    merged = {"zebra": "mammal", "mole": "mammal"}
    truth = read_index(*files, "error", classes=read_choice(merged)).coco_ground_truth()
    assert [image["neg_category_ids"] for image in truth["images"]] == (
        [[1], [], [], [2], [], [2, 1]]
    )
    assert [image["not_exhaustive_category_ids"] for image in truth["images"]] == (
        [[2], [], [1], [2], [1], []]
    )
    assert {c["name"]: c.get("frequency") for c in truth["categories"]} == (
        {"ant": "c", "mammal": None}
    )
    plain = read_index(*files, "error", classes=read_choice(["mole"])).coco_ground_truth()
    assert [image["neg_category_ids"] for image in plain["images"]] == [[3], [], [], [], [3], [3]]
