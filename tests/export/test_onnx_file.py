from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from exported import METADATA, assert_same, batch_of, lively
from torch import nn

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.export.graph import convolve_on_grid
from maskrcnn_lit.export.metadata import KEY
from maskrcnn_lit.export.onnx_file import OPSET, write_onnx
from maskrcnn_lit.export.runtime import open_exported
from maskrcnn_lit.model.deformable import DeformableConv
from maskrcnn_lit.model.suppression import Suppression

pytest_plugins = ("exported",)


@pytest.mark.long
def test_the_file_has_standard_operators_alone(exported_files: dict[str, Path]):
    content = onnx.load(str(exported_files["onnx"]))
    onnx.checker.check_model(content, full_check=True)
    assert {node.domain for node in content.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", 20)]
    kinds = [node.op_type for node in content.graph.node]
    assert kinds.count("RoiAlign") == 2
    assert kinds.count("NonMaxSuppression") == 2
    assert not {"Loop", "If", "SequenceAt", "Scan"} & set(kinds)


@pytest.mark.long
def test_shapes_are_fixed_and_the_metadata_is_inside(exported_files: dict[str, Path]):
    content = onnx.load(str(exported_files["onnx"]))
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*content.graph.input, *content.graph.output)
    }
    assert shapes == {
        "images": [1, 3, 64, 96],
        "image_sizes": [1, 2],
        "boxes": [1, 100, 4],
        "scores": [1, 100],
        "labels": [1, 100],
        "masks": [1, 100, 28, 28],
        "valid": [1, 100],
    }
    assert {p.key: p.value for p in content.metadata_props} == {KEY: METADATA.to_json()}


@pytest.mark.long
@pytest.mark.parametrize(  # of masks, and of lowered scores: test_graph.py has both in the graphs
    "nms", ["mask", pytest.param("soft", marks=pytest.mark.slow)]
)
def test_other_kinds_of_suppression_are_in_the_file(nms: str, tmp_path: Path):
    model = lively()
    model.set_suppression(Suppression(nms, exclusive=True))
    file = tmp_path / "model.onnx"
    write_onnx(model, file, replace(METADATA, exclusive=True))
    content = onnx.load(str(file))
    assert {node.domain for node in content.graph.node} == {""}
    assert not {"Loop", "If", "SequenceAt", "Scan"} & {node.op_type for node in content.graph.node}
    batch = batch_of([(64, 90)])
    found = open_exported(file)(batch).detections or {}
    assert torch.equal(found["exclusive"], found["valid"])
    with torch.no_grad():
        assert_same(found, model.infer(batch["images"], batch["image_sizes"], True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("samvit_base_patch16", {"depth": 4, "img_size": 64}),  # relative positions
        ("vit_small_patch16_dinov3", {"depth": 5, "init_values": 1.0}),  # rotary, in windows
    ],
)
def test_a_plain_transformer_is_exported(name: str, options: dict[str, Any], tmp_path: Path):
    window = None if name.startswith("sam") else 3
    config = compose("train", ["backbone=timm", "model=tiny"]).model
    config.backbone.update(name=name, window=window)
    config.backbone.options = options | {"embed_dim": 32, "num_heads": 2}
    config.num_classes = 3
    torch.manual_seed(0)
    model, file, batch = build(config).eval(), tmp_path / "model.onnx", batch_of([(64, 90)])
    write_onnx(model, file, METADATA)
    assert {node.domain for node in onnx.load(str(file)).graph.node} == {""}
    with torch.no_grad():
        expected = model.infer(batch["images"], batch["image_sizes"], True)
    assert_same(open_exported(file)(batch).detections or {}, expected)


@pytest.mark.long
@pytest.mark.parametrize("modulated", [True, False])
def test_a_deformable_convolution_runs_in_onnx_runtime(modulated: bool, tmp_path: Path):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    layer = DeformableConv(plain, modulated).eval()
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    images, file = torch.randn(2, 4, 9, 12), tmp_path / "layer.onnx"
    with torch.no_grad():
        expected = layer(images)
        layer.convolve = partial(convolve_on_grid, layer)
        program = torch.onnx.export(
            layer, (images,), dynamo=True, opset_version=OPSET, verbose=False
        )
    program.save(str(file))
    assert "GridSample" in {node.op_type for node in onnx.load(str(file)).graph.node}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    assert expected.std() > 0.1
