"""The sections of the error analysis hold its numbers and say how they came about."""

from typing import Any

from report_sample import Page, analysis, evaluation, ground_truth, results

from maskrcnn_lit.report.evaluation.page import build_page
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.report.evaluation.worst_images import draw_worst

DRAWN = {name: (b"light", b"dark") for name in PLOTS}


def build(found: dict[str, Any] | None = None) -> Page:
    found = found or analysis()
    pictures = list(draw_worst(found["worst"], ground_truth(), results(), lambda image_id: None))
    return Page(build_page(evaluation(), found, DRAWN, pictures, "today"))


def shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def test_the_other_tables_hold_the_numbers_of_the_analysis():
    page, found = build(), analysis()
    _, *rows = page.tables["AP50 is 0.613"]
    assert [row[1] for row in rows] == [
        shown(found["errors"][k]) for k in found["errors"] if k not in ("ap50", "counts")
    ]
    assert [row[2] for row in rows] == [
        *(shown(n) for n in found["errors"]["counts"].values()),
        "-",
        "-",
    ]
    _, *rows = page.tables["Objects by overlap with others"]
    assert rows == [
        [e["slice"], *(shown(e[k]) for k in ("objects", "ap", "ap50", "recall"))]
        for e in found["occlusion"]
    ]
    _, *rows = page.tables["Objects by the share that is hidden"]
    assert rows == [
        [e["slice"], *(shown(e[k]) for k in ("objects", "ap", "ap50", "recall"))]
        for e in found["hidden"]["slices"]
    ]
    _, *rows = page.tables["Hidden, merged and split objects"]
    assert rows == [
        ["occluded: recall of 5 objects", "0.400"],
        ["separated: recall of 1 object", "1.000"],
        ["merged detections", "2"],
        ["split objects", "1"],
        ["count error an image", "1.250"],
        ["detections less objects an image", "-0.750"],
    ]
    assert "Hidden shares are those of amodal masks; of objects without one" in page.text
    _, *rows = page.tables["The same as counts; rows are the truth"]
    assert [row[1:] for row in rows] == [
        [shown(n) for n in row] for row in found["confusion"]["counts"]
    ]
    _, *rows = page.tables["Detections by score"]
    bins = [b for b in found["calibration"]["bins"] if b["count"]]
    assert [row[1:] for row in rows] == [
        [shown(b[k]) for k in ("count", "score", "precision")] for b in bins
    ]
    assert rows[0][0] == "0.10 to 0.20"


def test_many_classes_have_a_note_in_place_of_the_table_of_counts():
    page = build(analysis(tuple(f"class {i}" for i in range(80))))
    assert "The same as counts; rows are the truth" not in page.tables
    assert "Of 80 classes the 20 most mixed up are shown; all are in analysis.json." in page.text


def test_without_a_mistake_there_are_no_worst_images():
    assert "No missed objects and no false detections." in build(analysis() | {"worst": []}).text


def test_captions_of_the_worst_images():
    text = build().text
    assert "7.png (id 7): 1 missed, 1 false, 1 merged; the file cannot be read" in text
    assert "9.png (id 9): 1 false; the file cannot be read" in text
