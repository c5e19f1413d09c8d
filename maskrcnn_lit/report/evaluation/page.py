"""The values of templates/evaluation.html: scores and classes; the error analysis is in
sections.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.sizes import LIMITS, SIZES
from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.titles import AP_COLUMNS, coco_columns, metric_title
from maskrcnn_lit.report.elements import render_page
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
    **{
        name: metric_title(name)
        for name in ("boundary_ap", "cityscapes_ap", "box_ap", "roi_accuracy")
    },
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
    return render_page(
        "evaluation.html",
        title=f"Evaluation of {evaluation.get('run') or evaluation.get('results')}",
        sections=SECTIONS,
        lead=f"{evaluation['data']}: {plural(analysis['images'], 'image')}, {written}",
        tiles=_tiles(evaluation, analysis),
        sentences=summary(analysis),
        scores=score_rows(evaluation),
        differences=[*_differences(evaluation), *_gains(evaluation)],
        gain=gain_rows(evaluation),
        small=f"{LIMITS[0]:g}",
        large=f"{LIMITS[1]:g}",
        roi_accuracy=evaluation.get("roi_accuracy", {}).get("definition"),
        classes=class_rows(evaluation, analysis),
        plots=plots,
        confusion=sections.confusion(analysis),
        errors=sections.errors(analysis),
        crowded_from=analysis["crowded_from"],
        occlusion=sections.occlusion(analysis),
        hidden=sections.hidden(analysis),
        suppression=sections.suppression(evaluation),
        calibration=sections.calibration(analysis),
        worst=sections.worst(worst),
        colors=sections.colors(),
        facts=_facts(evaluation, written),
    )


def _tiles(evaluation: Mapping[str, Any], analysis: Analysis) -> list[tuple[str, str, str]]:
    metrics, intervals = evaluation["metrics"], evaluation.get("intervals") or {}
    shown = [f"val/{kind}_{key}" for kind in ("mask", "box") for key in ("ap", "ap50")]
    entries = [
        (metric_title(name), number(metrics[name]), _interval(intervals.get(name)))
        for name in shown
        if name in metrics
    ]
    if "val/cityscapes_ap" in metrics:
        ap50 = number(metrics["val/cityscapes_ap50"])
        about = f"by the benchmark's own rules; its AP50 is {ap50}"
        entries.append((metric_title("cityscapes_ap"), number(metrics["val/cityscapes_ap"]), about))
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
    return entries


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


def _differences(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for name, difference in (evaluation.get("differences") or {}).items():
        yield (
            f"The {metric_title(name)} is {difference['value']:+.3f} from that of "
            f"{evaluation['against']}, 95 % interval "
            f"{' to '.join(f'{end:+.3f}' for end in difference['interval'])}, "
            f"p = {number(difference['p_value'])} (paired bootstrap over images)."
        )


def _seen(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The option that chose how the model saw the images, tta or tile, in words."""
    seen = {}
    if row := evaluation.get("tta"):
        seen["tta"] = f"{row['kind']}, {row['views']} views of an image"
    if row := evaluation.get("tile"):
        tiles = number(row["tiles_per_image"], 1)
        seen["tile"] = f"{row['tile']} pixels, overlap {row['overlap']:g}, {tiles} tiles an image"
    return seen


def _gains(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for option, words in _seen(evaluation).items():
        row = evaluation[option]
        for name, difference in row["differences"].items():
            if None in (difference["value"], *difference["interval"]):
                continue  # no objects
            yield (
                f"With {option} ({words}) the {metric_title(name)} is {difference['value']:+.3f} "
                "from that of the images as they are, 95 % interval "
                f"{' to '.join(f'{end:+.3f}' for end in difference['interval'])}, "
                f"p = {number(difference['p_value'])} (paired bootstrap over images); "
                f"{number(row['seconds_per_image'])} s of the model an image, without "
                f"{number(row['plain_seconds_per_image'])} s."
            )


def gain_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows: COCO's metrics with tta or tile, and without; None: it had neither."""
    rows: list[list[str]] = []
    columns = coco_columns(evaluation["metrics"])
    for option in _seen(evaluation):
        for kind in ("mask", "box"):
            if f"val/{kind}_ap" not in evaluation["metrics"]:
                continue
            for head, metrics in (
                (f"{kind}, {option}", evaluation["metrics"]),
                (f"{kind}, without", evaluation[option]["plain"]),
            ):
                rows.append([head, *(number(metrics.get(f"val/{kind}_{key}")) for key in columns)])
    return (["", *columns.values()], rows) if rows else None


def class_values(evaluation: Mapping[str, Any], analysis: Analysis) -> list[dict[str, Any]]:
    """For each class, best first, "class" and the columns of `_CLASS` that any class has; None for
    missing numbers.
    """
    key = headline(analysis)
    others = {
        name: {key: entry.get(key) for key in ("cityscapes_ap", "roi_accuracy")}
        for name, entry in evaluation["per_class"].items()
    }
    classes = [entry | others.get(entry["name"], {}) for entry in analysis["per_class"]]
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


def _facts(evaluation: Mapping[str, Any], written: str) -> list[tuple[str, str]]:
    keys = ("run", "checkpoint", "weights", "results", "data")
    rows = [(key, str(evaluation[key])) for key in keys if evaluation.get(key) is not None]
    return [
        *rows,
        *_seen(evaluation).items(),
        ("options", " ".join(evaluation["overrides"]) or "none"),
        ("written", written),
    ]


def _interval(interval: Sequence[float | None] | None) -> str:
    """The 95 % interval of an AP over images, low and high, from evaluation.json."""
    if interval is None or None in interval:
        return ""
    return (
        f"{number(interval[0])} to {number(interval[1])}, 95 % confidence interval (bootstrap "
        "over images)"
    )
