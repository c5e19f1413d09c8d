"""The page of `export format=web`: its arithmetic in V8 is that of the package, and what is in it.

A browser shows it in tests/test_web_page.py.
"""

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import HEIGHT, METADATA, WIDTH
from PIL import Image
from py_mini_racer import MiniRacer
from pycocotools import mask as coco_mask
from row_runs import pixels_of

from maskrcnn_lit import load_model
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import INPUTS, OUTPUTS
from maskrcnn_lit.export.web_runtime import WebRuntime
from maskrcnn_lit.model.paste_masks import masks_to_rle
from maskrcnn_lit.model.postprocess import original_boxes
from maskrcnn_lit.report import web
from maskrcnn_lit.report.draw import PALETTE
from maskrcnn_lit.report.elements import environment

pytest_plugins = ("exported",)

RUNTIME = WebRuntime(b"export {}", b"\0asm")


class Script:
    """The plain functions of the pages: `call` takes numbers, lists and arrays."""

    def __init__(self) -> None:
        self._engine = MiniRacer()
        loader = environment().loader
        assert loader is not None
        for name in ("web_detect.js", "web_colors.js", "web_masks.js"):
            self._engine.eval(loader.get_source(environment(), name)[0])

    def call(self, function: str, *arguments: Any) -> Any:
        """A typed array becomes a list."""
        given = ", ".join(map(self._text, arguments))
        plain = "(key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value"
        return json.loads(str(self._engine.eval(f"JSON.stringify({function}({given}), {plain})")))

    def _text(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k}: {self._text(v)}" for k, v in value.items()) + "}"
        if not isinstance(value, np.ndarray):
            return json.dumps(value)
        kind = {"u": "Uint8Array", "b": "Uint8Array", "f": "Float32Array", "i": "Int32Array"}
        flat = json.dumps(value.ravel().tolist()).replace("true", "1").replace("false", "0")
        return f"{kind[value.dtype.kind]}.from({flat})"


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


def rgba(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


@pytest.mark.parametrize(
    ("height", "width", "rule"),
    [
        (64, 96, 128),
        (200, 131, 64),
        (77, 300, (64, 96)),
        (31, 7, 64),
        (128, 128, 128),
        (500, 333, (96, 160)),
        (400, 16, 64),
        (1, 1, 64),
    ],
)
def test_the_input_is_that_of_the_package_to_the_bit(
    height: int, width: int, rule: Any, script: Script
):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = image_batch([pixels], [1], rule)
    size = script.call("fittedSize", height, width, rule)
    assert size == expected["image_sizes"][0].tolist()
    padded = list(expected["images"].shape[-2:])
    found = script.call("modelInput", rgba(pixels), height, width, size, padded)
    assert found == expected["images"].flatten().tolist()


def test_half_a_pixel_rounds_to_even(script: Script):
    sizes = [script.call("fittedSize", 200, side, 100)[1] for side in (1, 3, 5, 7, 9)]
    assert sizes == [1, 2, 2, 4, 4]  # 0.5, 1.5, ...; a side has at least a pixel


def test_the_smallest_size_that_holds_the_picture(script: Script):
    sizes = [[128, 96], [64, 96], [96, 64]]
    for height, width, expected in ((64, 96, 1), (65, 64, 2), (96, 96, 0), (97, 97, -1)):
        assert script.call("smallestSize", sizes, height, width) == expected


def test_boxes_are_in_pixels_of_the_picture(script: Script):
    boxes = np.random.default_rng(0).uniform(-20, 120, (30, 4)).astype(np.float32)
    scale = torch.tensor([64 / 201, 96 / 305])
    expected = original_boxes(torch.from_numpy(boxes), scale, 201, 305)
    found = [script.call("originalBox", box, [64, 96], 201, 305) for box in boxes]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
    assert (np.array(found) == 0).any()
    assert (np.array(found) == 305).any()


def test_masks_are_those_of_the_package(script: Script):
    height, width = 50, 60
    masks = torch.nn.functional.avg_pool2d(torch.rand(40, 30, 30), 3, 1)
    corner = torch.rand(40, 2) * 40
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 30 + 0.5], 1).clamp(max=60)
    boxes[0], boxes[1] = torch.tensor([0.0, 0, 60, 50]), torch.tensor([0.0, 0, 0, 0])
    boxes[:, 3] = boxes[:, 3].clamp(max=50)
    expected = coco_mask.decode(masks_to_rle(masks, boxes, height, width)).transpose(2, 0, 1) > 0
    found = np.stack(
        [
            pixels_of(
                script.call("maskRuns", mask, 28, box.astype(float).tolist(), height, width),
                height,
                width,
            )
            for mask, box in zip(masks.numpy(), boxes.numpy(), strict=True)
        ]
    )
    assert expected.sum() > 1000
    assert (found != expected).sum() <= 2  # rounding at 0.5


def test_near_objects_differ_in_color(script: Script):
    def box(x: float, label: int) -> dict[str, Any]:
        return {"box": [x, 0, x + 10, 10], "label": label}

    found = [box(0, 1), box(5, 1), box(100, 1), box(102, 2), box(6, 1)]
    assert script.call("chooseColors", found, 3, 1) == [0, 1, 0, 1, 2]


@pytest.mark.long
@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH), (50, 77)])
def test_around_the_model_it_detects_what_python_detects(
    height: int, width: int, script: Script, exported_files: dict[str, Path], tmp_path: Path
):
    import onnxruntime

    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (expected,) = load_model(exported_files["onnx"], score_threshold=0.0).predict(
        tmp_path / "a.png"
    )
    size = script.call("fittedSize", height, width, METADATA.image_size)
    images = script.call("modelInput", rgba(pixels), height, width, size, METADATA.size)
    inputs = np.array(images, np.uint8).reshape(1, 3, *METADATA.size), np.array([size])
    session = onnxruntime.InferenceSession(exported_files["onnx"])
    outputs = session.run(OUTPUTS, dict(zip(INPUTS, inputs, strict=True)))
    named = {name: value[0] for name, value in zip(OUTPUTS, outputs, strict=True)}
    found = script.call("detections", named, {"mask_side": 28}, size, height, width)
    assert len(found) == len(expected) > 20
    assert [row["label"] for row in found] == expected.labels.tolist()
    np.testing.assert_allclose([row["score"] for row in found], expected.scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose([row["box"] for row in found], expected.boxes, rtol=0, atol=0.01)
    masks = np.stack([pixels_of(row["runs"], height, width) for row in found])
    assert masks.any()
    assert (masks != expected.masks_array()).sum() <= 2


def parts_of(page: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="[a-z/]*" id="(\w+)">(.*?)</script>', page, re.DOTALL))


def test_the_page_has_everything_inside():
    tall = replace(METADATA, size=(WIDTH, HEIGHT))
    page = web.web_page([(METADATA, b"wide"), (tall, b"tall")], RUNTIME)
    assert page == web.web_page([(METADATA, b"wide"), (tall, b"tall")], RUNTIME)
    parts = parts_of(page)
    packed = {"library": RUNTIME.library, "wasm": RUNTIME.wasm}
    packed |= {"model_64x96": b"wide", "model_96x64": b"tall"}
    for name, content in packed.items():
        assert gzip.decompress(base64.b64decode(parts[name])) == content
    data = json.loads(parts["data"])
    assert [model["name"] for model in data["models"]] == ["model_64x96", "model_96x64"]
    assert data["models"][0]["about"]["classes"] == [list(row) for row in METADATA.classes]
    assert len(data["colors"]) == len(PALETTE)
    assert "It finds circle, square, triangle." in page
    assert "MIT License" in page


def test_its_policy_lets_nothing_come_from_elsewhere():
    page = web.web_page([(METADATA, b"model")], RUNTIME)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';")
    assert not re.findall(r"https?:|\*", policy)
    assert not re.findall(r"""(?:src|href)=["'](?!#)|url\(|//[a-z]+\.|@import""", page)


def test_a_class_name_cannot_end_the_script():
    name = "</script><script>alert(1)//&amp;"
    page = web.web_page([(replace(METADATA, classes=((1, name),)), b"model")], RUNTIME)
    assert "<script>alert" not in page
    assert json.loads(parts_of(page)["data"])["models"][0]["about"]["classes"] == [[1, name]]


def test_many_classes_are_counted():
    many = replace(METADATA, classes=tuple((i, f"c{i}") for i in range(1, 81)))
    assert "c8 and 72 more classes." in web.web_page([(many, b"model")], RUNTIME)


def test_models_that_no_browser_takes_are_refused(monkeypatch: pytest.MonkeyPatch):
    web.check_models_fit(web.MAX_BYTES)
    with pytest.raises(UserError, match="would have 257 MB, and a browser takes up to 256 MB"):
        web.check_models_fit(257 * 2**20)
    monkeypatch.setattr(web, "MAX_BYTES", 7)
    with pytest.raises(UserError, match=r"give one size with sizes=\[HEIGHTxWIDTH\], precision"):
        web.web_page([(METADATA, b"four"), (METADATA, b"four")], RUNTIME)


def test_masks_of_coco_become_columns(script: Script):
    generator = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (40, 30), (300, 200)):
        mask = np.asfortranarray(generator.integers(0, 2, (height, width), np.uint8))
        if height == 300:  # long runs over several columns
            mask[:], mask[:, 10:150], mask[40:60, 20:30] = 0, 1, 0
        rle = coco_mask.encode(mask)
        columns = script.call("rleColumns", {"size": rle["size"], "counts": rle["counts"].decode()})
        drawn = np.zeros_like(mask)
        for x, y, count in zip(columns[::3], columns[1::3], columns[2::3], strict=True):
            assert not drawn[y : y + count, x].any()
            drawn[y : y + count, x] = 1
        assert np.array_equal(drawn, mask)


@pytest.mark.parametrize(
    ("x", "y", "name"),
    [(2.5, 2.5, "inner"), (1.5, 1.5, "outer"), (5.5, 5.5, None), (8.5, 8.5, "box"), (9.5, 0, None)],
)
def test_a_click_selects_the_smallest_object_there(
    x: float, y: float, name: str | None, script: Script
):
    found = [
        {"name": "outer", "box": [0, 0, 6, 6], "columns": [1, 1, 2, 2, 1, 2]},
        {"name": "inner", "box": [2, 2, 4, 4], "runs": [2, 2, 2]},
        {"name": "box", "box": [7, 7, 9, 9]},
    ]
    there = script.call("objectAt", found, x, y)
    assert (there and there["name"]) == name
