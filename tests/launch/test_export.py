"""The parts of the verb; as a whole it is in tests/cli/test_export.py."""

import sys

import pytest
from tiny_verbs import refused

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.export import parse_size

pytest_plugins = ("tiny_verbs",)


def test_a_size_is_height_x_width():
    assert parse_size("480x640") == (480, 640) and parse_size("32x16384") == (32, 16384)
    for text in (
        "480",
        "480x",
        "480x640x3",
        "480x650",
        "0x32",
        "-32x32",
        "32x32768",
        "٣٢x32",
        "axb",
    ):
        with pytest.raises(UserError, match="must be HEIGHTxWIDTH in pixels, multiples of 32"):
            parse_size(text)


@pytest.mark.parametrize(
    ("format", "name", "extra"),
    [
        ("onnx", "onnxscript", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_package_is_told_before_the_run_is_read(
    format: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)
    said = refused("export", "run=nowhere", f"format={format}")
    assert f"export format={format} needs the package {name}" in said
    assert f"pip install 'maskrcnn_lit[{extra}]'" in said


def test_a_library_needs_pt2_and_a_compiler(monkeypatch: pytest.MonkeyPatch):
    said = refused("export", "run=nowhere", "library=true")
    assert "library=true needs format=pt2, and this is onnx" in said
    monkeypatch.setenv("PATH", "")
    said = refused("export", "run=nowhere", "library=true", "format=pt2")
    assert "library=true needs a C++ compiler (c++, g++, clang++), and there is none" in said
