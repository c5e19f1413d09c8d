"""Writes the report of an evaluation: analysis.json, its plots, and all in one page that needs no
network.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.report.evaluation.page import build_page
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.report.evaluation.worst_images import draw_worst
from maskrcnn_lit.report.pictures import ReadImage
from maskrcnn_lit.report.theme import DARK, LIGHT, Analysis, render
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
    """Write analysis.json, plots/NAME.png and report.html to `folder`; the path of the page.

    evaluation: the content of evaluation.json: "run" or "results", "data", "overrides", "metrics",
        "per_class".
    analysis: what `evaluation.analysis.analyse` gives for this COCO ground truth and these results.
    read_image: image id -> H W 3 uint8, asked for the worst images only.
    """
    write_json(folder / "analysis.json", analysis)
    plots = {
        name: (render(plot, analysis, LIGHT), render(plot, analysis, DARK))
        for name, plot in PLOTS.items()
    }
    for name, (light, _) in plots.items():
        atomic_write(folder / "plots" / f"{name}.png", light)
    worst = list(draw_worst(analysis["worst"], ground_truth, results, read_image))
    page = folder / "report.html"
    atomic_write(
        page, build_page(evaluation, analysis, plots, worst, time.strftime("%Y-%m-%d %H:%M"))
    )
    return page
