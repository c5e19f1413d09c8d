import json
from pathlib import Path

import numpy as np
import pytest
from coco_file import small_index
from object_table import objects

from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.dataset import CocoDataset
from maskrcnn_lit.data.inspection.summary import (
    quantiles,
    read_objects,
    shares_by_size,
    summarize,
)


@pytest.mark.parametrize("image_size", [128, (120, 200)])
def test_boxes_are_those_that_validation_shows(image_size, tmp_path: Path):
    index = small_index(tmp_path)
    found = read_objects(index, image_size)
    dataset = CocoDataset(index=index, image_size=image_size)
    assert len(found.image) == 15
    assert found.crowd.sum() == 2
    for i in range(len(index)):
        sample = dataset[0, i]
        assert sample["image_sizes"].tolist() == found.sizes[i].tolist()
        assert found.file_sizes[i].tolist() == list(index.size(i))
        assert np.allclose(found.boxes[found.image == i], sample["boxes"].numpy(), atol=1e-3)
        assert found.labels[found.image == i].tolist() == sample["labels"].tolist()


def test_a_summary_agrees_with_the_json(test_data: Path):
    file = test_data / "coco_mini/annotations/instances_val2017.json"
    raw = json.loads(file.read_text())
    index = read_index(file, test_data / "coco_mini/val2017", "error")
    found = summarize(
        read_objects(index, (800, 1333)), [category.name for category in index.categories]
    )
    names = {category["id"]: category["name"] for category in raw["categories"]}
    alone = [a for a in raw["annotations"] if not a["iscrowd"]]
    assert found["images"] == 111
    assert found["objects"] == len(alone) == 1087
    assert found["crowd_regions"] == 15
    assert found["images_without_objects"] == 111 - len({a["image_id"] for a in alone})
    for name in names.values():
        assert found["classes"][name] == sum(names[a["category_id"]] == name for a in alone), name
    # the README of coco_mini counts 488, 391 and 208 by COCO's limits
    assert [round(share * 1087) for share in found["sizes_in_file"].values()] == [488, 391, 208]
    counts = [sum(a["image_id"] == image["id"] for a in alone) for image in raw["images"]]
    assert found["objects_per_image"]["mean"] == pytest.approx(np.mean(counts))
    assert found["objects_per_image"]["max"] == max(counts)
    assert found["height"]["median"] == 800
    assert found["file_width"]["max"] == 640
    assert sum(found["crowding"].values()) == pytest.approx(1)
    assert json.loads(json.dumps(found)) == found


def test_images_with_over_100_objects_are_counted():
    found = summarize(objects([[0, 0, 1, 1]] * 101, [1] * 101), ["a"])
    assert found["objects_per_image"] == {
        "mean": 50.5,
        "median": 50.5,
        "max": 101,
        "share_of_images_over_100": 0.5,
    }
    assert found["images_without_objects"] == 1


def test_a_set_without_objects_has_a_summary():
    found = summarize(objects([], []), ["a", "b"])
    assert found["objects"] == 0
    assert found["classes"] == {"a": 0, "b": 0}
    assert found["side"] is None
    assert set(found["sizes"].values()) == {0.0}
    assert found["images_without_objects"] == 2


def test_crowding_is_that_of_each_image_alone():
    boxes = [[0, 0, 16, 16], [8, 0, 24, 16], [0, 8, 16, 24], [0, 0, 16, 16], [40, 40, 50, 50]]
    found = summarize(objects(boxes, [0, 0, 0, 1, 1]), ["one"])["crowding"]
    # of the first three 0.75, 0.5 and 0.5 are covered; the others are in another image
    assert found == {"under 0.1": 0.4, "0.1 to 0.4": 0.0, "over 0.4": 0.6}


def test_sizes_are_by_cocos_limits():
    assert shares_by_size(np.array([31.9, 32, 95.9, 96])) == {
        "small": 0.25,
        "medium": 0.5,
        "large": 0.25,
    }


def test_quantiles():
    assert quantiles(np.arange(101)) == {
        "min": 0,
        "5%": 5,
        "25%": 25,
        "median": 50,
        "75%": 75,
        "95%": 95,
        "max": 100,
    }
    assert quantiles(np.zeros(0)) is None
