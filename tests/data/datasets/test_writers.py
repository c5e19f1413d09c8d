"""Round trips: COCO json -> another form -> COCO json."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from coco_file import coco_dict, write_coco
from PIL import Image
from round_trip import best_ious, objects

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.coco.rasterize import polygons_rle
from maskrcnn_lit.data.coco.reading import ALL, Reader, located
from maskrcnn_lit.data.datasets.collector import rle_of
from maskrcnn_lit.data.datasets.mask_folder import MaskFolder
from maskrcnn_lit.data.datasets.writers import (
    WRITERS,
    Loss,
    Written,
    joined,
    new_names,
    write_mask_folder,
    write_yolo,
)
from maskrcnn_lit.data.datasets.writers import (
    write_coco as write_coco_form,
)
from maskrcnn_lit.data.datasets.yolo_seg import YoloSeg
from maskrcnn_lit.errors import UserError


def index_of(folder: Path, content: dict[str, Any], cache: Path) -> AnnotationIndex:
    write_coco(folder, content)
    return read_index(folder / "instances.json", folder / "images", "error", cache=cache)


def read_back(reader: Reader, root: Path, part: str, cache: Path) -> AnnotationIndex:
    one = located(reader, root, part, cache)[part]
    return read_index(one.annotations, one.images, "error", cache=cache)


@pytest.fixture
def before(tmp_path: Path) -> AnnotationIndex:
    """Polygons of two parts, holes as RLE, crowd regions, an image without objects."""
    return index_of(tmp_path / "before", coco_dict(8), tmp_path / "cache")


def test_coco_keeps_every_object(before: AnnotationIndex, tmp_path: Path):
    written = write_coco_form(before, tmp_path / "new", "val", copy=True)
    assert (written.images, written.objects, written.losses) == (8, 28, [])
    file = tmp_path / "new" / "annotations" / "instances_val.json"
    after = read_index(file, tmp_path / "new" / "val", "error", cache=tmp_path / "cache")
    assert objects(after, crowd=True) == objects(before, crowd=True)
    assert after.read(3) == before.read(3)


def test_masks_keep_every_object(before: AnnotationIndex, tmp_path: Path):
    written = write_mask_folder(before, tmp_path / "new", "", copy=True)
    assert {loss.why for loss in written.losses} == {"a crowd region"}
    after = read_back(MaskFolder(), tmp_path / "new", ALL, tmp_path / "cache")
    assert len(after) == 8
    assert objects(after) == objects(before)
    assert {category.name for category in after.categories} == {"zebra", "ant", "mole"}


def test_yolo_keeps_parts_and_says_what_holes_lose(before: AnnotationIndex, tmp_path: Path):
    written = write_yolo(before, tmp_path / "new", "train", copy=True)
    after = read_back(YoloSeg(), tmp_path / "new", "train", tmp_path / "cache")
    lost = {loss.annotation: loss for loss in written.losses}
    assert {loss.why for loss in written.losses} == {"a crowd region", "its holes are filled"}
    ious = iter(best_ious(before, after))
    for i in range(len(before)):
        annotations = before.annotations(i)
        for j, number in enumerate(annotations["ids"].tolist()):
            if annotations["crowd"][j]:
                continue
            has_hole = isinstance(before.outline(i, j), np.ndarray)
            assert (number in lost) == has_hole
            stated = lost[number].iou if has_hole else 1.0
            assert next(ious) >= stated - 1e-4
            assert (stated < 1) == has_hole
    assert yaml.safe_load((tmp_path / "new" / "data.yaml").read_text()) == {
        "path": ".",
        "train": "images/train",
        "names": {0: "ant", 1: "mole", 2: "zebra"},
    }


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_joined_without_a_trace(seed: int):
    rng = np.random.default_rng(seed)
    corners = [rng.uniform(0, 20, (5, 2)) + shift for shift in ([0, 0], [25, 3], [10, 30])]
    polygons = [part[np.argsort(np.arctan2(*(part - part.mean(0)).T))] for part in corners]
    one = polygons_rle([joined(polygons).ravel()], 60, 60)
    assert one == polygons_rle([part.ravel() for part in polygons], 60, 60)


def test_names_of_files_stay_unique(tmp_path: Path):
    content = coco_dict(3)
    names = ["a/one.jpg", "b/one.png", "b_one.png"]
    for entry, name in zip(content["images"], names, strict=True):
        entry["file_name"] = name
    write_coco(tmp_path, coco_dict(0) | {"images": []})
    for entry in content["images"]:
        path = tmp_path / "images" / entry["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"])).save(path)
    content_file = tmp_path / "own.json"
    content_file.write_text(json.dumps(content))
    index = read_index(content_file, tmp_path / "images", "error", cache=tmp_path / "cache")
    assert new_names(index) == ["a_one.jpg", "b_one.png", "b_one_2.png"]


def test_classes_that_are_folders(before: AnnotationIndex, tmp_path: Path):
    content = coco_dict(4)
    for category, name in zip(content["categories"], ["a/b", "a_b", "c"], strict=True):
        category["name"] = name
    index = index_of(tmp_path / "slash", content, tmp_path / "cache")
    with pytest.raises(UserError, match="two classes have the same name but for a slash"):
        write_mask_folder(index, tmp_path / "new", "", copy=False)


@pytest.mark.data
@pytest.mark.long
@pytest.mark.parametrize("form", ["coco", "mask_folder"])
def test_real_data_come_back_with_iou_1(form: str, test_data: Path, tmp_path: Path):
    before = read_index(
        test_data / "coco_mini" / "annotations" / "instances_val2017.json",
        test_data / "coco_mini" / "val2017",
        "skip",
        take=30,
        cache=tmp_path,
    )
    written = WRITERS[form](before, tmp_path / "new", "", True)
    assert {loss.why for loss in written.losses} <= {"a crowd region"}
    if form == "coco":
        where = tmp_path / "new" / "instances.json", tmp_path / "new" / "images"
        after = read_index(*where, "error", cache=tmp_path)
    else:
        after = read_back(MaskFolder(), tmp_path / "new", ALL, tmp_path)
    ious = best_ious(before, after)
    assert len(ious) > 200
    assert set(ious) == {1.0}


@pytest.mark.parametrize("write", [write_yolo, write_mask_folder])
def test_void_regions_that_are_lost_are_listed(write: Callable[..., Written], tmp_path: Path):
    content = coco_dict(3)
    void = np.zeros((content["images"][1]["height"], content["images"][1]["width"]), bool)
    void[2:9, 3:11] = True
    content["images"][1]["ignore"] = rle_of(void)
    index = index_of(tmp_path / "before", content, tmp_path / "cache")
    losses = write(index, tmp_path / "new", "", copy=False).losses
    lost = [loss for loss in losses if loss.annotation is None]
    assert lost == [Loss(index.file_name(1), None, 0.0, "a void region")]
    as_background = replace(index, ignore_void=False)
    losses = write(as_background, tmp_path / "other", "", copy=False).losses
    assert all(loss.annotation is not None for loss in losses)
    assert write_coco_form(index, tmp_path / "coco", "", copy=False).losses == []
    written = json.loads((tmp_path / "coco" / "instances.json").read_text())
    assert written["images"][1]["ignore"] == rle_of(void)


def test_objects_of_which_only_the_box_is_known(tmp_path: Path):
    content = coco_dict(4)
    for entry in content["annotations"]:
        del entry["segmentation"], entry["area"]
    index = index_of(tmp_path / "before", content, tmp_path / "cache")
    assert write_yolo(index, tmp_path / "new", "train", copy=True).losses == []
    after = read_back(YoloSeg(), tmp_path / "new", "train", tmp_path / "cache")
    for i in range(4):
        before, own = (one.annotations(i)["boxes"] for one in (index, after))
        np.testing.assert_allclose(own, before, atol=1e-6)
        assert all(len(after.outline(i, j)) == 0 for j in range(len(own)))
    lost = write_mask_folder(index, tmp_path / "masks", "", copy=False).losses
    assert len(lost) == 6
    assert {loss.why for loss in lost} == {"it has no mask with a pixel"}
    write_coco_form(index, tmp_path / "json", "", copy=True)
    again = read_index(tmp_path / "json" / "instances.json", tmp_path / "json" / "images", "error")
    np.testing.assert_allclose(again.annotations(3)["boxes"], index.annotations(3)["boxes"])
