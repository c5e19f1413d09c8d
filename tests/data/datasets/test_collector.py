from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.datasets.collector import (
    Collector,
    by_stem,
    image_names,
    masks_of,
    part_folder,
    part_folders,
    rle_of,
)
from maskrcnn_lit.errors import UserError


def picture(path: Path, width: int = 8, height: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def test_what_is_collected(tmp_path: Path):
    picture(tmp_path / "sub" / "a.png")
    collector = Collector(tmp_path)
    image = collector.image("sub/a.png", patient="p1")
    assert image == dict(id=1, file_name="sub/a.png", height=6, width=8, patient="p1")
    collector.add(image, "dog", [[1.0, 2, 4, 2, 4, 5], [6, 0, 7, 0, 7, 1]])
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    collector.add(image, "ant", rle_of(mask), iscrowd=1)
    collector.add_box(image, "dog", [1, 1, 2, 3])
    part = collector.part()
    polygon, rle, box = part.content["annotations"]
    assert part.content["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "dog"}]
    assert [entry["category_id"] for entry in (polygon, rle, box)] == [2, 1, 2]
    assert polygon["bbox"] == [1, 0, 6, 5]
    assert rle["bbox"] == [2, 1, 3, 2]
    assert rle["iscrowd"] == 1
    assert [entry["id"] for entry in (polygon, rle, box)] == [1, 2, 3]
    assert box["bbox"] == [1, 1, 2, 3]
    assert box["area"] == 6
    assert "segmentation" not in box
    assert part.images == tmp_path
    assert part.faults == []


def test_the_order_of_given_classes_stays(tmp_path: Path):
    picture(tmp_path / "a.png")
    collector = Collector(tmp_path, ["zebra", "ant"])
    collector.image("a.png")
    names = [category["name"] for category in collector.part().content["categories"]]
    assert names == ["zebra", "ant"]


def test_images_that_cannot_be_used(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no image")
    collector = Collector(tmp_path, ["ant"])
    assert collector.image("a.png") is None
    assert collector.image("b.png") is None
    assert [fault.kind for fault in collector.faults] == ["not an image", "missing file"]
    with pytest.raises(UserError, match=r"no image that can be used \(a.png: unknown format; b"):
        collector.part()


def test_a_set_without_objects_has_no_classes(tmp_path: Path):
    picture(tmp_path / "a.png")
    collector = Collector(tmp_path)
    collector.image("a.png")
    with pytest.raises(UserError, match="has images, but no object"):
        collector.part()


def test_masks_of_a_label_image():
    labels = np.array([[0, 7, 7], [300, 7, 0], [0, 0, 300]], np.uint16)
    masks = masks_of(labels)
    assert [value for value, _ in masks] == [7, 300]
    for value, rle in masks:
        decoded = coco_mask.decode({**rle, "counts": rle["counts"].encode()})
        np.testing.assert_array_equal(decoded, labels == value)
    assert len(masks_of(np.full((2, 2), 5))) == 1
    assert masks_of(np.zeros((2, 2), int)) == []


def test_files_of_a_folder(tmp_path: Path):
    for name in ("b.png", "a/c.PNG", "a/.hidden.png", ".git/d.png", "b.jpg", "b.txt"):
        picture(tmp_path / name) if name[-3:] != "txt" else (tmp_path / name).write_text("")
    names = image_names(tmp_path)
    assert names == ["a/c.PNG", "b.jpg", "b.png"]
    collector = Collector(tmp_path)
    assert by_stem(names, collector) == {"a/c": "a/c.PNG", "b": "b.jpg"}
    (fault,) = collector.faults
    assert (fault.kind, fault.image) == ("two files for one image", "b.png")


def test_parts_are_folders(tmp_path: Path):
    assert part_folders(tmp_path) == []
    assert part_folder(tmp_path, "all") == tmp_path
    (tmp_path / "val").mkdir()
    assert part_folders(tmp_path) == ["val"]
    assert part_folder(tmp_path, "val") == tmp_path / "val"
