import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_file import coco_dict, write_coco
from deep_images import tiff
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.coco.reading import load_entries
from maskrcnn_lit.data.inspection.checks import (
    Findings,
    cleaned,
    cleaned_paths,
    find_faults,
    learning_fault,
    mark_leaks,
    mask_extent,
    notes,
)
from maskrcnn_lit.errors import UserError

CROWDS = (
    "{} annotations are crowd regions: nothing is learned from them (set iscrowd to 0 where they "
    "are single objects)"
)


def looked_at(folder: Path, content: dict[str, Any]) -> tuple[Findings, dict[str, Any]]:
    annotations, images = write_coco(folder, content)
    return find_faults(read_index(annotations, images, "skip")), content


def of(content: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
    return [a for a in content["annotations"] if a["image_id"] == image_id]


def clean_again(folder: Path, found: Findings, content: dict[str, Any]) -> dict[str, Any]:
    """The cleaned json, which must have no fault."""
    result = cleaned(content, found)
    (folder / "cleaned.json").write_text(json.dumps(result))
    again = find_faults(read_index(folder / "cleaned.json", folder / "images", "error"))
    assert again.faults() == []
    return result


def test_a_sound_set_has_no_faults_and_stays_as_it_is(tmp_path: Path):
    found, content = looked_at(tmp_path, coco_dict() | {"info": {"year": 1}})
    assert found.faults() == []
    assert len(found.digests) == 6
    assert clean_again(tmp_path, found, content) == content


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "inside"),
    [("coco_mini/train2017", 4), ("coco_mini/val2017", 5), ("nuclei/val", 0)],
)
def test_real_data_has_no_faults_but_objects_inside_of_others(
    part: str, inside: int, test_data: Path
):
    """Bananas of a labeled bunch, apples of a pile, a book of a row, labeled once more: 9 of the
    1,943 objects of coco_mini.
    """
    name = part.split("/")[1]
    file = test_data / part.split("/")[0] / "annotations" / f"instances_{name}.json"
    faults = find_faults(read_index(file, test_data / part, "error")).faults()
    assert [fault.kind for fault in faults] == ["object inside of another"] * inside
    assert all(fault.what.endswith(("banana", "apple", "book")) for fault in faults)


def squares(*objects: tuple[int, list[float] | None, list[float]]) -> dict[str, Any]:
    """One image with filled rectangles: class, outline x y w h or None, box."""
    content = coco_dict(1)
    content["images"][0] |= {"height": 100, "width": 100}
    for number, (category, shape, box) in enumerate(objects, 1):
        x, y, w, h = shape or box
        outline = [x, y, x + w, y, x + w, y + h, x, y + h]
        content["annotations"].append(
            {"id": number, "image_id": 1, "category_id": category, "iscrowd": 0, "area": w * h}
            | {"bbox": box, "segmentation": [outline] if shape else []}
        )
    return content


WHOLE, INNER = [10.0, 10.0, 40.0, 40.0], [15.0, 15.0, 20.0, 20.0]


@pytest.mark.parametrize(
    ("objects", "kind", "number", "words"),
    [
        (((1, WHOLE, [10, 10, 40, 30]),), "outline differs from box", 1, "10.0, 10.0, 50.0, 40.0"),
        (
            ((1, WHOLE, WHOLE), (1, [12, 10, 38, 40], [12, 10, 38, 40])),
            *("two masks of one object", 2, "annotation 1 share IoU 0.95"),
        ),
        (
            ((1, WHOLE, WHOLE), (1, INNER, INNER)),
            *("object inside of another", 2, "100% of it lies in annotation 1, also ant"),
        ),
        (
            ((1, INNER, INNER), (1, WHOLE, WHOLE)),
            *("object inside of another", 1, "100% of it lies in annotation 2, also ant"),
        ),
    ],
    ids=["box", "twice", "inside", "inside, smaller first"],
)
def test_masks_that_lie_are_doubts(
    objects: Any, kind: str, number: int, words: str, tmp_path: Path
):
    """They are listed, and `cleaned` leaves them: a person has to look."""
    content = squares(*objects)
    content["categories"][0]["name"] = "ant"
    content["categories"][1]["name"] = "bee"
    found, content = looked_at(tmp_path, content)
    (fault,) = found.faults()
    assert (fault.kind, fault.annotation) == (kind, number)
    assert words in fault.what
    assert found.doubts == {number: fault}
    assert cleaned(content, found)["annotations"] == content["annotations"]


@pytest.mark.parametrize(
    "objects",
    [
        ((1, WHOLE, WHOLE), (2, INNER, INNER)),  # of another class: a nose in a face
        ((1, WHOLE, WHOLE), (1, [45.0, 10.0, 30.0, 30.0], [45.0, 10.0, 30.0, 30.0])),  # they touch
        ((1, WHOLE, [10.0, 10.0, 40.0, 38.0]),),  # within two pixels
        ((1, WHOLE, WHOLE), (1, None, INNER)),  # a box without a mask
    ],
    ids=["other class", "overlap", "slack", "box alone"],
)
def test_what_is_usual_is_no_doubt(objects: Any, tmp_path: Path):
    found, _ = looked_at(tmp_path, squares(*objects))
    assert found.faults() == []


def test_pixels_are_decoded_to_the_end(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict())
    data = (images / "03.jpg").read_bytes()
    (images / "03.jpg").write_bytes(data[: len(data) // 2])
    found = find_faults(read_index(annotations, images, "error"))  # its header is sound
    (fault,) = found.faults()
    assert fault[:3] == ("pixels cannot be decoded", "03.jpg", None)
    assert "truncated" in fault.what
    result = clean_again(tmp_path, found, coco_dict())
    assert [i["id"] for i in result["images"]] == [1, 2, 3, 5, 6]
    assert not of(result, 4)


def test_a_box_far_from_its_mask(tmp_path: Path):
    content = coco_dict()
    for number, shift in (
        (of(content, 3)[0], 30),
        (of(content, 5)[1], 1),
    ):  # polygons, RLE: one pixel is none
        number["bbox"][0] += shift
    of(content, 6)[1]["bbox"] = [70, 5, 4, 40]  # RLE
    found, _ = looked_at(tmp_path, content)
    wrong = {of(content, 3)[0]["id"]: "02.jpg", of(content, 6)[1]["id"]: "05.jpg"}
    assert {f.annotation: f.image for f in found.faults()} == wrong
    assert all(
        f.kind == "box and mask disagree" and "but the mask spans [" in f.what
        for f in found.faults()
    )
    result = clean_again(tmp_path, found, content)
    assert [a for a in content["annotations"] if a["id"] not in wrong] == result["annotations"]
    assert result["images"] == content["images"]


def test_of_a_tiny_object_a_pixel_or_two_is_nothing(tmp_path: Path):
    content = coco_dict(2)
    content["annotations"] = [
        of(content, 2)[0]
        | {"bbox": [10, 10, 3, 3], "segmentation": [[10, 10, 11, 10, 11, 11]], "area": 0.5}
    ]
    assert looked_at(tmp_path, content)[0].faults() == []


def test_a_mask_outside_of_the_image_reaches_over_nothing(tmp_path: Path):
    content = coco_dict(2)
    of(content, 2)[0]["segmentation"] = [[120.0, 100, 130, 100, 130, 110]]
    found, _ = looked_at(tmp_path, content)
    x1, y1, x2, y2 = mask_extent(found.index, 1, 0)
    assert (x2 - x1) * (y2 - y1) == 0
    assert [f.kind for f in found.faults()] == ["box and mask disagree"]


def test_the_same_annotation_twice(tmp_path: Path):
    content = coco_dict()
    twin = copy.deepcopy(of(content, 5)[2])
    first, other = twin["id"], copy.deepcopy(twin)
    other["category_id"] = other["category_id"] % 3 + 1  # another class in one box is none
    content["annotations"] += [twin | {"id": 70}, twin | {"id": 71}, other | {"id": 72}]
    found, _ = looked_at(tmp_path, content)
    what = f"same class, box and mask as annotation {first}"
    assert found.faults() == [Fault("same annotation twice", "04.jpg", n, what) for n in (70, 71)]
    kept = [a["id"] for a in clean_again(tmp_path, found, content)["annotations"]]
    assert kept == [a["id"] for a in content["annotations"] if a["id"] not in (70, 71)]


def test_one_image_twice_by_content_or_by_name(tmp_path: Path):
    content = coco_dict()
    annotations, images = write_coco(tmp_path, content)
    shutil.copy(images / "04.jpg", images / "zz.jpg")  # 4 annotations
    twins = [
        content["images"][4] | {"id": 40, "file_name": "zz.jpg"},
        content["images"][5] | {"id": 50},
    ]
    content["images"] += twins
    content["annotations"] += [of(content, 5)[0] | {"id": 90, "image_id": 40}]
    annotations.write_text(json.dumps(content))
    found = find_faults(read_index(annotations, images, "error"))
    told = {f.image: f.what for f in found.faults()}
    assert told == {
        "zz.jpg": "same content as image id 5, 04.jpg",
        "05.jpg": "same content as image id 6, 05.jpg",
    }
    assert {f.kind for f in found.faults()} == {"same image twice"}
    result = clean_again(tmp_path, found, content)
    assert result == content | {
        "images": content["images"][:6],
        "annotations": content["annotations"][:-1],
    }


def test_of_equal_images_the_one_with_annotations_stays(tmp_path: Path):
    content = coco_dict()
    annotations, images = write_coco(tmp_path, content)
    shutil.copy(images / "04.jpg", images / "0.jpg")  # the first by name, without annotations
    content["images"].append(content["images"][4] | {"id": 40, "file_name": "0.jpg"})
    annotations.write_text(json.dumps(content))
    assert [f.image for f in find_faults(read_index(annotations, images, "error")).faults()] == [
        "0.jpg"
    ]


def test_training_images_that_are_validation_images_go(tmp_path: Path):
    val, _ = looked_at(tmp_path / "val", coco_dict(3))
    content = coco_dict(5)
    annotations, images = write_coco(tmp_path / "train", content)
    for k in (1, 3, 4):  # 00.jpg and 02.jpg are equal
        file = images / f"{k:02}.jpg"
        file.write_bytes(file.read_bytes() + b"other")
    shutil.move(images / "02.jpg", images / "renamed.jpg")
    content["images"][2]["file_name"] = "renamed.jpg"
    annotations.write_text(json.dumps(content))
    train = find_faults(read_index(annotations, images, "error"))
    mark_leaks(train, val)
    told = {f.image: f.what for f in train.faults()}
    assert set(told) == {"00.jpg", "renamed.jpg"}
    assert val.faults() == []
    assert told["renamed.jpg"].startswith("same content as val's 02.jpg")
    assert [i["id"] for i in cleaned(content, train)["images"]] == [2, 4, 5]
    assert any(
        "2 file names are in both train and val, for example 00.jpg" in note
        for note in notes(parts(train, val))
    )


def parts(train: Findings, val: Findings) -> dict[str, Findings]:
    return {"train": train, "val": val}


def test_what_is_no_fault_is_noted(tmp_path: Path):
    content = coco_dict()
    content["categories"] += [{"id": 9, "name": "yak"}]
    annotations, images = write_coco(tmp_path, content)
    shutil.copy(images / "04.jpg", images / "unknown.jpg")
    (images / "notes.txt").write_text("no image")
    found = find_faults(read_index(annotations, images, "error"))
    assert found.faults() == []
    assert notes({"train": found}) == [
        f"train: {CROWDS.format('2 of 15')}",
        "train: 1 of 4 categories have no annotation: yak",
        f"train: 1 images in {images} are not in the json or were not checked",
    ]
    other, _ = looked_at(tmp_path / "val", coco_dict())
    assert "train and val have different categories; training requires the same" in notes(
        parts(found, other)
    )


def test_odd_pixels_are_noted(tmp_path: Path):
    content = coco_dict(6)
    for k, image in enumerate(content["images"]):
        image["file_name"] = f"{k}.tif"
    (tmp_path / "images").mkdir()
    for k, image in enumerate(content["images"]):
        shape = image["height"], image["width"]
        samples = np.arange(shape[0] * shape[1]).reshape(shape)
        data = {
            0: tiff(np.zeros(shape, np.uint8)),
            1: tiff(np.full((*shape, 3), 7, np.uint8)),
            2: tiff((samples % 4000).astype(np.uint16)),
            3: tiff((samples % 1000).astype(np.uint16)),
            4: tiff((samples % 255).astype(np.uint8), pages=3),
            5: tiff((samples % 255).astype(np.uint8)),
        }[k]
        (tmp_path / "images" / f"{k}.tif").write_bytes(data)
    (tmp_path / "a.json").write_text(json.dumps(content))
    index = read_index(tmp_path / "a.json", tmp_path / "images", "error")
    assert notes({"val": find_faults(index)}) == [
        f"val: {CROWDS.format('2 of 15')}",
        "val: images that come out black: 1 (0.tif)",
        "val: images that have a single color: 1 (1.tif)",
        "val: images that have more than 8 bits, read as 10 (by the largest value of each file; "
        "data.bits=16 fixes it for all): 1 (3.tif)",
        "val: images that have more than 8 bits, read as 12 (by the largest value of each file; "
        "data.bits=16 fixes it for all): 1 (2.tif)",
        "val: images that have several pages; only the first is used: 1 (4.tif)",
    ]
    index = read_index(tmp_path / "a.json", tmp_path / "images", "error", bits=12)
    assert "val: images that have more than 8 bits, read as 12: 2 (2.tif, 3.tif)" in notes(
        {"val": find_faults(index)}
    )


def test_an_image_that_is_too_large_is_a_fault_with_the_option(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(3))
    index = read_index(annotations, images, "skip", max_pixels=6200)  # of 6000, 6650, 7200
    assert {(fault.kind, fault.image) for fault in index.faults} == {
        ("image too large", "01.jpg"),
        ("image too large", "02.jpg"),
    }
    assert "raise data.max_pixels" in index.faults[0].what
    assert len(read_index(annotations, images, "error", max_pixels=7200)) == 3


def test_annotations_of_an_image_that_goes_are_no_news(tmp_path: Path):
    content = coco_dict()
    of(content, 4)[0]["bbox"] = [60, 5, 4, 40]
    annotations, images = write_coco(tmp_path, content)
    (images / "03.jpg").write_bytes((images / "03.jpg").read_bytes()[:2000])
    found = find_faults(read_index(annotations, images, "error"))
    assert [f.kind for f in found.faults()] == ["pixels cannot be decoded"]


def test_what_is_kept_is_the_entry_that_was_read(tmp_path: Path):
    """Of several with one id, also where the one that was left out stands first."""
    content = coco_dict()
    first = of(content, 3)[0]
    content["images"].insert(0, content["images"][2] | {"height": -1})
    content["annotations"].insert(0, first | {"image_id": 12345})
    content["annotations"] += [first | {"bbox": [0, 0, 5, 5]}, "text", {"id": [1], "image_id": {}}]
    content["images"] += [None, content["images"][3] | {"width": 7}]
    annotations, images = write_coco(tmp_path, coco_dict())
    annotations.write_text(json.dumps(content))
    found = find_faults(read_index(annotations, images, "skip"))
    assert clean_again(tmp_path, found, content) == coco_dict()


def test_progress_counts_the_images(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict())
    calls: list[tuple[int, int]] = []
    find_faults(
        read_index(annotations, images, "error"), lambda done, total: calls.append((done, total))
    )
    assert calls == [(n, 6) for n in range(1, 7)]


def test_extents_are_those_of_the_shapes(tmp_path: Path):
    found, _ = looked_at(tmp_path, coco_dict())
    index = found.index
    for i in range(len(index)):
        for j, box in enumerate(index.annotations(i)["boxes"]):
            assert np.abs(mask_extent(index, i, j) - box).max() <= 1


def test_where_cleaned_jsons_go(tmp_path: Path):
    one, two = Path("a/labels.json"), Path("b/labels.json")
    assert cleaned_paths(Path("c"), {"train": one}) == {"train": Path("c/labels.json")}
    named = {"train": Path("c/train_labels.json"), "val": Path("c/val_labels.json")}
    assert cleaned_paths(Path("c"), {"train": one, "val": two}) == named
    with pytest.raises(UserError, match=r"cleaned=.*a would overwrite .*: give another folder"):
        cleaned_paths(
            tmp_path / "b" / ".." / "a", {"train": tmp_path / one, "val": tmp_path / "b/other.json"}
        )


@pytest.mark.parametrize("text", [None, "{", "[]", '{"images": 3, "annotations": []}'])
def test_a_json_that_cannot_be_filtered_is_told(text: str | None, tmp_path: Path):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(
        UserError,
        match=r"a\.json cannot be read as a COCO instances json \(.*\): give another file",
    ):
        load_entries(tmp_path / "a.json")


def crossing(folder: Path, **change: Any) -> tuple[Findings, dict[str, Any]]:
    """Two rods of one class in one box, that cross."""
    content = coco_dict(2)
    (one,) = content["annotations"]
    one |= {"bbox": [10, 10, 50, 50], "area": 350}
    rods = (
        [10, 10, 16, 10, 60, 54, 60, 60, 54, 60, 10, 16],
        [60, 10, 60, 16, 16, 60, 10, 60, 10, 54, 54, 10],
    )
    content["annotations"] = [
        one | {"id": n, "segmentation": [list(map(float, rod))]} | change
        for n, rod in enumerate(rods, 1)
    ]
    return looked_at(folder, content)


def test_two_objects_in_one_box_are_two_unless_their_masks_agree(tmp_path: Path):
    found, content = crossing(tmp_path / "a")
    assert found.faults() == []
    assert clean_again(tmp_path / "a", found, content) == content
    again, _ = crossing(
        tmp_path / "b", segmentation=[[10.0, 10, 60, 10, 60, 60, 10, 60]], area=2500
    )
    assert [(fault.kind, fault.annotation) for fault in again.faults()] == [
        ("same annotation twice", 2)
    ]


@pytest.mark.parametrize("area", [5.0, 5000.0, -350, 0])
def test_an_area_that_contradicts_the_mask(area: float, tmp_path: Path):
    found, content = crossing(tmp_path, area=area)
    kind = "area contradicts mask" if area > 0 else "impossible area"
    assert [(fault.kind, fault.annotation) for fault in found.faults()] == [(kind, 1), (kind, 2)]
    result = clean_again(tmp_path, found, content)
    own = [index_area(found, j) for j in range(2)]
    assert [entry["area"] for entry in result["annotations"]] == own
    assert result["annotations"] == [
        entry | {"area": area} for entry, area in zip(content["annotations"], own, strict=True)
    ]


def index_area(found: Findings, j: int) -> float:
    return float(coco_mask.area(found.index.rle(1, j)))


@pytest.mark.parametrize("area", [300.0, 1000])
def test_areas_are_compared_with_some_slack(area: float, tmp_path: Path):
    assert crossing(tmp_path, area=area)[0].faults() == []


def test_what_is_read_otherwise_is_written_so_in_the_cleaned_json(tmp_path: Path):
    expected = coco_dict(4)
    for entry in expected["annotations"]:
        entry["area"], entry["ignore"] = float(entry["area"]), 0
    content = copy.deepcopy(expected)
    for image in content["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
        image["id"] = f"image {image['id']}"
        del image["height"]
    for number, entry in enumerate(content["annotations"]):
        entry["image_id"] = f"image {entry['image_id']}"
        entry["id"] = 1 if number < 2 else None
        entry["iscrowd"], entry["ignore"] = str(entry["iscrowd"]), "0"
        if isinstance(entry["segmentation"], list):
            entry["segmentation"].append([1, 2])
    for category in content["categories"]:
        category["id"] = str(category["id"])
    content["categories"].append({"id": 77, "name": "ant"})
    annotations, images = write_coco(tmp_path, expected)
    annotations.write_text(json.dumps(content))
    found = find_faults(read_index(annotations, images, "error", cache=tmp_path / "cache"))
    assert {fault.kind for fault in found.faults()} == {
        *("file name", "no image size", "id that is text", "duplicate annotation id"),
        *("no annotation id", "number in quotes", "part of an outline left out", "category twice"),
    }
    result = clean_again(tmp_path, found, content)
    for entries in (result["images"], expected["images"]):
        entries.sort(key=lambda entry: entry["file_name"])
    assert result == expected


def test_an_ignored_region_is_noted_and_no_fault(tmp_path: Path):
    content = coco_dict(2)
    content["annotations"][0]["ignore"] = 1
    found, _ = looked_at(tmp_path, content)
    assert found.faults() == []
    assert any(
        "1 x ignored region (annotation 1 of 01.jpg" in note for note in notes({"train": found})
    )
    assert cleaned(content, found) == content


def test_crowd_regions_are_counted(tmp_path: Path):
    content = coco_dict(6)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    sound, _ = looked_at(tmp_path / "a", content)
    assert not any("crowd" in note for note in notes({"train": sound}))
    for annotation in content["annotations"][:2]:
        annotation["iscrowd"] = 1
    crowded, _ = looked_at(tmp_path / "b", content)
    total = len(content["annotations"])
    assert f"train: {CROWDS.format(f'2 of {total}')}" in notes({"train": crowded})


def test_a_set_on_which_nothing_is_learnt_has_a_fault(tmp_path: Path):
    content = coco_dict(2)
    content["annotations"][0]["iscrowd"] = 1
    index = looked_at(tmp_path, content)[0].index
    lines, fault = learning_fault(index, [], 64, "a.json")
    assert lines == [
        "no object to learn from: all 1 annotations are crowd regions (set iscrowd to 0 where they "
        "are single objects)"
    ]
    assert fault == Fault("nothing to learn", "a.json", None, lines[0])
    sound = looked_at(tmp_path / "b", coco_dict(3))[0].index
    assert learning_fault(sound, [], 64, "a.json") == ([], None)
    few, fault = learning_fault(
        sound, [Fault("too small to be learned", "01.jpg", 1, "x")], 64, "a"
    )
    assert few[0].startswith("1 of 3 objects cannot be learned")
    assert fault is None
