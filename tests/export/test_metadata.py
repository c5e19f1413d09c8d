import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from exported import METADATA

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.metadata import VERSION, read


def test_what_was_written_is_read():
    assert read(METADATA.to_json(), "a.onnx") == METADATA
    other = replace(METADATA, image_size=(64, 128), thresholds=(0.1, 0.2, 0.3), commit=None)
    assert read(other.to_json().encode(), "a.onnx") == other
    exclusive = replace(METADATA, exclusive=True)
    assert read(exclusive.to_json(), "a.onnx") == exclusive
    deep = replace(METADATA, bits=12)
    assert read(deep.to_json(), "a.onnx") == deep
    values = asdict(METADATA)
    del values["exclusive"], values["bits"]  # a file of before
    assert read(json.dumps(values), "a.onnx") == METADATA


def test_a_file_without_metadata_or_of_another_version_is_one_sentence():
    with pytest.raises(UserError, match=r"a\.onnx has no metadata of maskrcnn_lit: give a file"):
        read(None, "a.onnx")
    text = json.dumps(asdict(METADATA) | {"version": VERSION + 1})
    with pytest.raises(UserError, match=r"version 2, and this maskrcnn_lit reads version 1: exp"):
        read(text, "a.onnx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "pickle"),
        ("format", ["onnx"]),
        ("precision", None),
        ("size", [64]),
        ("size", [64, 50]),
        ("size", [64, 10**9]),
        ("size", "64x64"),
        ("batch_size", True),
        ("batch_size", 0),
        ("image_size", "large"),
        ("mean", [0.1, 0.2]),
        ("std", [0.1, 0.2, float("nan")]),
        ("classes", []),
        ("classes", [[1]]),
        ("classes", [["1", "cat"]]),
        ("classes", {"_target_": "os.system"}),
        ("slots", 1.5),
        ("score_threshold", -1),
        ("nms_iou", "0.5"),
        ("bits", 33),
        ("thresholds", [0.5]),
        ("config_sha256", 3),
        ("commit", {"_target_": "os.system"}),
        ("versions", ["torch"]),
        ("versions", {"torch": None}),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(name: str, value: Any):
    with pytest.raises(UserError, match=r"^a\.onnx has metadata that cannot be read \(") as caught:
        read(json.dumps(asdict(METADATA) | {name: value}), "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "onnx"}', "[" * 100_000])
def test_what_is_not_the_json_of_an_export_is_one_sentence(text: str):
    with pytest.raises(UserError, match=r"^a\.onnx has metadata that cannot be read \("):
        read(text, "a.onnx")
