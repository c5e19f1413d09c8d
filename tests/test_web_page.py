"""The page of `export format=web` in Chromium, from a file and without a network: it detects what
Python detects, and does what a person asks of it.

`pytest -m browser` runs it where Chromium is. MASKRCNN_LIT_WEB_RUNTIME names the package of
onnxruntime-web, which is downloaded otherwise.
"""

import base64
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from exported import HEIGHT, METADATA, WIDTH, batch_of, lively
from PIL import Image
from row_runs import pixels_of

from maskrcnn_lit import load_model
from maskrcnn_lit.export import int8
from maskrcnn_lit.export.runtime import open_exported
from maskrcnn_lit.export.web_runtime import read_web_runtime
from maskrcnn_lit.report.web import web_page

pytest_plugins = ("exported",)
pytestmark = [pytest.mark.browser, pytest.mark.process, pytest.mark.long]

OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND",)
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
LISTEN = """
window.answers = [];
document.addEventListener("detections", ({ detail }) => window.answers.push(
  { ...detail, found: detail.found.map((one) => ({ ...one, runs: Array.from(one.runs) })) }));
"""


def make_page(model: Path, file: Path) -> Path:
    runtime = read_web_runtime(os.environ.get("MASKRCNN_LIT_WEB_RUNTIME"))
    metadata = open_exported(model).metadata
    file.write_text(web_page([(metadata, model.read_bytes())], runtime))
    return file


def says(page: browser.Page, until: Callable[[str], bool], seconds: float = 90) -> str:
    """The status line as soon as `until` holds of it, or after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        status = str(page.evaluate("document.getElementById('status')?.textContent"))
        if until(status) or time.monotonic() > end:
            return status
        time.sleep(0.1)


def open_page(page: browser.Page, file: Path) -> None:
    page.open(file.as_uri())
    assert says(page, lambda text: text == "Ready.") == "Ready."
    page.evaluate(LISTEN)


def detect(page: browser.Page, image: Path) -> Any:
    """What the page finds in a picture that is chosen as a person does."""
    before = page.evaluate("answers.length")
    page.choose_file("#file", image)
    return answer(page, before)


def answer(page: browser.Page, before: int) -> Any:
    end = time.monotonic() + 90
    while page.evaluate("answers.length") == before and time.monotonic() < end:
        time.sleep(0.1)
    return page.evaluate("answers.at(-1)")


def rows(page: browser.Page) -> list[str]:
    script = "[...document.querySelectorAll('#list li')].map((row) => row.innerText)"
    return [" ".join(row.split()) for row in page.evaluate(script)]


def slide(page: browser.Page, value: float) -> None:
    page.evaluate(
        f"threshold.value = {value}; threshold.dispatchEvent(new Event('input')); undefined"
    )


def assert_same(page: browser.Page, model: Path, image: Path) -> None:
    """The page, which has `model` inside, detects what Python detects with it."""
    (expected,) = load_model(model, score_threshold=0).predict(image)
    found = detect(page, image)["found"]
    assert len(found) == len(expected) > 20
    assert [row["label"] for row in found] == expected.labels.tolist()
    np.testing.assert_allclose([row["score"] for row in found], expected.scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose([row["box"] for row in found], expected.boxes, rtol=0, atol=0.01)
    size = expected.image.shape[:2]
    masks = np.stack([pixels_of(row["runs"], *size) for row in found])
    wrong = (masks != expected.masks_array()).sum()
    assert masks.any(), wrong
    assert wrong <= 1e-4 * masks.size, wrong  # probabilities differ by 1e-6


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.fail(f"no browser here: install one of {', '.join(browser.NAMES)}")
    profile = tmp_path_factory.mktemp("browser")
    with browser.page(profile, flags=(*OFFLINE, *CAMERA)) as opened:
        yield opened


@pytest.fixture(scope="module")
def file(exported_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page(exported_files["onnx"], tmp_path_factory.mktemp("page") / "index.html")


@pytest.fixture(scope="module")
def page(chromium: browser.Page, file: Path) -> browser.Page:
    open_page(chromium, file)
    return chromium


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (130, 190), (50, 77)])
def test_it_detects_what_python_detects(
    height: int,
    width: int,
    page: browser.Page,
    exported_files: dict[str, Path],
    tmp_path: Path,
):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert_same(page, exported_files["onnx"], tmp_path / "a.png")


def test_nothing_is_asked_of_a_network(page: browser.Page, picture: Path):
    detect(page, picture)
    asked = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    assert [name for name in asked if not name.startswith("blob:")] == []
    refused = "fetch('https://example.org').then(() => 'sent', (error) => error.message)"
    assert page.evaluate(refused) == "Failed to fetch"


def test_the_slider_hides_what_scores_less(page: browser.Page, picture: Path):
    found = detect(page, picture)["found"]
    pictures = set()
    scores = sorted({row["score"] for row in found})
    for value in (0.0, round(scores[len(scores) // 2], 2), 1.0):
        slide(page, value)
        shown = [row for row in found if row["score"] >= value]
        names = ("", "circle", "square", "triangle")
        assert rows(page) == [f"{names[row['label']]} {row['score']:.2f}" for row in shown]
        objects = "1 object" if len(shown) == 1 else f"{len(shown)} objects"
        assert says(page, lambda text: True) == f"{objects} in noise.png."
        pictures.add(page.evaluate("canvas.toDataURL()"))
    assert len(pictures) == 3


def test_a_key_moves_the_slider(page: browser.Page, picture: Path):
    detect(page, picture)
    slide(page, 0.5)
    page.evaluate("threshold.focus()")
    page.press("ArrowRight", 39)
    assert page.evaluate("document.getElementById('value').textContent") == "0.51"


def test_a_class_can_be_left_out(page: browser.Page, picture: Path):
    detect(page, picture)
    slide(page, 0)
    before = rows(page)
    first = before[0].split()[0]
    labels = "[...classes.querySelectorAll('label')]"
    click = f"{labels}.find(({{ innerText }}) => innerText.startsWith('{first}')).click()"
    page.evaluate(click)
    assert rows(page) == [row for row in before if not row.startswith(first)] != before
    page.evaluate(click)
    assert rows(page) == before


def test_a_dropped_picture_is_taken(page: browser.Page, picture: Path):
    content = base64.b64encode(picture.read_bytes()).decode()
    before = page.evaluate("answers.length")
    page.evaluate(
        f"""
        const bytes = Uint8Array.from(atob("{content}"), (letter) => letter.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "dropped.png"));
        view.dispatchEvent(new DragEvent("drop", {{ dataTransfer, bubbles: true }}));
        """
    )
    assert answer(page, before)["name"] == "dropped.png"


def test_the_camera_goes_on_until_it_is_stopped(page: browser.Page):
    page.evaluate("camera.click()")
    before = page.evaluate("answers.length")
    assert answer(page, before)["name"] == "the camera"
    assert answer(page, before + 1)["name"] == "the camera"
    assert page.evaluate("camera.textContent") == "Stop camera"
    page.evaluate("camera.click()")
    assert page.evaluate("camera.textContent") == "Use camera"
    time.sleep(1)
    count = page.evaluate("answers.length")
    time.sleep(2)
    assert page.evaluate("answers.length") == count


@pytest.mark.parametrize("content", [b"plain text", b"", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_file_that_is_no_picture_is_one_sentence(
    content: bytes, page: browser.Page, tmp_path: Path, picture: Path
):
    (tmp_path / "notes.png").write_bytes(content)
    page.choose_file("#file", tmp_path / "notes.png")
    said = says(page, lambda text: text.startswith("notes.png is"))
    assert said == (
        "notes.png is not a picture that this browser can read: give a PNG, JPEG or WebP file."
    )
    assert len(detect(page, picture)["found"]) > 20  # it goes on


def test_a_picture_that_fits_into_no_size_is_one_sentence(page: browser.Page, tmp_path: Path):
    Image.new("RGB", (64, 96)).save(tmp_path / "upright.png")
    page.choose_file("#file", tmp_path / "upright.png")
    said = says(page, lambda text: "pixels" in text)
    assert said == (
        "The picture is 96 x 64 pixels (height x width) after the resize, and this page takes up "
        "to 64 x 96: export again with a larger size."
    )


def test_a_damaged_page_says_so(page: browser.Page, file: Path, tmp_path: Path):
    whole = file.read_text()
    cut = tmp_path / "cut.html"
    cut.write_text(whole[: whole.index('<script type="text/plain" id="wasm">') + 1000])
    page.open(cut.as_uri())
    said = says(page, lambda text: "incomplete" in text)
    open_page(page, file)
    assert said == "The page is incomplete: export or download it again."


def test_a_file_in_8_bits_runs_as_well(
    page: browser.Page, file: Path, exported_files: dict[str, Path], tmp_path: Path, picture: Path
):
    source, small = exported_files["onnx"], tmp_path / "int8.onnx"
    nodes = [node for names in int8.layers(source, lively()).values() for node in names]
    int8.quantise(source, small, METADATA, [batch_of([(HEIGHT, WIDTH)])], nodes)
    open_page(page, make_page(small, tmp_path / "int8.html"))
    assert_same(page, small, picture)
    open_page(page, file)


@pytest.mark.parametrize("phone", [False, True])
def test_no_screen_is_too_narrow(phone: bool, page: browser.Page, picture: Path):
    page.emulate((360, 740) if phone else (1280, 800), phone=phone)
    detect(page, picture)
    slide(page, 0)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
