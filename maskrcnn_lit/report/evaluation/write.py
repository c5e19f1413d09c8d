"""Writes the report of an evaluation: analysis.json, plots, and a self-contained page."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.report.evaluation.page import (
    build_page,
    class_rows,
    class_values,
    score_rows,
)
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.report.evaluation.worst_images import draw_worst
from maskrcnn_lit.report.format import csv_rows
from maskrcnn_lit.report.latex import REFERENCES, latex_table
from maskrcnn_lit.report.pictures import ReadImage
from maskrcnn_lit.report.theme import DARK, LIGHT, Analysis, render, render_as
from maskrcnn_lit.storage.files import atomic_write, write_json


def write_report(
    folder: Path,
    *,
    evaluation: Mapping[str, Any],
    analysis: Analysis,
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    read_image: ReadImage,
) -> Path:
    """Write analysis.json, report.html, plots/NAME.png and .pdf, per_class.csv, curves.csv,
    tables.tex and references.bib to `folder`; return the path of the page.

    evaluation: the content of evaluation.json: "run" or "results", "data", "overrides", "metrics",
        "per_class".
    analysis: the result of `evaluation.analysis.analyze` for this COCO ground truth and these
    results.
    read_image: image id -> H W 3 uint8; called for the worst images only.
    """
    write_json(folder / "analysis.json", analysis)
    plots = {}
    for name, plot in PLOTS.items():
        light, pdf = render_as(("png", "pdf"), plot, analysis, LIGHT)
        atomic_write(folder / "plots" / f"{name}.png", light)
        atomic_write(folder / "plots" / f"{name}.pdf", pdf)
        plots[name] = (light, render(plot, analysis, DARK))
    classes = class_values(evaluation, analysis)
    atomic_write(folder / "per_class.csv", csv_rows(classes))
    atomic_write(folder / "curves.csv", csv_rows(curve_points(analysis)))
    atomic_write(folder / "tables.tex", _tables(evaluation, analysis))
    atomic_write(folder / "references.bib", REFERENCES.read_text(encoding="utf-8"))
    worst = list(draw_worst(analysis["worst"], ground_truth, results, read_image))
    page = folder / "report.html"
    atomic_write(
        page, build_page(evaluation, analysis, plots, worst, time.strftime("%Y-%m-%d %H:%M"))
    )
    return page


def curve_points(analysis: Analysis) -> list[dict[str, Any]]:
    """A row for each point of each class's curves: class, score threshold, recall, precision,
    F1.
    """
    names = {"thresholds": "threshold", "recall": "recall", "precision": "precision", "f1": "F1"}
    return [
        {"class": curve["name"]} | dict(zip(names.values(), point, strict=True))
        for curve in analysis["curves"]
        for point in zip(*(curve[name] for name in names), strict=True)
    ]


def _tables(evaluation: Mapping[str, Any], analysis: Analysis) -> str:
    """The scores in total and by class, in LaTeX."""
    name = f"{evaluation.get('run') or evaluation.get('results')} on {evaluation['data']}"
    scores = latex_table(f"COCO metrics of {name}", *score_rows(evaluation))
    classes = latex_table(f"Each class of {name}", *class_rows(evaluation, analysis))
    return f"{scores}\n{classes}"
