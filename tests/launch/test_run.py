"""What a job is made of: the data that its config names, and a model for their classes. (Whole
runs: test_train.py.)
"""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_verbs import MODEL, TRAIN_IMAGES, VAL_IMAGES, coco_data

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.run import build_module, read_data
from maskrcnn_lit.runs.folder import settle
from maskrcnn_lit.runs.provenance import describe_datamodule

pytest_plugins = ("tiny_verbs",)


def test_the_data_are_read_and_the_model_is_for_their_classes(strange: Path):
    config = settle(compose("train", [*coco_data(strange), *MODEL, "run_dir=there"]))
    data = read_data(config)
    told = describe_datamodule(data)
    assert (told["train"]["images"], told["val"]["images"]) == (TRAIN_IMAGES, VAL_IMAGES)
    torch.manual_seed(0)
    module = build_module(config, data)
    assert module.categories == tuple(data.categories)
    assert (
        module.model.box_head.num_classes
        == len(data.categories)
        == module.config["model"]["num_classes"]
    )
    assert module.config["run_dir"] == "there" and "sweep" not in module.config


def test_images_chosen_by_id_may_be_of_one_part_alone(test_data: Path, tmp_path: Path):
    ids = [223747, 318080, 346638, 416256]
    (tmp_path / "annotations").symlink_to(test_data / "coco_mini" / "annotations")
    (tmp_path / "train2017").mkdir()
    (tmp_path / "val2017").mkdir()
    for number in ids:
        shutil.copy(test_data / "coco_mini" / "val2017" / f"{number:012}.jpg", tmp_path / "val2017")
    config = settle(compose("train", ["experiment=overfit", f"data.root={tmp_path}"]))
    assert read_data(config).subset_ids() == {"train": ids, "val": ids}


def test_another_number_of_classes_is_a_mistake(strange: Path):
    config = settle(compose("train", [*coco_data(strange), *MODEL, "model.num_classes=80"]))
    with pytest.raises(
        UserError, match=r"model\.num_classes=80, but the data has \d+ categories: leave it out"
    ):
        read_data(config)
