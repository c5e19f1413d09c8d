"""The numbers of the sections of the error analysis, as templates/evaluation.html shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.errors import plural
from maskrcnn_lit.report.evaluation.plots import CONFUSED, WRITTEN
from maskrcnn_lit.report.evaluation.sentences import ERRORS
from maskrcnn_lit.report.evaluation.suppression import choice_rows, verdict
from maskrcnn_lit.report.evaluation.worst_images import COLORS, Picture
from maskrcnn_lit.report.format import number
from maskrcnn_lit.report.theme import Analysis

Plots = Mapping[str, tuple[bytes, bytes]]  # name -> light, dark PNG

Rows = list[list[str]]

ESTIMATE = (
    "of the pixels in an object's box that belong to any object, the share that is not its own, "
    "whichever lies in front"
)

# What the hidden shares come from -> a sentence.
SOURCES = {
    "amodal masks": "Hidden shares are those of the json's amodal masks.",
    "visible masks": f"Hidden shares are estimated: {ESTIMATE}.",
    "both": "Hidden shares are those of amodal masks; of objects without one, estimated: "
    f"{ESTIMATE}.",
    "boxes": "Hidden shares are estimated: the share of an object's box that other boxes cover.",
}

HIDDEN_TERMS = (
    "Occluded: one part, and a tenth or more is hidden. Separated: several parts. Their recall "
    "counts detections with a score of 0.3 or more at IoU 0.75. Merged: detections that cover more "
    "than half of each of several objects of their class. Split: objects in which several "
    "detections of their class lie by more than half. These and the count error count detections "
    "that reach the threshold of their class."
)


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


def hidden(analysis: Analysis) -> dict[str, Any]:
    """slices, numbers: head and rows; about: what they mean."""
    measures = analysis["hidden"]
    keys = {"objects": "objects", "ap": "AP", "ap50": "AP50", "recall": "recall"}
    slices = [
        [entry["slice"], *(number(entry[key]) for key in keys)] for entry in measures["slices"]
    ]
    rows = [
        [
            f"{name}: recall of {plural(measures[name]['objects'], 'object')}",
            number(measures[name]["recall"]),
        ]
        for name in ("occluded", "separated")
        if measures[name] is not None
    ]
    rows += [
        ["merged detections", number(measures["merged"])],
        ["split objects", number(measures["split"])],
        ["count error an image", number(measures["count_error"])],
        ["detections less objects an image", number(measures["count_bias"])],
    ]
    return {
        "slices": (["hidden share", *keys.values()], slices),
        "numbers": (["", ""], rows),
        "about": f"{SOURCES[measures['source']]} {HIDDEN_TERMS}",
    }


def suppression(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """table: head and rows; verdict: a sentence. None if the kinds were not compared."""
    rows = evaluation.get("suppression")
    return {"table": choice_rows(rows), "verdict": verdict(rows)} if rows else None


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
