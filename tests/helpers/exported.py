"""Exported files of a tiny model with random weights, made once for all tests of a process.

A pytest plugin: a test module that wants its fixtures says `pytest_plugins = ("exported",)`.
(PYTEST_DONT_REWRITE: it has imported this module by then, and pytest would warn.)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from torch import Tensor

from maskrcnn_lit.export.metadata import VERSION, Metadata
from maskrcnn_lit.export.onnx_file import write_onnx
from maskrcnn_lit.export.other_files import write_openvino, write_pt2
from maskrcnn_lit.model.mask_rcnn import MaskRCNN

HEIGHT, WIDTH = 64, 96
METADATA = Metadata(
    version=VERSION,
    format="onnx",
    precision="f32",
    size=(HEIGHT, WIDTH),
    batch_size=1,
    image_size=(64, 96),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    classes=((7, "circle"), (9, "square"), (11, "triangle")),
    slots=100,
    mask_side=28,
    score_threshold=0.0,
    nms_iou=0.5,
    thresholds=None,
    config_sha256="0" * 64,
    commit="abc",
    versions={"torch": "2"},
)


def lively(**options: Any) -> MaskRCNN:
    """A model with random weights that detects something everywhere."""
    torch.manual_seed(0)
    model = make_model(**options).eval().requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1), layer.running_var.uniform_(0.5, 2)
        if name.endswith(("objectness", "classes")):
            layer.weight.mul_(30)
        if name.endswith("conv_offset"):
            layer.weight.normal_(std=0.05)
    model.box_head.score_threshold = 0.0
    if model.mask_iou is not None:
        model.mask_iou.ious.weight.mul_(5)
        model.mask_iou.ious.bias.fill_(0.5)
    return model


def batch_of(sizes: list[tuple[int, int]], padded: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    """Random pixels of these sizes, padded with zeros: a batch without targets."""
    pixels = torch.randint(0, 256, (len(sizes), 3, *padded), dtype=torch.uint8)
    for own, (height, width) in zip(pixels, sizes, strict=True):
        own[:, height:], own[:, :, width:] = 0, 0
    return {"images": pixels, "image_sizes": torch.tensor(sizes)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], score: float = 1e-5) -> None:
    """The bounds of the certificate."""
    there = expected["valid"]
    assert there.sum() > 20
    for name, bound in {"valid": 0, "labels": 0, "boxes": 0.01, "scores": score}.items():
        torch.testing.assert_close(found[name], expected[name], atol=bound, rtol=0)
    torch.testing.assert_close(found["masks"][there], expected["masks"][there], atol=1e-4, rtol=0)


@pytest.fixture(scope="session")
def exported_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of `lively()`: format -> file."""
    folder = tmp_path_factory.mktemp("exported")
    files = {
        "onnx": folder / "model.onnx",
        "openvino": folder / "model.xml",
        "pt2": folder / "model.pt2",
    }
    model = lively()
    write_onnx(model, files["onnx"], METADATA)
    write_openvino(files["onnx"], files["openvino"], replace(METADATA, format="openvino"))
    write_pt2(model, files["pt2"], replace(METADATA, format="pt2"))
    return files
