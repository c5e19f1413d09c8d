"""The table of the kinds of suppression, and what is said of it."""

from typing import Any

from report_sample import Page, analysis, evaluation

from maskrcnn_lit.report.evaluation.page import build_page
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.report.evaluation.suppression import choice_rows, describe, verdict


def row(nms: str, ap: float, value: float | None = None, p: float = 1.0, **more: bool) -> Any:
    difference = None
    if value is not None:
        difference = {"value": value, "interval": (value - 0.1, value + 0.1), "p_value": p}
    flags = {"agnostic_nms": False, "exclusive": False} | more
    metrics = {"val/mask_ap": ap, "val/box_ap": ap / 2}
    return {"nms": nms, **flags, "own": value is None, "metrics": metrics, "difference": difference}


DRAWN = {name: (b"light", b"dark") for name in PLOTS}

ROWS = [
    row("mask", 0.625, 0.125, 0.01, exclusive=True),
    row("soft", 0.5625, 0.0625, 0.2, agnostic_nms=True),
    row("box", 0.5),
    row("matrix", 0.25, -0.25, 0.001),
]


def test_rows_have_the_difference_from_the_own():
    head, rows = choice_rows(ROWS)
    assert head == ["suppression", "mask AP", "box AP", "difference", "95 % interval", "p"]
    assert rows[0] == ["mask, exclusive", "0.625", "0.312", "+0.125", "+0.025 to +0.225", "0.010"]
    assert rows[2] == ["box", "0.500", "0.250", "the run's own", "", ""]
    assert describe(ROWS[1]) == "soft, agnostic_nms"


def test_the_sentence_names_what_is_surely_better():
    assert verdict(ROWS) == (
        "Higher mask AP than the run's own with p < 0.05: mask, exclusive. "
        "Lower with p < 0.05: 1 of 3."
    )
    assert verdict(ROWS[1:3]) == (
        "No choice has a higher mask AP than the run's own with p < 0.05. "
        "Lower with p < 0.05: 0 of 1."
    )


def test_the_page_has_the_table_where_kinds_were_compared():
    title = "Kinds of suppression, from one forward pass"
    assert title not in Page(build_page(evaluation(), analysis(), DRAWN, [], "today")).tables
    record = {**evaluation(), "suppression": ROWS}
    page = Page(build_page(record, analysis(), DRAWN, [], "today"))
    _, *rows = page.tables[title]
    assert [line[0] for line in rows] == [line[0] for line in choice_rows(ROWS)[1]]
    assert verdict(ROWS) in page.text
