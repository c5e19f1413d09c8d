"""The sections of the report: what stands where, and how each number came about, beside it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from maskrcnn_lit.report import html
from maskrcnn_lit.report.plots import CONFUSED, WRITTEN
from maskrcnn_lit.report.theme import Analysis
from maskrcnn_lit.report.words import ERRORS, ROI_ACCURACY, headline, number, plural, summary
from maskrcnn_lit.report.worst_images import COLOURS, Picture

Plots = Mapping[str, tuple[bytes, bytes]]  # name -> light, dark PNG
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
_APS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
_CLASS = {
    **{"objects": "objects", "detections": "detections", "mask_ap": "mask AP", "mask_ap50": "AP50"},
    **{"mask_ap_small": "small", "mask_ap_medium": "medium", "mask_ap_large": "large"},
    **{"boundary_ap": "boundary AP", "box_ap": "box AP", "roi_accuracy": "roi_accuracy"},
    **{"threshold": "threshold", "precision": "precision", "recall": "recall", "f1": "F1"},
}
_PARTS = {"missed": "an object that no detection takes", "false": "a detection that takes no object"}
_PARTS |= {"merged": "a detection that covers more than half of each of several objects of its class"}


def build_page(
    evaluation: Mapping[str, Any], analysis: Analysis, plots: Plots, worst: Sequence[Picture], written: str
) -> str:
    """The report as HTML. `evaluation` is the content of evaluation.json, `written` when the page was."""
    parts = {
        "summary": _summary(evaluation, analysis),
        "scores": _scores(evaluation["metrics"]),
        "classes": _classes(evaluation, analysis, plots),
        "curves": _curves(plots),
        "confusion": _confusion(analysis, plots),
        "errors": _errors(analysis, plots),
        "occlusion": _occlusion(analysis, plots),
        "calibration": _calibration(analysis, plots),
        "worst": _worst(worst),
        "about": _about(evaluation, written),
    }
    title = f"Evaluation of {evaluation.get('run') or evaluation.get('results')}"
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in SECTIONS.items())
    head = (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        + html.paragraph(f"{evaluation['data']}: {plural(analysis['images'], 'image')}, {written}", "soft")
        + f'\n<nav aria-label="Sections">{links}</nav>\n</header>\n<main>'
    )
    body = [html.section(name, SECTIONS[name], *content) for name, content in parts.items()]
    return html.page(title, [head, *body, "</main>"])


def _summary(evaluation: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    metrics, intervals = evaluation["metrics"], evaluation.get("intervals") or {}
    shown = [("mask_ap", "mask AP"), ("mask_ap50", "mask AP50"), ("box_ap", "box AP"), ("box_ap50", "box AP50")]
    entries = [
        (title, number(metrics[f"val/{key}"]), _interval(intervals.get(f"val/{key}")))
        for key, title in shown
        if f"val/{key}" in metrics
    ]
    if analysis["boundary_ap"] is not None:
        entries.append(("boundary AP", number(analysis["boundary_ap"]), "where the outlines must agree too"))
    if "val/roi_accuracy" in metrics:
        entries.append(("roi_accuracy", number(metrics["val/roi_accuracy"]), ROI_ACCURACY))
    yield html.tiles(entries)
    yield html.bullets(summary(analysis))


def _scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    limits = sorted({int(m[1]) for name in metrics if (m := re.fullmatch(r"val/\w+_ar(\d+)", name))})
    columns = _APS | {f"ar{limit}": f"AR{limit}" for limit in limits}
    rows = [
        [kind, *(number(metrics.get(f"val/{kind}_{key}")) for key in columns)]
        for kind in ("mask", "box")
        if f"val/{kind}_ap" in metrics
    ]
    yield html.table("COCO's numbers, of all classes", ["", *columns.values()], rows)
    yield html.paragraph(
        "AP is the mean over the IoU thresholds 0.50, 0.55 to 0.95 and over the classes; AP50 and AP75 are of one "
        "threshold. Small objects have up to 32² pixels, large ones more than 96². AR is the recall that so many "
        "detections of an image reach. A dash: the data has no such object.",
        "soft",
    )


def _classes(evaluation: Mapping[str, Any], analysis: Analysis, plots: Plots) -> Iterator[str]:
    key = headline(analysis)
    accuracy = {name: entry.get("roi_accuracy") for name, entry in evaluation["per_class"].items()}
    classes = [entry | {"roi_accuracy": accuracy.get(entry["name"])} for entry in analysis["per_class"]]
    columns = {name: title for name, title in _CLASS.items() if any(c.get(name) is not None for c in classes)}
    # classes without an object have no AP: they come last
    classes.sort(key=lambda c: (c[key] is None, -(c[key] or 0), c["name"]))
    rows = [[c["name"], *(number(c.get(name)) for name in columns)] for c in classes]
    yield _plot(plots, "class_ap", "AP of each class", "The best class is on top. The numbers are in the table below.")
    yield html.table("Each class, the best one first", ["class", *columns.values()], rows)
    yield html.paragraph(
        "Threshold: the score from which on detections of the class count for the best F1; precision, recall and F1 "
        "are those at this threshold, at IoU 0.50.",
        "soft",
    )
    if "roi_accuracy" in columns:
        yield html.paragraph(f"roi_accuracy: {ROI_ACCURACY}.", "soft")


def _curves(plots: Plots) -> Iterator[str]:
    yield html.pair(
        _plot(
            plots,
            "precision_recall",
            "Precision against recall",
            "What is found, and how much of what is said is right, at IoU 0.50, from the surest detection to all.",
        ),
        _plot(
            plots,
            "f1_threshold",
            "F1 against the score threshold",
            "The harmonic mean of precision and recall of the detections from a score on; a dot marks the best.",
        ),
    )


def _confusion(analysis: Analysis, plots: Plots) -> Iterator[str]:
    found = analysis["confusion"]
    classes = len(found["labels"]) - 1
    shown = f" Of {classes} classes the {CONFUSED} most mixed up are shown; all are in analysis.json." * (
        classes > CONFUSED
    )
    yield _plot(
        plots,
        "confusion",
        "Confusion matrix",
        "Each row: where the objects of a class went, as shares of the row. Column “background”: missed. "
        f"Row “background”: false detections, by class. Matched at IoU {number(found['iou'], 2)}, detections with a "
        f"score from the threshold of their class on.{shown}",
    )
    if classes > WRITTEN:
        return
    rows = [[label, *map(number, row)] for label, row in zip(found["labels"], found["counts"], strict=True)]
    yield html.table("The same as counts; rows are the truth", ["", *found["labels"]], rows)


def _errors(analysis: Analysis, plots: Plots) -> Iterator[str]:
    found = analysis["errors"]
    rows = [[title, number(found[kind]), number(found.get("counts", {}).get(kind))] for kind, title in ERRORS.items()]
    yield html.pair(
        _plot(
            plots,
            "errors",
            "AP50 that mending each kind of error would gain",
            "Each kind mended alone, so the gains do not add up (TIDE: Bolya et al., 2020).",
        ),
        html.table(f"AP50 is {number(found['ap50'])}", ["error", "AP50 lost", "count"], rows),
    )


def _occlusion(analysis: Analysis, plots: Plots) -> Iterator[str]:
    keys = {"objects": "objects", "ap": "AP", "ap50": "AP50", "recall": "recall"}
    rows = [[entry["slice"], *(number(entry[key]) for key in keys)] for entry in analysis["occlusion"]]
    yield html.pair(
        _plot(
            plots,
            "occlusion",
            "AP, AP50 and recall by overlap",
            "Objects by the share of their box that the boxes of other objects cover. "
            f"Crowded images have {number(analysis['crowded_from'])} objects or more.",
        ),
        html.table("Objects by overlap with others", ["slice", *keys.values()], rows),
    )


def _calibration(analysis: Analysis, plots: Plots) -> Iterator[str]:
    found = analysis["calibration"]
    rows = [
        [f"{number(b['from'], 2)} to {number(b['to'], 2)}", *(number(b[k]) for k in ("count", "score", "precision"))]
        for b in found["bins"]
        if b["count"]
    ]
    yield html.pair(
        _plot(
            plots,
            "calibration",
            "Precision against score",
            "On the dashed line, a score of 0.8 is right 8 times of 10. The mean distance from it, weighted by the "
            f"number of detections, is {number(found['error'])} (expected calibration error).",
        ),
        html.table("Detections by score", ["score", "detections", "mean score", "share right"], rows),
    )


def _worst(worst: Sequence[Picture]) -> Iterator[str]:
    if not worst:
        yield html.paragraph("Nothing was missed, and nothing wrong was found.")
        return
    colours = {kind: "#{:02x}{:02x}{:02x}".format(*colour) for kind, colour in COLOURS.items()}
    legend = "".join(
        f'<li style="--colour: {colours[kind]}"><b>{kind}</b>: {escape(text)}</li>' for kind, text in _PARTS.items()
    )
    yield html.paragraph("Of detections with a score from the threshold of their class on, at IoU 0.50.", "soft")
    yield f'<ul class="legend">{legend}</ul>'
    figures = []
    for picture in worst:
        told = ", ".join(f"{count:,} {kind}" for kind, count in picture.counts.items() if count)
        unread = "" if picture.readable else "; the file cannot be read"
        caption = f"{picture.name} (id {picture.image_id}): {told}{unread}"
        figures.append(html.photo(picture.jpeg, picture.width, picture.height, caption, caption))
    yield '<div class="gallery">\n' + "\n".join(figures) + "\n</div>"


def _about(evaluation: Mapping[str, Any], written: str) -> Iterator[str]:
    keys = ("run", "checkpoint", "results", "data")
    rows = [[key, str(evaluation[key])] for key in keys if evaluation.get(key) is not None]
    rows += [["options", " ".join(evaluation["overrides"]) or "none"], ["written", written]]
    lines = "\n".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in rows)
    yield f'<dl class="facts">\n{lines}\n</dl>'
    yield html.paragraph(
        "The numbers of this page are in evaluation.json and analysis.json beside it, its plots in plots/.", "soft"
    )


def _plot(plots: Plots, name: str, text: str, caption: str) -> str:
    light, dark = plots[name]
    return html.plot(light, dark, text, caption)


def _interval(interval: Any) -> str:
    """Of intervals as evaluation.json holds them: low and high."""
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""
