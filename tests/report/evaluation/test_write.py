"""What stands in the folder after a report was written."""

import base64
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from box_scenes import SIZE, random_scene
from PIL import Image
from report_sample import Page, analysis, evaluation, ground_truth, results

from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.report.evaluation.write import write_report
from maskrcnn_lit.report.latex import REFERENCES

pytest_plugins = ("plain_plots",)
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("plain_plots")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    page = write_report(
        folder,
        evaluation=evaluation(),
        analysis=analysis() | {"boundary_ap": float("nan")},
        ground_truth=ground_truth(),
        results=results(),
        read_image=lambda image_id: None,
    )
    assert page == folder / "report.html"
    return folder


def test_the_numbers_are_written(folder: Path):
    assert json.loads((folder / "analysis.json").read_text()) == analysis() | {"boundary_ap": None}


def test_every_plot_is_a_png_and_stands_on_the_page(folder: Path):
    assert sorted(path.name for path in (folder / "plots").iterdir()) == sorted(
        f"{name}.{kind}" for name in PLOTS for kind in ("pdf", "png")
    )
    page = Page((folder / "report.html").read_text())
    inlined = [base64.b64decode(source.partition(",")[2]) for source in page.images]
    for path in (folder / "plots").glob("*.png"):
        assert Image.open(path).format == "PNG"
        assert path.read_bytes() in inlined


def test_every_plot_is_a_pdf_too(folder: Path):
    for name in PLOTS:
        assert (folder / "plots" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_numbers_of_a_paper_are_those_of_the_analysis(folder: Path):
    with open(folder / "per_class.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    for entry in analysis()["per_class"]:
        row = rows[entry["name"]]
        for name, title in (("mask_ap", "mask AP"), ("f1", "F1"), ("objects", "objects")):
            assert row[title] == ("" if entry[name] is None else str(entry[name]))
    with open(folder / "curves.csv", newline="") as file:
        points = [row for row in csv.DictReader(file) if row["class"] == "all classes"]
    curve = analysis()["curves"][-1]
    assert [float(point["recall"]) for point in points] == curve["recall"]
    assert [float(point["precision"]) for point in points] == curve["precision"]


def test_the_tables_of_a_paper(folder: Path):
    text = (folder / "tables.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    best = analysis()["per_class"][0]
    assert f"{best['name']} & " in text
    assert f"{best['mask_ap']:.3f}" in text
    assert (folder / "references.bib").read_text() == REFERENCES.read_text()


def test_the_page_holds_nothing_that_it_would_load(folder: Path):
    text = (folder / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "file:" not in text
    assert all(link.startswith(("data:image/", "#")) for link in Page(text).loads)


def test_results_with_masks_alone_have_a_page(tmp_path: Path):
    truth, found = random_scene(0)
    found = [{key: value for key, value in entry.items() if key != "bbox"} for entry in found]
    analyzed = analyze(truth, found)
    assert analyzed["kind"] == "mask"
    assert any(entry["false"] for entry in analyzed["worst"])
    pixels = np.zeros((*SIZE, 3), np.uint8)
    given = {
        "analysis": analyzed,
        "ground_truth": truth,
        "results": found,
        "read_image": lambda image_id: pixels,
    }
    per_class = {row["name"]: {} for row in analyzed["per_class"]}
    page = write_report(tmp_path, evaluation=evaluation() | {"per_class": per_class}, **given)
    assert page.read_text().count("data:image/jpeg") >= len(analyzed["worst"]) > 0
