"""The measured costs of backbones, and the table that is made of them."""

import json
import sys

import pytest
import torch

from maskrcnn_lit.cli.backbones import TABLE, flops
from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.measure.backbones import cost
from maskrcnn_lit.measure.cost import count_flops


@pytest.mark.long
def test_cost_of_a_resnet():
    found = cost("resnet50")
    assert found["parameters"] == 23_508_032  # 25.6 M with the classifier
    assert found["channels"] == [256, 512, 1024, 2048]
    # torchvision tells 4.09 G multiply-adds
    assert flops(found, 224) == pytest.approx(2 * 4.087e9, rel=0.01)
    assert found["weights"] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]


@pytest.mark.long
@pytest.mark.parametrize("choice", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "timm"])
def test_the_table_is_what_is_measured(choice: str):
    if choice == "timm":
        pytest.importorskip("timm")
    assert cost(choice) == json.loads(TABLE.read_text())[choice]


@pytest.mark.long
def test_flops_of_other_sizes_are_exact():
    """Squeeze-and-excitation has a part that does not grow with the image."""
    row = json.loads(TABLE.read_text())["mobilenet_v3_large"]
    assert row["fixed_flops"] > 0
    with torch.device("meta"):
        built = build(compose("train", ["backbone=mobilenet_v3_large"]).backbone).eval()
    assert flops(row, 320) == count_flops(built, torch.zeros(1, 3, 320, 320, device="meta"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"maskrcnn_lit\[timm\]"):
        cost("timm")
