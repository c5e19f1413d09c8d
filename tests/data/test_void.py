"""Void regions and boxes without masks, from the json to the batch."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_file import coco_dict, void_dict, write_coco
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.batch import check_batch
from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.coco.learnable import describe_partial
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import CocoDataset
from maskrcnn_lit.data.inspection.checks import find_faults
from maskrcnn_lit.data.samplers import BLANK
from maskrcnn_lit.data.transforms import Augment
from maskrcnn_lit.data.warp import QuarterTurns, VerticalFlip
from maskrcnn_lit.errors import UserError


def index_of(folder: Path, content: dict[str, Any], **options: Any) -> AnnotationIndex:
    annotations, images = write_coco(folder, content)
    return read_index(annotations, images, "error", cache=folder / "cache", **options)


def without_masks(ids: set[int]) -> dict[str, Any]:
    content = coco_dict()
    for annotation in content["annotations"]:
        if annotation["id"] in ids:
            annotation["segmentation"] = []
    return content


AUGMENTS = {
    "none": None,
    "flip": Augment(flip=1.0),
    "scale": Augment(scale=(0.4, 0.9)),
    "crop": Augment(flip=0.5, scale=(0.6, 1.5), crop=0.5),
    "vertical": Augment(transforms=(VerticalFlip(1.0),)),
    "turns": Augment(flip=0.5, crop=0.6, transforms=(VerticalFlip(0.5), QuarterTurns(1.0))),
}


@pytest.mark.parametrize("augment", AUGMENTS)
def test_void_pixels_stay_on_their_pixels(tmp_path: Path, augment: str):
    """The image files are white in their void region and black elsewhere."""
    content = void_dict()
    index = index_of(tmp_path, content)
    for entry in content["images"]:
        void = coco_mask.decode(entry["ignore"]) if "ignore" in entry else np.zeros((60, 100))
        size = (entry["width"], entry["height"])
        white = Image.fromarray((255 * void).astype(np.uint8)).resize(size, 0).convert("RGB")
        white.save(tmp_path / "images" / entry["file_name"], quality=100)
    dataset = CocoDataset(
        index=index, image_size=96, augment=AUGMENTS[augment], mask_size=28, cache=tmp_path
    )
    some = 0
    for epoch in range(3):
        for i in range(len(dataset)):
            sample = dataset[(epoch, i)]
            void, seen = sample["void"].numpy(), sample["images"].numpy()[0]
            assert void.shape == seen.shape
            edge = (seen > 30) & (seen < 225)
            assert (void[~edge] == (seen[~edge] > 127)).mean() > 0.995
            assert not void.any() or i % 2
            some += int(void.any())
    assert some > 4


def test_a_batch_has_the_keys_of_what_its_data_have(tmp_path: Path):
    plain = CocoDataset(
        index=index_of(tmp_path / "a", coco_dict()), image_size=64, cache=tmp_path, mask_size=28
    )
    assert not {"void", "masked"} & set(collate([plain[(0, 3)], plain[(0, BLANK)]], [(64, 64)]))
    content = void_dict()
    content["annotations"][0]["segmentation"] = None
    index = index_of(tmp_path / "b", content)
    both = CocoDataset(index=index, image_size=64, cache=tmp_path, mask_size=28)
    batch = collate([both[(0, 1)], both[(0, BLANK)]], [(64, 64)])
    check_batch(batch, 3)
    assert batch["void"][0].any()
    assert not batch["void"][1].any()
    assert batch["masked"].tolist() == [[False] * 8, [True, *[False] * 7]]
    assert batch["masks"][0, 0].all()  # the box, so that crops cut it as one
    off = index_of(tmp_path / "b", content, ignore_void=False)
    assert "void" not in CocoDataset(index=off, image_size=64, cache=tmp_path)[(0, 1)]


def test_other_keys_do_not_depend_on_void(tmp_path: Path):
    plain, void = (
        CocoDataset(index=index_of(tmp_path / name, content), image_size=64, cache=tmp_path)
        for name, content in (("a", coco_dict()), ("b", void_dict()))
    )
    for i in range(len(plain)):
        ours, theirs = plain[(0, i)], void[(0, i)]
        assert set(theirs) - set(ours) == {"void"}
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_boxes_without_masks_are_read_and_counted(tmp_path: Path):
    content = without_masks({1, 2})
    del content["annotations"][0]["area"]
    index = index_of(tmp_path, content)
    assert index.faults == ()
    rows = index.without_mask
    assert sorted(index.packed.arrays.ids[rows].tolist()) == [1, 2]
    truth = {a["id"]: a for a in index.coco_ground_truth()["annotations"]}
    assert truth[1]["segmentation"] == []
    box = content["annotations"][0]["bbox"]
    assert truth[1]["area"] == box[2] * box[3]
    (line,) = describe_partial(index)
    objects = sum(not a["iscrowd"] for a in content["annotations"])
    assert line.startswith(f"2 of {objects} objects have a box and no mask")
    every = {a["id"] for a in content["annotations"]}
    (line,) = describe_partial(index_of(tmp_path / "all", without_masks(every)))
    assert line.startswith("no object has a mask")


def test_a_void_region_is_that_of_the_json(tmp_path: Path):
    content = void_dict()
    index = index_of(tmp_path, content)
    assert index.has_void
    truth = index.coco_ground_truth()["images"]
    for given, image in zip(content["images"], truth, strict=True):
        assert ("ignore" in given) == ("ignore" in image)
        if "ignore" in given:
            both = [coco_mask.decode(one["ignore"]) for one in (given, image)]
            assert np.array_equal(*both)
    (line,) = describe_partial(index)
    assert line.startswith("3 of 6 images have void pixels (18.")
    assert not index.at(np.array([0, 2])).has_void
    off = index_of(tmp_path, content, ignore_void=False)
    assert not off.has_void
    assert not any("ignore" in image for image in off.coco_ground_truth()["images"])
    assert "they count as background" in next(describe_partial(off))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (1, "ignore is 1, not an RLE"),
        ({"size": [9, 9], "counts": [81]}, r"RLE of another size \(size \[9, 9\]"),
        ({"size": [60, 100], "counts": [7]}, "do not add up to the image's pixels"),
    ],
)
def test_a_broken_void_region_is_a_fault_of_its_image(tmp_path: Path, value: Any, why: str):
    content = coco_dict()
    content["images"][0]["ignore"] = value
    with pytest.raises(UserError, match=f"1 x broken void region .00.jpg: .*{why}"):
        index_of(tmp_path, content)


def test_a_run_says_what_has_no_mask_and_what_is_void(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    content = void_dict()
    content["annotations"][0]["segmentation"] = []
    annotations, images = write_coco(tmp_path, content)
    part = {"images": images, "annotations": annotations}
    data = CocoDataModule(name="own", train=part, val=part, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    for name in ("train", "val"):
        assert f"{name}: 1 of 13 objects have a box and no mask" in caplog.text
        assert f"{name}: 3 of 6 images have void pixels" in caplog.text


def test_a_check_takes_void_pixels_for_those_of_the_object(tmp_path: Path):
    """The mask has a quarter of its box; the rest is void, or not."""
    content = coco_dict()
    (annotation,) = (a for a in content["annotations"] if a["image_id"] == 2)
    annotation |= {"bbox": [10, 10, 40, 40], "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
    annotation["area"] = 400
    faults = find_faults(index_of(tmp_path / "a", content)).faults()
    assert [fault.kind for fault in faults] == ["box and mask disagree"]
    image = content["images"][1]
    void = np.zeros((image["height"], image["width"]), np.uint8, order="F")
    void[5:60, 5:60] = 1
    void[10:30, 10:30] = 0
    rle = coco_mask.encode(void)
    image["ignore"] = rle | {"counts": rle["counts"].decode()}
    assert find_faults(index_of(tmp_path / "b", content)).faults() == []


def test_a_check_knows_boxes_without_masks(tmp_path: Path):
    content = without_masks({1, 2})
    assert find_faults(index_of(tmp_path / "a", content)).faults() == []
    twice = {**content["annotations"][0], "id": 99}
    content["annotations"].append(twice)
    (fault,) = find_faults(index_of(tmp_path / "b", content)).faults()
    assert fault.kind == "same annotation twice"
