from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_file import coco_dict, small_index, write_coco

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.coco.learnable import (
    NO_MASK,
    TOO_SMALL,
    count_objects,
    describe_partial,
    describe_unlearnable,
    unlearnable,
)
from maskrcnn_lit.data.dataset import CocoDataset


def one_object(folder: Path, **change: Any) -> AnnotationIndex:
    """An image of 70 x 95 pixels with one annotation."""
    content = coco_dict(2)
    content["annotations"][0] |= {"iscrowd": 0, "area": 5} | change
    return read_index(*write_coco(folder, content), "error")


def line(x1: float, y1: float, x2: float, y2: float, wide: float) -> dict[str, Any]:
    """A sliver that is `wide` pixels high."""
    return {
        "bbox": [x1, y1, x2 - x1, y2 + wide - y1],
        "segmentation": [[x1, y1, x2, y2, x2, y2 + wide, x1, y1 + wide]],
    }


EMPTY_RLE = {"size": [70, 95], "counts": [70 * 95]}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [10, 10, 0.5, 30]}, TOO_SMALL),
        ({"bbox": [94.5, 10, 30, 30]}, TOO_SMALL),  # half a pixel is inside of the image
        (line(10, 10.1, 60, 10.1, 0.2), TOO_SMALL),
        ({"segmentation": EMPTY_RLE}, NO_MASK),
        ({"bbox": [10, 10, 40, 40], "segmentation": [[10, 10, 50, 50, 30, 30]]}, NO_MASK),
        ({"bbox": [10, 10, 8, 8], "segmentation": [[60, 40, 80, 40, 80, 60]]}, NO_MASK),
        (line(10, 10, 60, 50, 1.5), None),
        ({"bbox": [10, 10, 40, 40], "segmentation": [[10, 10, 50, 10, 30, 50]]}, None),
        ({"bbox": [10, 10, 0.5, 30], "iscrowd": 1}, None),
    ],
)
def test_each_object_that_cannot_be_learnt_has_its_kind(
    change: dict[str, Any], kind: str | None, tmp_path: Path
):
    index = one_object(tmp_path, **change)
    lost = unlearnable(index, 95, 112)
    assert [fault.kind for fault in lost] == [kind] * (kind is not None)
    assert [(fault.image, fault.annotation) for fault in lost] == [("01.jpg", 1)] * len(lost)


@pytest.mark.parametrize("image_size", [32, 64, (100, 150)])
def test_they_are_those_that_a_sample_leaves_out(image_size: Any, tmp_path: Path):
    rng = np.random.default_rng(0)
    content = coco_dict(12)
    for annotation in content["annotations"]:
        if rng.random() < 0.7:
            x, y, w, h = (rng.uniform(0, 60), rng.uniform(0, 40), *10 ** rng.uniform(-1, 1.3, 2))
            corners = [x, y, x + w, y, x + w, y + h, x, y + h][: rng.choice([6, 8])]
            annotation |= {"bbox": [x, y, w, h], "segmentation": [corners], "area": w * h}
        if rng.random() < 0.1:
            annotation["segmentation"] = [[5, 5, 9, 9, 7, 7]]
    index = read_index(*write_coco(tmp_path, content), "error")
    dataset = CocoDataset(index=index, image_size=image_size)
    kept = sum(int(dataset[(0, i)]["valid"].sum()) for i in range(len(index)))
    lost = unlearnable(index, image_size, 112)
    assert len(lost) == count_objects(index) - kept
    assert {fault.kind for fault in lost} == {TOO_SMALL, NO_MASK}
    assert len({fault.annotation for fault in lost}) == len(lost)


@pytest.mark.parametrize("part", ["coco_mini/train2017", "nuclei/val"])
def test_of_real_sets_few_are_lost(part: str, test_data: Path):
    name = part.split("/")[1]
    file = test_data / part.split("/")[0] / "annotations" / f"instances_{name}.json"
    index = read_index(file, test_data / part, "error", take=60)
    lost = unlearnable(index, (800, 1333), 112)
    assert len(lost) <= 1
    assert index.packed.arrays.doubtful.mean() < 0.1  # the others are not rasterized


def test_what_is_said(tmp_path: Path):
    index = one_object(tmp_path / "a", bbox=[10, 10, 0.5, 30])
    lines = list(describe_unlearnable(index, unlearnable(index, 95, 112), 95))
    assert lines[0] == "all 1 objects cannot be learned; training ignores them:"
    assert "1 x too small to be learned (annotation 1 of 01.jpg: 0.5 x 30 px" in lines[1]
    assert "data.image_size (now 95)" in lines[2]
    crowd = one_object(tmp_path / "b", iscrowd=1)
    assert list(describe_unlearnable(crowd, [], 95)) == [
        "no object to learn from: all 1 annotations are crowd regions (set iscrowd to 0 where they "
        "are single objects)"
    ]
    empty = small_index(tmp_path / "c", 1)
    assert list(describe_unlearnable(empty, [], 95)) == ["no image has an object to learn from"]
    assert list(describe_unlearnable(small_index(tmp_path / "d"), [], 95)) == []


def test_boxes_that_look_like_corners(tmp_path: Path):
    content = coco_dict(12)
    sound = read_index(*write_coco(tmp_path / "sound", content), "error")
    assert list(describe_partial(sound)) == []
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation |= {"bbox": [x, y, x + width, y + height], "segmentation": []}
    index = read_index(*write_coco(tmp_path / "corners", content), "error")
    first, *_ = describe_partial(index)
    assert first == (
        "every bbox looks like x1 y1 x2 y2, but is read as x y width height, with which boxes "
        "reach beyond their images: write x1, y1, x2 - x1, y2 - y1"
    )
    content["annotations"][0]["bbox"] = [30, 20, 10, 10]  # no corners
    index = read_index(*write_coco(tmp_path / "mixed", content), "error")
    assert not any("every bbox" in line for line in describe_partial(index))
