"""The parts of the command; as a whole it is in tests/cli/test_export.py."""

import sys

import numpy as np
import pytest
from tiny_commands import refused

from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.export import parse_size, sizes_for_any

pytest_plugins = ("tiny_commands",)


def test_a_size_is_height_x_width():
    assert parse_size("480x640") == (480, 640)
    assert parse_size("32x16384") == (32, 16384)
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
        ("web", "onnxruntime", "onnx"),
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


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (64, [(64, 64)]),
        (100, [(128, 128)]),
        ((64, 96), [(64, 96), (96, 64)]),
        ((800, 1333), [(800, 1344), (1344, 800)]),
    ],
)
def test_every_picture_fits_into_a_page(rule: ImageSize, expected: list[tuple[int, int]]):
    sizes = sizes_for_any(rule)
    assert sizes == expected
    sides = np.random.default_rng(0).integers(1, 3000, (500, 2))
    fits = [(fitted_sizes(sides, rule) <= size).all(1) for size in sizes]
    assert np.logical_or.reduce(fits).all()


def test_what_does_not_fit_a_page_is_one_sentence():
    said = refused("export", "run=nowhere", "format=web", "batch_size=4")
    assert "format=web takes one picture at a time: leave batch_size=4 out" in said
    said = refused("export", "run=nowhere", "format=web", "library=true")
    assert "library=true needs format=pt2, and this is web" in said
    said = refused("export", "run=nowhere", "web_runtime=a.tgz")
    assert "web_runtime needs format=web, and this is onnx" in said
