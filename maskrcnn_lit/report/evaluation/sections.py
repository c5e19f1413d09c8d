"""The numbers of the sections of the error analysis, as templates/evaluation.html shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.report.evaluation.plots import CONFUSED, WRITTEN
from maskrcnn_lit.report.evaluation.sentences import ERRORS
from maskrcnn_lit.report.evaluation.worst_images import COLORS, Picture
from maskrcnn_lit.report.format import number
from maskrcnn_lit.report.theme import Analysis

Plots = Mapping[str, tuple[bytes, bytes]]  # name -> light, dark PNG

Rows = list[list[str]]


def confusion(analysis: Analysis) -> dict[str, Any]:
    """rows: empty where there are too many classes for a table."""
    matrix = analysis["confusion"]
    classes = len(matrix["labels"]) - 1
    rows = [
        [label, *map(number, row)]
        for label, row in zip(matrix["labels"], matrix["counts"], strict=True)
    ]
    return {
        "iou": matrix["iou"],
        "classes": classes,
        "hidden": classes > CONFUSED,
        "shown": CONFUSED,
        "head": ["", *matrix["labels"]],
        "rows": rows if classes <= WRITTEN else [],
    }


def errors(analysis: Analysis) -> dict[str, Any]:
    gains = analysis["errors"]
    rows = [
        [title, number(gains[kind]), number(gains.get("counts", {}).get(kind))]
        for kind, title in ERRORS.items()
    ]
    return {"ap50": gains["ap50"], "rows": rows}


def occlusion(analysis: Analysis) -> tuple[list[str], Rows]:
    """Head and rows."""
    keys = {"objects": "objects", "ap": "AP", "ap50": "AP50", "recall": "recall"}
    rows = [
        [entry["slice"], *(number(entry[key]) for key in keys)] for entry in analysis["occlusion"]
    ]
    return ["slice", *keys.values()], rows


def calibration(analysis: Analysis) -> dict[str, Any]:
    curve = analysis["calibration"]
    rows = [
        [
            f"{number(b['from'], 2)} to {number(b['to'], 2)}",
            *(number(b[k]) for k in ("count", "score", "precision")),
        ]
        for b in curve["bins"]
        if b["count"]
    ]
    return {"error": curve["error"], "rows": rows}


def worst(pictures: Sequence[Picture]) -> list[tuple[Picture, str]]:
    """Each with its caption."""
    shown = []
    for picture in pictures:
        message = ", ".join(f"{count:,} {kind}" for kind, count in picture.counts.items() if count)
        unread = "" if picture.readable else "; the file cannot be read"
        shown.append((picture, f"{picture.name} (id {picture.image_id}): {message}{unread}"))
    return shown


def colors() -> dict[str, str]:
    """Kind of mistake -> the color of its outline in CSS."""
    return {kind: "#{:02x}{:02x}{:02x}".format(*color) for kind, color in COLORS.items()}
