"""The layout of the evaluation report, its scores and classes; the error analysis is in
sections.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from maskrcnn_lit.data.coco.sizes import LIMITS, SIZES
from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.titles import AP_COLUMNS, coco_columns, metric_title
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

# Column of a class -> its head. After the mask AP its parts are called AP50, small, ... alone.
_CLASS = {
    **{name: metric_title(name) for name in ("objects", "detections", "mask_ap")},
    **{f"mask_{key}": AP_COLUMNS[key] for key in ("ap50", *(f"ap_{size}" for size in SIZES))},
    **{name: metric_title(name) for name in ("boundary_ap", "box_ap", "roi_accuracy")},
    **{name: metric_title(name) for name in ("threshold", "precision", "recall", "f1")},
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
    heading = f"Evaluation of {evaluation.get('run') or evaluation.get('results')}"
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in SECTIONS.items())
    head = (
        f"<header>\n<h1>{escape(heading)}</h1>\n"
        + html.paragraph(
            f"{evaluation['data']}: {plural(analysis['images'], 'image')}, {written}", "soft"
        )
        + f'\n<nav aria-label="Sections">{links}</nav>\n</header>\n<main>'
    )
    body = [html.section(name, SECTIONS[name], *content) for name, content in parts.items()]
    return html.page(heading, [head, *body, "</main>"])


def _summary(evaluation: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    metrics, intervals = evaluation["metrics"], evaluation.get("intervals") or {}
    shown = [f"val/{kind}_{key}" for kind in ("mask", "box") for key in ("ap", "ap50")]
    entries = [
        (metric_title(name), number(metrics[name]), _interval(intervals.get(name)))
        for name in shown
        if name in metrics
    ]
    if analysis["boundary_ap"] is not None:
        entries.append(
            (
                metric_title("boundary_ap"),
                number(analysis["boundary_ap"]),
                "requires matching outlines, too",
            )
        )
    if "val/roi_accuracy" in metrics:
        entries.append(
            (
                metric_title("roi_accuracy"),
                number(metrics["val/roi_accuracy"]),
                "not an AP: see below the classes",
            )
        )
    yield html.tiles(entries)
    yield html.bullets(summary(analysis))


def score_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: COCO's metrics of masks and boxes."""
    metrics = evaluation["metrics"]
    columns = coco_columns(metrics)
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
            f"The {metric_title(name)} is {difference['value']:+.3f} from that of {evaluation['against']}, 95 % interval "
            f"{' to '.join(f'{end:+.3f}' for end in difference['interval'])}, "
            f"p = {number(difference['p_value'])} (paired bootstrap over images)."
        )
    yield html.paragraph(
        f"AP is the mean over the IoU thresholds 0.50, 0.55 to 0.95 and over the classes; AP50 and AP75 use a single threshold. Small objects have up to {LIMITS[0]:g}² pixels, large ones more than {LIMITS[1]:g}². AR is the recall with a given number of detections per image. A dash: the data have no such object.",
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
        name: head for name, head in _CLASS.items() if any(c.get(name) is not None for c in classes)
    }
    # classes without an object have no AP: they come last
    classes.sort(key=lambda c: (c[key] is None, -(c[key] or 0), c["name"]))
    return [
        {"class": c["name"]} | {head: c.get(name) for name, head in columns.items()}
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
            "Threshold: the score threshold with the best F1; precision, recall and F1 are those at this threshold, at IoU 0.50.",
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
        "The numbers of this page are in evaluation.json and analysis.json beside it, for a paper in "
        "per_class.csv, curves.csv, tables.tex and references.bib, its plots in plots/ as PNG and PDF.",
        "soft",
    )


def _interval(interval: Sequence[float | None] | None) -> str:
    """The 95 % interval of an AP over images, low and high, from evaluation.json."""
    if interval is None or None in interval:
        return ""
    return f"{number(interval[0])} to {number(interval[1])}, 95 % confidence interval (bootstrap over images)"
