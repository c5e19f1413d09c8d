"""The largest batches of a data set."""

from pathlib import Path

import pytest
import torch
from coco_file import coco_dict, write_coco

from maskrcnn_lit.data.batch import Batch, check_batch
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.measure.full_batch import Fullest, full_batch, fullest


@pytest.fixture
def data(tmp_path: Path) -> CocoDataModule:
    """Landscape and portrait pictures, of which one has eleven objects."""
    content = coco_dict(8)
    for number in range(4):
        entry = content["annotations"][-1] | {"id": 1000 + number}
        content["annotations"].append(entry)
    annotations, images = write_coco(tmp_path, content)
    part = {"images": str(images), "annotations": str(annotations)}
    module = CocoDataModule(
        name="small",
        train=part,
        val=part,
        image_size=(64, 160),
        workers=0,
        cache_dir=tmp_path / "cache",
    )
    module.setup("fit")
    return module


@pytest.fixture
def largest(data: CocoDataModule) -> Fullest:
    assert data.val_index is not None
    return fullest(data, data.val_index)


@pytest.fixture
def batch(largest: Fullest) -> Batch:
    return full_batch(largest, largest.shapes[0], 10)


def test_the_padded_sizes_are_those_of_the_data_the_largest_first(
    data: CocoDataModule, largest: Fullest
):
    loader = data.train_dataloader()
    seen = {tuple(batch["images"].shape[2:]) for batch in loader}
    assert seen <= set(largest.shapes)
    assert {height > width for height, width in largest.shapes} == {True, False}
    areas = [height * width for height, width in largest.shapes]
    assert areas == sorted(areas, reverse=True)


def test_there_are_slots_for_the_image_with_the_most_objects(largest: Fullest):
    assert largest.slots == 16


def test_more_slots_are_those_of_the_option(data: CocoDataModule):
    data.slots = 64
    assert data.val_index is not None
    assert fullest(data, data.val_index).slots == 64


def test_a_batch_follows_the_contract(batch: Batch, largest: Fullest):
    check_batch(batch, largest.classes)


def test_every_slot_has_an_object(batch: Batch):
    assert batch["valid"].shape == (10, 16)
    assert batch["valid"].all()


def test_images_fill_the_padded_size(batch: Batch, largest: Fullest):
    shape = largest.shapes[0]
    assert batch["images"].shape[2:] == shape
    assert torch.equal(batch["image_sizes"], torch.tensor(shape).repeat(10, 1))


def test_images_are_of_the_part_and_as_large_as_its_largest(batch: Batch, largest: Fullest):
    assert set(batch["image_ids"].tolist()) == set(largest.image_ids)
    assert batch["original_sizes"][0].tolist() == [110, 75], "the largest picture of coco_dict"


@pytest.mark.parametrize("key", ["void", "masked"])
def test_what_some_data_have_a_batch_has_as_well(batch: Batch, largest: Fullest, key: str):
    assert key not in batch
    more = full_batch(largest._replace(void=True, masked=True), largest.shapes[0], 2)
    check_batch(more, largest.classes)
    assert key in more


def test_the_keys_are_those_of_a_real_batch(data: CocoDataModule, batch: Batch):
    assert batch.keys() == next(iter(data.val_dataloader())).keys()
