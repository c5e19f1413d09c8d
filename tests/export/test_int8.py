from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import HEIGHT, METADATA, WIDTH, batch_of, lively
from torch import nn

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.export import int8
from maskrcnn_lit.export.onnx_file import write_onnx
from maskrcnn_lit.export.runtime import open_exported
from maskrcnn_lit.model.mask_rcnn import MaskRCNN

pytest_plugins = ("exported",)


def all_but_the_last(model: MaskRCNN) -> set[str]:
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    return {name for name, layer in model.named_modules() if isinstance(layer, kinds)} - set(
        int8.LAST
    )


@pytest.mark.long
def test_layers_are_all_but_the_last(exported_files: dict[str, Path]):
    model = lively()
    found = int8.layers(exported_files["onnx"], model)
    assert {"backbone.body.conv1", "fpn.lateral.0", "box_head.fcs.0", "mask_head.deconv"} <= set(
        found
    )
    assert set(found) == all_but_the_last(model)
    assert len(found["rpn.convs.0"]) == 5  # one for each level


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        ["backbone=efficientnet_lite0"],  # ONNX Runtime puts its batch norms into the convolutions
        ["backbone=efficientnet_lite0", "backbone.norm=frozen"],  # and scales of frozen ones
        ["backbone=timm", "backbone.name=vit_tiny_patch16_224"],  # weights without a name
    ],
    ids=["lite", "frozen", "vit"],
)
def test_layers_of_other_backbones(options: list[str], tmp_path: Path):
    torch.manual_seed(0)
    config = compose(
        "train", ["data=shapes", "model=mask_rcnn_edge", "data.image_size=96", *options]
    )
    model = build(config.model, num_classes=3).eval().requires_grad_(False)
    write_onnx(model, tmp_path / "model.onnx", METADATA)
    found = int8.layers(tmp_path / "model.onnx", model)
    if "backbone=efficientnet_lite0" in options:
        graph = onnx.load(str(tmp_path / "model.onnx")).graph
        stem = next(node for node in graph.node if node.name in found["backbone.body.conv_stem"])
        (after,) = [node for node in graph.node if stem.output[0] in node.input]
        assert after.op_type == "Clip"  # with nothing of a norm between them
    up = {"fpn.levels.0.0", "fpn.levels.0.3", "fpn.levels.1.0"}  # stay deconvolutions in the file
    assert set(found) == all_but_the_last(model) - up
    harm = int8.harm(model, [batch_of([(HEIGHT, WIDTH)])], found)
    assert set(harm) == set(found) - {"mask_head.deconv"}
    assert all(0 < value < 1 for value in harm.values())


def computed_by(name: str, graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """The node that computes this value, behind steps to and from 8 bits."""
    node = next((node for node in graph.node if name in node.output), None)
    if node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return computed_by(node.input[0], graph)
    return node


@pytest.mark.long
def test_rounding_takes_the_place_of_an_activation(exported_files: dict[str, Path], tmp_path: Path):
    source, path = exported_files["onnx"], tmp_path / "int8.onnx"
    names = int8.layers(source, lively())
    nodes = [*names["backbone.body.conv1"], *names["box_head.fcs.0"]]
    int8.quantise(source, path, METADATA, [batch_of([(HEIGHT, WIDTH)])], nodes)
    before, after = onnx.load(str(source)).graph, onnx.load(str(path)).graph
    of_layers = [
        {
            layer.name
            for node in graph.node
            if node.op_type == "Relu" and (layer := computed_by(node.input[0], graph))
        }
        for graph in (before, after)
    ]
    assert of_layers[0] - of_layers[1] == set(nodes)


@pytest.mark.long
def test_a_quantised_file_is_small_and_near(exported_files: dict[str, Path], tmp_path: Path):
    source, path = exported_files["onnx"], tmp_path / "int8.onnx"
    names = int8.layers(source, lively())
    images = [batch_of([(HEIGHT, WIDTH)]) for _ in range(3)]
    nodes = [node for name in names if name != "fpn.output.0" for node in names[name]]
    int8.quantise(source, path, METADATA, images, nodes)
    assert path.stat().st_size < 0.35 * source.stat().st_size
    content = onnx.load(str(path))
    assert {node.domain for node in content.graph.node} == {""}
    rounded = {
        i for node in content.graph.node if node.op_type == "DequantizeLinear" for i in node.input
    }
    assert any(name.startswith("model.fpn.output.1.weight") for name in rounded)
    assert not any(name.startswith("model.fpn.output.0.weight") for name in rounded)
    exported = open_exported(path)
    assert exported.metadata.precision == "int8"
    found, expected = exported(images[0]).detections, open_exported(source)(images[0]).detections
    best = expected["scores"][0, 0]
    assert abs(float(found["scores"][0, 0] - best)) < 0.1
    assert float(best) > 0.2


def test_without_a_layer_all_stays_in_float(exported_files: dict[str, Path], tmp_path: Path):
    path = tmp_path / "int8.onnx"
    int8.quantise(exported_files["onnx"], path, METADATA, [batch_of([(HEIGHT, WIDTH)])], [])
    before, after = (onnx.load(str(file)).graph for file in (exported_files["onnx"], path))
    assert [node.op_type for node in after.node] == [node.op_type for node in before.node]


def test_the_layer_with_the_widest_numbers_is_the_most_harmful():
    model = lively()
    with torch.no_grad():  # one input channel a thousand times as large as the others needs
        model.fpn.lateral[1].weight[:, 0] *= 0.001
        model.backbone.body.layer2[1].bn2.weight[0] *= 1000
    names = [f"fpn.lateral.{n}" for n in range(4)] + ["box_head.fcs.1", "mask_head.deconv"]
    harm = int8.harm(model, [batch_of([(HEIGHT, WIDTH)])], names)
    assert next(iter(harm)) == "fpn.lateral.1"
    assert set(harm) == set(names[:-1])  # a deconvolution has no forward of its own
    assert list(harm.values()) == sorted(harm.values(), reverse=True)
    assert 0 < harm["box_head.fcs.1"] < 1e-2


def test_rounding_keeps_zero_and_the_ends():
    values = torch.tensor([-1.0, 0, 0.3, 3])
    rounded = int8._rounded(values)
    assert rounded[1] == 0
    assert np.allclose(rounded, values, atol=4 / 255 / 2 + 1e-6)
    weight = torch.tensor([[127.0, -3, 0], [0.5, 0.25, 0]])
    assert torch.allclose(int8._rounded_weight(weight), weight, atol=0.5 / 127 / 2 + 1e-6)
