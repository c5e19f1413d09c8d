from pathlib import Path

import onnx
import pytest
from exported import METADATA

from maskrcnn_lit.export.metadata import KEY

pytest_plugins = ("exported",)


@pytest.mark.long
def test_the_file_has_standard_operators_alone(exported_files: dict[str, Path]):
    content = onnx.load(str(exported_files["onnx"]))
    onnx.checker.check_model(content, full_check=True)
    assert {node.domain for node in content.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", 20)]
    kinds = [node.op_type for node in content.graph.node]
    assert kinds.count("RoiAlign") == 2 and kinds.count("NonMaxSuppression") == 2
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
