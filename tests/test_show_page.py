"""The page of `show` in Chromium: order, choices and the inside of the model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from served import predictor, serving, wait

from maskrcnn_lit.serve.app import build_app
from maskrcnn_lit.serve.page import serve_page
from maskrcnn_lit.serve.server import allowed_hosts
from maskrcnn_lit.serve.service import Limits, Service
from maskrcnn_lit.serve.show import run_facts, show_routes
from maskrcnn_lit.serve.validation import Validation

pytest_plugins = ("tiny_commands",)

pytestmark = [pytest.mark.browser, pytest.mark.process, pytest.mark.long]

STATUS = "document.getElementById('status')?.textContent || ''"
POSITION = "document.getElementById('position').textContent"


@pytest.fixture(scope="module")
def validation(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Validation:
    run = tmp_path_factory.mktemp("shown") / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("last.ckpt", "events*"))
    return Validation(run, "best", [], "cpu")


@pytest.fixture(scope="module")
def page(
    validation: Validation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.fail(f"no browser here: install one of {', '.join(browser.NAMES)}")
    service = Service({"run": predictor()}, Limits())
    html = serve_page(service.models, [("run", "outputs/run")], run_facts(validation))
    hosts = allowed_hosts("127.0.0.1", None)
    app = build_app(service, page=html, hosts=hosts, more=show_routes(validation))
    with serving(app) as address, browser.page(tmp_path_factory.mktemp("browser")) as opened:
        opened.open(address)
        assert "ground truth" in wait(opened, STATUS, lambda text: "ground truth" in text)
        yield opened
    service.close()


def choose(page: browser.Page, name: str, value: str) -> None:
    page.evaluate(f"{{ {name}.value = '{value}'; {name}.onchange(); }}")


def test_images_come_by_loss_and_the_arrows_go_on(page: browser.Page, validation: Validation):
    choose(page, "sort", "loss")
    losses = [sum(own.values()) for own in validation.losses if own is not None]
    order = sorted(range(len(losses)), key=lambda i: -losses[i])
    names = validation.index.file_names
    for n, i in enumerate(order, start=1):
        assert str(names[i]) in wait(page, STATUS, lambda text, i=i: str(names[i]) in text)
        assert page.evaluate(POSITION) == f"{n} of {len(order)}"
        page.press("ArrowRight", 39)
    page.press("ArrowLeft", 37)
    second_to_last = str(names[order[-2]])
    assert second_to_last in wait(page, STATUS, lambda text: second_to_last in text)


def test_choices_leave_the_images_with_such_objects(page: browser.Page, validation: Validation):
    for i, category in enumerate(validation.truth["categories"]):
        choose(page, "of_class", str(i))
        expected = sum(
            i in pairs.object_labels or bool((pairs.scores[pairs.labels == i] >= 0.5).any())
            for pairs in validation.pairs
        )
        text = wait(page, POSITION, lambda text, n=expected: text.endswith(f" of {n}"))
        assert text.endswith(f" of {expected}"), category["name"]
    choose(page, "of_class", "")


def test_proposals_and_anchors_are_counted_by_level(page: browser.Page):
    for layer in ("proposals", "anchors"):
        page.evaluate(f"document.getElementById('{layer}').click()")
        legend = "[...document.querySelectorAll('#levels li')].map((one) => one.textContent).join()"
        assert "p2: " in wait(page, legend, lambda text: "p2: " in text)
        page.evaluate(f"document.getElementById('{layer}').click()")


def test_a_detection_shows_its_level_and_its_mask(page: browser.Page, validation: Validation):
    page.evaluate("{ threshold.value = 0.05; threshold.oninput(); threshold.onchange(); }")
    last = "[...document.querySelectorAll('#list button')].at(-1)"
    assert wait(page, f"Boolean({last})")
    page.evaluate(f"{last}.click()")
    said = "about_object.textContent"
    assert "RoIAlign reads p" in wait(page, said, lambda text: "RoIAlign reads p" in text)
    assert wait(page, "document.getElementById('raw').hidden", lambda hidden: not hidden) is False
    masks = validation.inside(0)[0].masks
    assert masks is not None
    assert page.evaluate("document.getElementById('raw_mask').width") == masks.shape[-1]
