"""The layout of the evaluation report, its scores and classes; the error analysis is in
sections.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from maskrcnn_lit.errors import plural
from maskrcnn_lit.report import elements as html
from maskrcnn_lit.report.evaluation import sections
from maskrcnn_lit.report.evaluation.sections import Plots
from maskrcnn_lit.report.evaluation.sentences import headline, summary
from maskrcnn_lit.report.evaluation.worst_images import Picture
from maskrcnn_lit.report.format import number
from maskrcnn_lit.report.theme import Analysis

SECTIONS = {
    "summary": "Summary",
    "scores": "AP by size and limit",
    "classes": "Classes",
    "curves": "Precision, recall and the score threshold",
    "confusion": "Confusion",
    "errors": "Where AP is lost",
    "occlusion": "Overlap and crowds",
    "calibration": "What the scores mean",
    "worst": "The worst images",
    "about": "About this evaluation",
}

_APS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
}

_KINDS = {"val/mask_ap": "Mask AP", "val/box_ap": "Box AP"}

_CLASS = {
    **{"objects": "objects", "detections": "detections", "mask_ap": "mask AP", "mask_ap50": "AP50"},
    **{"mask_ap_small": "small", "mask_ap_medium": "medium", "mask_ap_large": "large"},
    **{"boundary_ap": "boundary AP", "box_ap": "box AP", "roi_accuracy": "roi_accuracy"},
    **{"threshold": "threshold", "precision": "precision", "recall": "recall", "f1": "F1"},
}


def build_page(
    evaluation: Mapping[str, Any],
    analysis: Analysis,
    plots: Plots,
    worst: Sequence[Picture],
    written: str,
) -> str:
    """The report as HTML. `evaluation` is the content of evaluation.json, `written`: the date of
    the page.
    """
    parts = {
        "summary": _summary(evaluation, analysis),
        "scores": _scores(evaluation),
        "classes": _classes(evaluation, analysis, plots),
        "curves": sections.curves(plots),
        "confusion": sections.confusion(analysis, plots),
        "errors": sections.errors(analysis, plots),
        "occlusion": sections.occlusion(analysis, plots),
        "calibration": sections.calibration(analysis, plots),
        "worst": sections.worst(worst),
        "about": _about(evaluation, written),
    }
    title = f"Evaluation of {evaluation.get('run') or evaluation.get('results')}"
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in SECTIONS.items())
    head = (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        + html.paragraph(
            f"{evaluation['data']}: {plural(analysis['images'], 'image')}, {written}", "soft"
        )
        + f'\n<nav aria-label="Sections">{links}</nav>\n</header>\n<main>'
    )
    body = [html.section(name, SECTIONS[name], *content) for name, content in parts.items()]
    return html.page(title, [head, *body, "</main>"])


def _summary(evaluation: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    metrics, intervals = evaluation["metrics"], evaluation.get("intervals") or {}
    shown = [
        ("mask_ap", "mask AP"),
        ("mask_ap50", "mask AP50"),
        ("box_ap", "box AP"),
        ("box_ap50", "box AP50"),
    ]
    entries = [
        (title, number(metrics[f"val/{key}"]), _interval(intervals.get(f"val/{key}")))
        for key, title in shown
        if f"val/{key}" in metrics
    ]
    if analysis["boundary_ap"] is not None:
        entries.append(
            ("boundary AP", number(analysis["boundary_ap"]), "requires matching outlines, too")
        )
    if "val/roi_accuracy" in metrics:
        entries.append(
            (
                "roi_accuracy",
                number(metrics["val/roi_accuracy"]),
                "not an AP: see below the classes",
            )
        )
    yield html.tiles(entries)
    yield html.bullets(summary(analysis))


def score_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: COCO's metrics of masks and boxes."""
    metrics = evaluation["metrics"]
    limits = sorted(
        {int(m[1]) for name in metrics if (m := re.fullmatch(r"val/\w+_ar(\d+)", name))}
    )
    columns = _APS | {f"ar{limit}": f"AR{limit}" for limit in limits}
    rows = [
        [kind, *(number(metrics.get(f"val/{kind}_{key}")) for key in columns)]
        for kind in ("mask", "box")
        if f"val/{kind}_ap" in metrics
    ]
    return ["", *columns.values()], rows


def _scores(evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield html.table("COCO metrics over all classes", *score_rows(evaluation))
    for name, difference in (evaluation.get("differences") or {}).items():
        yield html.paragraph(
            f"{_KINDS[name]} is {difference['value']:+.3f} from that of {evaluation['against']}, "
            "95 % interval "
            f"{' to '.join(f'{end:+.3f}' for end in difference['interval'])}, "
            f"p = {number(difference['p_value'])} (paired bootstrap over images)."
        )
    yield html.paragraph(
        "AP is the mean over the IoU thresholds 0.50, 0.55 to 0.95 and over the classes; AP50 and "
        "AP75 use a single threshold. Small objects have up to 32² pixels, large ones more than "
        "96². AR is the recall with a given number of detections per image. A dash: the data have "
        "no such object.",
        "soft",
    )


def class_values(evaluation: Mapping[str, Any], analysis: Analysis) -> list[dict[str, Any]]:
    """For each class, best first, "class" and the columns of `_CLASS` that any class has; None for
    missing numbers.
    """
    key = headline(analysis)
    accuracy = {name: entry.get("roi_accuracy") for name, entry in evaluation["per_class"].items()}
    classes = [
        entry | {"roi_accuracy": accuracy.get(entry["name"])} for entry in analysis["per_class"]
    ]
    columns = {
        name: title
        for name, title in _CLASS.items()
        if any(c.get(name) is not None for c in classes)
    }
    # classes without an object have no AP: they come last
    classes.sort(key=lambda c: (c[key] is None, -(c[key] or 0), c["name"]))
    return [
        {"class": c["name"]} | {title: c.get(name) for name, title in columns.items()}
        for c in classes
    ]


def class_rows(evaluation: Mapping[str, Any], analysis: Analysis) -> tuple[list[str], Any]:
    """Head and rows of `class_values`."""
    classes = class_values(evaluation, analysis)
    rows = [[name, *map(number, values)] for name, *values in (c.values() for c in classes)]
    return list(classes[0]) if classes else ["class"], rows


def _classes(evaluation: Mapping[str, Any], analysis: Analysis, plots: Plots) -> Iterator[str]:
    notes = [
        html.paragraph(
            "Threshold: the score threshold with the best F1; precision, recall and F1 are those "
            "at this threshold, at IoU 0.50.",
            "soft",
        )
    ]
    if "roi_accuracy" in evaluation:
        message = f"roi_accuracy: {evaluation['roi_accuracy']['definition']}"
        notes.append(html.paragraph(message, "soft"))
    picture = sections.plot(
        plots,
        "class_ap",
        "AP of each class",
        "Best class first. The numbers are in the table below.",
    )
    yield html.pair(picture, html.group(*notes))
    yield html.table("Classes by AP", *class_rows(evaluation, analysis))


def _about(evaluation: Mapping[str, Any], written: str) -> Iterator[str]:
    keys = ("run", "checkpoint", "results", "data")
    rows = [[key, str(evaluation[key])] for key in keys if evaluation.get(key) is not None]
    rows += [["options", " ".join(evaluation["overrides"]) or "none"], ["written", written]]
    lines = "\n".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in rows
    )
    yield f'<dl class="facts">\n{lines}\n</dl>'
    yield html.paragraph(
        "The numbers of this page are in evaluation.json and analysis.json beside it, for a "
        "paper in "
        "per_class.csv, curves.csv, tables.tex and references.bib, its plots in plots/ as PNG and "
        "PDF.",
        "soft",
    )


def _interval(interval: Sequence[float | None] | None) -> str:
    """The 95 % interval of an AP over images, low and high, from evaluation.json."""
    if interval is None or None in interval:
        return ""
    return (
        f"{number(interval[0])} to {number(interval[1])}, 95 % confidence interval (bootstrap "
        "over images)"
    )
