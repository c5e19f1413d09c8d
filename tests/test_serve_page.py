"""The page of `serve` in Chromium, without a network beside the server of this machine.

`pytest -m browser` runs it where Chromium is.
"""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from served import png, predictor, serving, wait

from maskrcnn_lit.predictor import Predictor
from maskrcnn_lit.serve.app import build_app
from maskrcnn_lit.serve.page import serve_page
from maskrcnn_lit.serve.server import allowed_hosts
from maskrcnn_lit.serve.service import Limits, Service

pytestmark = [pytest.mark.browser, pytest.mark.process, pytest.mark.long]

FLAGS = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
LISTEN = """
window.heard = []; window.files = [];
document.addEventListener("detections", ({ detail }) => window.heard.push(detail));
document.addEventListener("saved", async ({ detail: { blob, name } }) => {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  window.files.push({ name, content: btoa(text) });
});
"""


def status(page: browser.Page, until: Callable[[str], bool]) -> str:
    return wait(page, "document.getElementById('status')?.textContent || ''", until)


@pytest.fixture(scope="module")
def models() -> dict[str, Predictor]:
    return {"small": predictor(), "boxes": predictor(masks=False)}


@pytest.fixture(scope="module")
def address(models: dict[str, Predictor]) -> Iterator[str]:
    service = Service(models, Limits(max_pixels=1_000_000))
    app = build_app(
        service,
        page=serve_page(models, [("small", "outputs/run")]),
        hosts=allowed_hosts("127.0.0.1", None),
    )
    with serving(app) as running:
        yield running
    service.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.fail(f"no browser here: install one of {', '.join(browser.NAMES)}")
    with browser.page(tmp_path_factory.mktemp("browser"), flags=FLAGS) as opened:
        yield opened


@pytest.fixture
def page(chromium: browser.Page, address: str) -> browser.Page:
    chromium.open(address)
    assert status(chromium, lambda text: text == "Ready.") == "Ready."
    chromium.evaluate(LISTEN)
    return chromium


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "noise.png").write_bytes(png((96, 128)))
    return tmp_path / "noise.png"


def detect(page: browser.Page, image: Path) -> list[dict[str, Any]]:
    """The answers of all models to a picture that is chosen as a person does."""
    before = page.evaluate("heard.length")
    page.choose_file("#file", image)
    assert wait(page, "heard.length", lambda count: count > before) > before
    return page.evaluate("heard.at(-1).answers")


def rows(page: browser.Page) -> list[str]:
    script = "[...document.querySelectorAll('#list li')].map((row) => row.innerText)"
    return [" ".join(row.split()) for row in page.evaluate(script)]


def slide(page: browser.Page, value: float) -> None:
    page.evaluate(
        f"threshold.value = {value}; threshold.dispatchEvent(new Event('input')); undefined"
    )


def switch(page: browser.Page, model: str) -> None:
    before = page.evaluate("shown ? heard.length : -1")  # without a picture nothing is asked
    page.evaluate(f"document.querySelector('[data-model=\"{model}\"]').click()")
    wait(page, "heard.length", lambda count: count > before)


def test_it_shows_what_predict_detects(
    page: browser.Page, picture: Path, models: dict[str, Predictor]
):
    answers = detect(page, picture)
    assert [answer["info"]["model"] for answer in answers] == ["small", "boxes"]
    for answer in answers:
        (expected,) = models[answer["info"]["model"]].predict(picture, score_threshold=0.05)
        scores = [entry["score"] for entry in answer["annotations"]]
        assert len(scores) == len(expected) > 20
        np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-5)


def test_models_are_side_by_side(page: browser.Page, picture: Path):
    detect(page, picture)
    captions = "[...document.querySelectorAll('#frames figcaption')].map((one) => one.textContent)"
    assert [caption.split(":")[0] for caption in page.evaluate(captions)] == ["small", "boxes"]
    switch(page, "boxes")
    assert page.evaluate("document.querySelectorAll('#frames canvas').length") == 1
    switch(page, "boxes")
    assert page.evaluate("document.querySelectorAll('#frames canvas').length") == 2


def test_the_slider_and_the_classes_hide_objects(page: browser.Page, picture: Path):
    switch(page, "boxes")
    (answer,) = detect(page, picture)
    slide(page, 0.2)
    names = {category["id"]: category["name"] for category in answer["categories"]}
    expected = [
        f"{names[entry['category_id']]} {entry['score']:.2f}"
        for entry in answer["annotations"]
        if entry["score"] >= 0.2
    ]
    assert rows(page) == expected
    first = expected[0].split()[0]
    page.evaluate(f"classes.querySelector('[data-label={first}]').click()")
    assert rows(page) == [row for row in expected if not row.startswith(first)] != expected


def test_a_click_selects_an_object_and_saves_its_cutout(page: browser.Page, picture: Path):
    switch(page, "boxes")
    (answer,) = detect(page, picture)
    slide(page, 0.2)
    shown = [entry for entry in answer["annotations"] if entry["score"] >= 0.2]
    masks = [coco_mask.decode(entry["segmentation"]) for entry in shown]
    areas = [entry["bbox"][2] * entry["bbox"][3] for entry in shown]
    pixel = next(
        (y, x)
        for y in range(0, 96, 3)
        for x in range(0, 128, 3)
        if any(mask[y, x] for mask in masks)
    )
    there = [n for n, mask in enumerate(masks) if mask[pixel]]
    wanted = min(there, key=lambda n: areas[n])
    page.evaluate(
        f"""(() => {{
          const canvas = document.querySelector('#frames canvas');
          canvas.scrollIntoView();
          const box = canvas.getBoundingClientRect();
          canvas.dispatchEvent(new MouseEvent('click', {{
            clientX: box.left + ({pixel[1]} + 0.5) / 128 * box.width,
            clientY: box.top + ({pixel[0]} + 0.5) / 96 * box.height, bubbles: true }}));
        }})()"""
    )
    pressed = "[...list.querySelectorAll('button')].findIndex((one) => one.ariaPressed === 'true')"
    assert page.evaluate(pressed) == wanted
    assert page.evaluate("card.hidden") is False
    page.evaluate("cutout.click()")
    saved = wait(page, "files.at(-1)")
    assert saved["name"].startswith("noise_")
    assert saved["name"].endswith(".png")
    cut = np.asarray(Image.open(io.BytesIO(base64.b64decode(saved["content"]))))
    x, y, width, height = shown[wanted]["bbox"]
    left, top = int(x), int(y)
    mask = masks[wanted][top : top + cut.shape[0], left : left + cut.shape[1]]
    assert abs(cut.shape[1] - width) <= 2
    assert abs(cut.shape[0] - height) <= 2
    assert np.array_equal(cut[..., 3] > 0, mask > 0)
    original = np.asarray(Image.open(picture))[top : top + cut.shape[0], left : left + cut.shape[1]]
    assert np.array_equal(cut[..., :3][mask > 0], original[mask > 0])
    page.press("Escape", 27)
    assert page.evaluate("card.hidden") is True


def test_the_json_has_what_is_shown(page: browser.Page, picture: Path):
    (first, _) = detect(page, picture)
    slide(page, 0.3)
    page.evaluate("document.getElementById('json').click()")
    files = wait(page, "files", lambda files: len(files) == 2)
    assert [file["name"] for file in files] == ["noise_small.json", "noise_boxes.json"]
    content = json.loads(base64.b64decode(files[0]["content"]))
    assert content["annotations"] == [
        entry for entry in first["annotations"] if entry["score"] >= 0.3
    ]
    assert content["images"][0]["file_name"] == "noise.png"


def test_what_the_server_refuses_is_a_sentence(page: browser.Page, tmp_path: Path, picture: Path):
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    page.choose_file("#file", tmp_path / "large.png")
    said = status(page, lambda text: "pixels" in text)
    assert "the picture has 1200 x 1000 pixels, and this server takes up to 1,000,000" in said
    assert len(detect(page, picture)) == 2  # it goes on


def test_the_camera_goes_on_until_it_is_stopped(page: browser.Page):
    page.evaluate("camera.click()")
    assert wait(page, "heard.length", lambda count: count > 1) > 1
    assert page.evaluate("heard.at(-1).name") == "the camera"
    page.evaluate("camera.click()")
    time.sleep(1)
    count = page.evaluate("heard.length")
    time.sleep(1)
    assert page.evaluate("heard.length") == count


def test_nothing_but_this_server_is_asked(page: browser.Page, picture: Path, address: str):
    detect(page, picture)
    asked = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    assert [name for name in asked if not name.startswith((address, "blob:", "data:"))] == []
    refused = "fetch('https://example.org').then(() => 'sent', (error) => error.message)"
    assert page.evaluate(refused) == "Failed to fetch"


@pytest.mark.parametrize("phone", [False, True])
def test_no_screen_is_too_narrow(phone: bool, page: browser.Page, picture: Path):
    page.emulate((390, 844) if phone else (1280, 800), phone=phone)
    detect(page, picture)
    slide(page, 0.3)
    page.evaluate("list.querySelector('button').click()")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.emulate((1400, 1000))
    assert wide <= 0
