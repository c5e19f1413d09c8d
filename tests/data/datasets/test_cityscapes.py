"""The reader of Cityscapes."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.reading import ALL, Part
from maskrcnn_lit.data.datasets.cityscapes import (
    IDS,
    IMAGE,
    LABELS,
    POLYGONS,
    THINGS,
    VOID_IDS,
    Cityscapes,
    draw_ids,
    truth_name,
)
from maskrcnn_lit.errors import UserError

HEIGHT, WIDTH = 16, 24

CAR, PERSON = THINGS["car"], THINGS["person"]

# road, unlabeled on the left; two cars, one in two pieces, a group of people, a caravan
TRUTH = np.full((HEIGHT, WIDTH), LABELS["road"], np.int64)
TRUTH[:, :3] = LABELS["unlabeled"]
TRUTH[2:6, 4:10], TRUTH[2:6, 12:14] = CAR * 1000, CAR * 1000
TRUTH[8:14, 4:9] = CAR * 1000 + 1
TRUTH[8:12, 12:16] = PERSON
TRUTH[8:12, 18:22] = LABELS["caravan"] * 1000


def square(x: int, y: int, right: int, bottom: int) -> list[list[int]]:
    return [[x, y], [right, y], [right, bottom], [x, bottom]]


OBJECTS: list[dict[str, Any]] = [
    {"label": "road", "polygon": square(0, 0, WIDTH, HEIGHT)},
    {"label": "car", "polygon": square(2, 2, 8, 8)},
    {"label": "car", "polygon": square(4, 4, 12, 10)},
    {"label": "car", "polygon": square(0, 0, 23, 15), "deleted": 1},
    {"label": "persongroup", "polygon": square(14, 2, 18, 8)},
    {"label": "license plate", "polygon": square(5, 5, 6, 6)},
]


def polygons(objects: Any = OBJECTS) -> dict[str, Any]:
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}


def image_name(split: str, city: str, number: int = 0) -> str:
    return f"leftImg8bit/{split}/{city}/{city}_{number:06}_000019{IMAGE}"


def write_image(root: Path, name: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """The image, and the folder of its truth."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (70, 80, 90)).save(root / name)
    folder = (root / truth_name(name, IDS)).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(root: Path, name: str, ids: np.ndarray = TRUTH) -> None:
    write_image(root, name)
    Image.fromarray(ids.astype(np.uint16)).save(root / truth_name(name, IDS))


def masks(part: Part) -> list[np.ndarray]:
    return [coco_mask.decode(entry["segmentation"]) for entry in part.content["annotations"]]


def test_objects_groups_and_void_of_instance_ids(tmp_path: Path):
    write(tmp_path, image_name("train", "aachen"))
    part = Cityscapes().read(tmp_path, "train")
    assert (part.faults, part.changes) == ([], [])
    classes = {c["id"]: c["name"] for c in part.content["categories"]}
    assert list(classes.values()) == list(THINGS)
    seen = [(classes[a["category_id"]], a["iscrowd"]) for a in part.content["annotations"]]
    assert seen == [("person", 1), ("car", 0), ("car", 0)]
    for value, mask in zip((PERSON, CAR * 1000, CAR * 1000 + 1), masks(part), strict=True):
        np.testing.assert_array_equal(mask, value == TRUTH)
    (image,) = part.content["images"]
    np.testing.assert_array_equal(coco_mask.decode(image["ignore"]), TRUTH == 0)


def test_polygons_are_drawn_in_order(tmp_path: Path):
    ids = draw_ids(polygons())
    assert ids[1, 1] == LABELS["road"]
    assert ids[3, 3] == CAR * 1000
    assert ids[5, 5] == CAR * 1000 + 1  # in front of the first, and of its license plate
    assert ids[4, 16] == PERSON
    name = image_name("val", "lindau")
    folder = write_image(tmp_path, name)
    (folder / Path(truth_name(name, POLYGONS)).name).write_text(json.dumps(polygons()))
    part = Cityscapes().read(tmp_path, "val")
    assert part.faults == []
    for value, mask in zip((PERSON, CAR * 1000, CAR * 1000 + 1), masks(part), strict=True):
        np.testing.assert_array_equal(mask, ids == value)


def test_three_splits_and_their_cities(tmp_path: Path):
    for split, city in (("train", "ulm"), ("train", "jena"), ("val", "lindau"), ("test", "bonn")):
        write(tmp_path, image_name(split, city))
    reader = Cityscapes()
    assert reader.parts(tmp_path) == ["train", "val"]
    assert [path.name for path in reader.sources(tmp_path)] == ["leftImg8bit", "gtFine"]

    def cities(reader: Cityscapes, part: str) -> list[str]:
        images = reader.read(tmp_path, part).content["images"]
        return [image["file_name"].split("/")[2] for image in images]

    assert cities(reader, "train") == ["jena", "ulm"]
    assert cities(reader, ALL) == ["jena", "ulm", "lindau"]
    both = Cityscapes(train=("train", "val"), val="test")
    assert cities(both, "train") == ["jena", "ulm", "lindau"]
    assert cities(both, "val") == ["bonn"]


def wrong_size(root: Path, name: str) -> None:
    write_image(root, name, (9, 8))


def unknown_label(root: Path, name: str) -> None:
    write(root, name, np.where(TRUTH == CAR * 1000, 77_000 // 2, TRUTH))


def no_truth(root: Path, name: str) -> None:
    (root / truth_name(name, IDS)).unlink()


def no_picture(root: Path, name: str) -> None:
    (root / truth_name(name, IDS)).write_text("text")


def colors(root: Path, name: str) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / truth_name(name, IDS))


def no_image(root: Path, name: str) -> None:
    (root / name).write_bytes(b"")


def only_polygons(content: Any) -> Callable[[Path, str], None]:
    def spoil(root: Path, name: str) -> None:
        no_truth(root, name)
        text = content if isinstance(content, str) else json.dumps(content)
        (root / truth_name(name, POLYGONS)).write_text(text)

    return spoil


def with_object(**changes: Any) -> Callable[[Path, str], None]:
    return only_polygons(polygons([OBJECTS[0], OBJECTS[1] | changes]))


BAD: dict[str, tuple[Callable[[Path, str], None], str, str]] = {
    "another size": (wrong_size, "mask of another size", f"{WIDTH} x {HEIGHT}, but .* is 9 x 8"),
    "unknown value": (unknown_label, "unknown label", "the value 38500 is of no label"),
    "no truth": (no_truth, "missing mask", "neither this file nor .*_gtFine_polygons.json exists"),
    "no picture": (no_picture, "mask cannot be used", "unknown format"),
    "colors": (colors, "mask cannot be used", "it has colors: ids are expected"),
    "no image": (no_image, "not an image", "unknown format"),
    "no json": (only_polygons("{"), "broken polygons", "Expecting property name"),
    "another json": (only_polygons([1]), "broken polygons", "no imgHeight, imgWidth and objects"),
    "unknown class": (
        with_object(label="tram"),
        "broken polygons",
        r"objects\[1\] has the label 'tram', which Cityscapes has not",
    ),
    "no label": (with_object(label=None), "broken polygons", r"objects\[1\] is .* without a label"),
    "one point": (
        with_object(polygon=[[1, 2]]),
        "broken polygons",
        r"objects\[1\] has the polygon \[\[1, 2\]\]: a list of at least two",
    ),
    "no point": (with_object(polygon=[[1], 2]), "broken polygons", r"the polygon \[\[1\], 2\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, name: str):
    spoil, kind, what = BAD[name]
    write(tmp_path, image_name("train", "ulm"))
    write(tmp_path, image_name("train", "ulm", 1))
    spoil(tmp_path, image_name("train", "ulm", 1))
    part = Cityscapes().read(tmp_path, "train")
    (fault,) = part.faults
    assert fault.kind == kind
    assert fault.image.split("/")[2] == "ulm"
    assert re.search(what, fault.what), fault.what
    assert len(part.content["images"]) == 1


def test_another_folder_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="has no leftImg8bit/train and leftImg8bit/val"):
        Cityscapes().parts(tmp_path)


def test_every_label_is_there_once():
    assert len(set(LABELS.values())) == 35
    assert len(VOID_IDS) == 15


def test_the_labels_are_the_official_ones():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="extra dev").labels
    assert {label.name: label.id for label in labels} == LABELS
    scored = [label for label in labels if label.hasInstances and not label.ignoreInEval]
    assert [label.name for label in scored] == list(THINGS)
    void = {label.id for label in labels if label.ignoreInEval and label.id >= 0}
    assert void == set(VOID_IDS)


@pytest.mark.data
def test_cityscapes_mini_is_as_its_readme_says(test_data: Path):
    root, classes = test_data / "cityscapes_mini", Counter[str]()
    for part, images, objects in (("train", 17, 175), ("val", 7, 77)):
        read = Cityscapes().read(root, part)
        assert read.faults == []
        assert len(read.content["images"]) == images
        names = {c["id"]: c["name"] for c in read.content["categories"]}
        own = [names[a["category_id"]] for a in read.content["annotations"] if not a["iscrowd"]]
        assert len(own) == objects
        classes.update(own)
    assert classes == {
        "person": 165,
        "car": 51,
        "motorcycle": 10,
        "bicycle": 9,
        "bus": 9,
        "truck": 6,
        "train": 2,
    }


@pytest.mark.data
def test_polygons_give_the_ids_of_the_official_scripts(test_data: Path):
    files = sorted((test_data / "cityscapes_mini").glob(f"gtFine/*/*/*{POLYGONS}"))
    assert len(files) == 16
    for file in files:
        ids = np.asarray(Image.open(str(file).replace(POLYGONS, IDS)))
        np.testing.assert_array_equal(draw_ids(json.loads(file.read_bytes())), ids)
