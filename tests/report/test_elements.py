"""The parts of a page: escaped, whole, and loading nothing."""

import base64
from typing import Any

import pytest
from jinja2 import UndefinedError
from report_sample import Page

from maskrcnn_lit.report.elements import data_url, environment, render_page, sides

html: Any = environment().get_template("elements.html").module

NASTY = '<script>alert("1")</script> & co'


def page(title: str, **sections: str) -> str:
    return render_page("layout.html", title=title, sections=sections)


def test_text_is_escaped_wherever_it_comes_in():
    parts = [
        html.paragraph(NASTY),
        html.bullets([NASTY]),
        html.table(NASTY, [NASTY, NASTY], [[NASTY, NASTY]]),
        html.tiles([(NASTY, NASTY, NASTY)]),
        html.plot((b"1", b"2"), NASTY, NASTY),
        html.photo(b"1", 3, 4, NASTY, NASTY),
    ]
    for part in [*parts, html.facts([(NASTY, NASTY)]), page(NASTY, a=NASTY)]:
        assert "<script" not in part
        assert "&lt;script&gt;" in part


def test_a_table_has_its_caption_and_its_cells():
    shown = Page(html.table("speeds", ["", "km/h"], [["hare", "70"], ["snail & co", "0.05"]]))
    assert shown.tables == {"speeds": [["", "km/h"], ["hare", "70"], ["snail & co", "0.05"]]}


def test_a_table_scrolls_and_can_be_reached_by_keyboard():
    text = html.table("speeds", ["", "km/h"], [["hare", "70"]])
    assert text.strip().startswith(
        '<div class="scroll" tabindex="0" role="region" aria-label="speeds">'
    )
    assert '<th scope="row">hare</th>' in text
    assert '<th scope="col">km/h</th>' in text


def test_numbers_are_set_to_the_right_and_texts_to_the_left():
    rows = [["a", "cat", "0.5 (0.4 to 0.6)", "-"], ["b", "-", "1,200", "+3"]]
    text = html.table("things", ["", "name", "AP", "gain"], rows)
    assert '<th scope="col" class="text">name</th><th scope="col">AP</th>' in text
    assert '<td class="text">cat</td><td>0.5 (0.4 to 0.6)</td><td>-</td>' in text
    assert '<td class="text">-</td><td>1,200</td><td>+3</td>' in text
    assert ".text { text-align: left; }" in page("a")


def test_text_in_the_last_cell_may_wrap():
    assert '<table class="told">' in html.table("faults", ["", "why"], [["a", "no memory"]], "told")
    assert ".told td:last-child" in page("a")
    assert "<table>" in html.table("speeds", [], [])


def test_images_are_inlined():
    shown = Page(
        html.plot((b"light", b"dark"), "a plot", "") + html.photo(b"jpeg", 3, 4, "a photo", "")
    )
    assert [base64.b64decode(source.split(",")[1]) for source in shown.images] == [
        b"light",
        b"dark",
        b"jpeg",
    ]
    assert [source.split(";")[0] for source in shown.images] == ["data:image/png"] * 2 + [
        "data:image/jpeg"
    ]


def test_a_page_forbids_a_browser_to_load_anything():
    text = page("a")
    assert text.startswith("<!doctype html>")
    assert '<html lang="en">' in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert 'name="viewport"' in text
    assert "<title>a</title>" in text
    assert Page(text).loads == []
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize("rule", ["@media print", "prefers-color-scheme: dark", "overflow-x: auto"])
def test_the_style_knows_paper_dark_screens_and_wide_tables(rule: str):
    assert rule in page("a")


def test_a_long_note_makes_a_wide_tile():
    assert html.tiles([("a", "1", "b" * 41)]).count('class="wide"') == 1
    assert 'class="wide"' not in html.tiles([("a", "1", "")])


def test_a_column_with_one_text_is_a_column_of_text():
    assert sides(["", "a", "b"], [["x", "1", "-"], ["y", "cat", ""]]) == ["", "text", ""]
    assert sides(["", "a"], []) == ["", ""]


def test_a_value_that_nobody_gives_is_an_error():
    with pytest.raises(UndefinedError, match="sections"):
        render_page("layout.html", title="a")


def test_an_image_is_its_own_address():
    assert data_url(b"abc", "png") == "data:image/png;base64,YWJj"
