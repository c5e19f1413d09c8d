"""The sections of the error analysis as HTML: each plot with its numbers and an explanation."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from maskrcnn_lit.report import elements as html
from maskrcnn_lit.report.evaluation.plots import CONFUSED, WRITTEN
from maskrcnn_lit.report.evaluation.sentences import ERRORS
from maskrcnn_lit.report.evaluation.worst_images import COLORS, Picture
from maskrcnn_lit.report.format import number
from maskrcnn_lit.report.theme import Analysis

Plots = Mapping[str, tuple[bytes, bytes]]  # name -> light, dark PNG

_PARTS = {
    "missed": "an object without a matching detection",
    "false": "a detection without a matching object",
}

_PARTS |= {
    "merged": "a detection that covers more than half of each of several objects of its class"
}


def curves(plots: Plots) -> Iterator[str]:
    yield html.pair(
        plot(
            plots,
            "precision_recall",
            "Precision against recall",
            "Recall and precision at IoU 0.50, for all score thresholds from the highest to the "
            "lowest.",
        ),
        plot(
            plots,
            "f1_threshold",
            "F1 against the score threshold",
            "The harmonic mean of precision and recall at each score threshold; a dot marks the "
            "best.",
        ),
    )


def confusion(analysis: Analysis, plots: Plots) -> Iterator[str]:
    matrix = analysis["confusion"]
    classes = len(matrix["labels"]) - 1
    shown = (
        f" Of {classes} classes the {CONFUSED} most mixed up are shown; all are in analysis.json."
        * (classes > CONFUSED)
    )
    picture = plot(
        plots,
        "confusion",
        "Confusion matrix",
        "Each row: the detected classes of the objects of one class, as shares. "
        "Column “background”: "
        "missed. "
        "Row “background”: false detections, by class. "
        f"Matched at IoU {number(matrix['iou'], 2)}, "
        "detections with a "
        f"score from the threshold of their class on.{shown}",
    )
    if classes > WRITTEN:
        yield picture
        return
    rows = [
        [label, *map(number, row)]
        for label, row in zip(matrix["labels"], matrix["counts"], strict=True)
    ]
    counts = html.table("The same as counts; rows are the truth", ["", *matrix["labels"]], rows)
    yield html.pair(picture, counts)


def errors(analysis: Analysis, plots: Plots) -> Iterator[str]:
    gains = analysis["errors"]
    rows = [
        [title, number(gains[kind]), number(gains.get("counts", {}).get(kind))]
        for kind, title in ERRORS.items()
    ]
    yield html.pair(
        plot(
            plots,
            "errors",
            "AP50 gained by fixing each kind of error",
            "Each kind is fixed alone, so the gains do not add up (TIDE: Bolya et al., 2020).",
        ),
        html.table(f"AP50 is {number(gains['ap50'])}", ["error", "AP50 lost", "count"], rows),
    )


def occlusion(analysis: Analysis, plots: Plots) -> Iterator[str]:
    keys = {"objects": "objects", "ap": "AP", "ap50": "AP50", "recall": "recall"}
    rows = [
        [entry["slice"], *(number(entry[key]) for key in keys)] for entry in analysis["occlusion"]
    ]
    yield html.pair(
        plot(
            plots,
            "occlusion",
            "AP, AP50 and recall by overlap",
            "Objects by the share of their box that the boxes of other objects cover. "
            f"Crowded images have {number(analysis['crowded_from'])} objects or more.",
        ),
        html.table("Objects by overlap with others", ["slice", *keys.values()], rows),
    )


def calibration(analysis: Analysis, plots: Plots) -> Iterator[str]:
    curve = analysis["calibration"]
    rows = [
        [
            f"{number(b['from'], 2)} to {number(b['to'], 2)}",
            *(number(b[k]) for k in ("count", "score", "precision")),
        ]
        for b in curve["bins"]
        if b["count"]
    ]
    yield html.pair(
        plot(
            plots,
            "calibration",
            "Precision against score",
            "On the dashed line, a score of 0.8 is right 8 times of 10. The mean distance from it, "
            "weighted by the "
            f"number of detections, is {number(curve['error'])} (expected calibration error).",
        ),
        html.table(
            "Detections by score", ["score", "detections", "mean score", "share right"], rows
        ),
    )


def worst(worst: Sequence[Picture]) -> Iterator[str]:
    if not worst:
        yield html.paragraph("No missed objects and no false detections.")
        return
    colors = {kind: "#{:02x}{:02x}{:02x}".format(*color) for kind, color in COLORS.items()}
    legend = "".join(
        f'<li style="--color: {colors[kind]}"><b>{kind}</b>: {escape(text)}</li>'
        for kind, text in _PARTS.items()
    )
    yield html.paragraph(
        "For detections that reach the score threshold of their class, at IoU 0.50.", "soft"
    )
    yield f'<ul class="legend">{legend}</ul>'
    figures = []
    for picture in worst:
        message = ", ".join(f"{count:,} {kind}" for kind, count in picture.counts.items() if count)
        unread = "" if picture.readable else "; the file cannot be read"
        caption = f"{picture.name} (id {picture.image_id}): {message}{unread}"
        figures.append(html.photo(picture.jpeg, picture.width, picture.height, caption, caption))
    yield '<div class="gallery">\n' + "\n".join(figures) + "\n</div>"


def plot(plots: Plots, name: str, text: str, caption: str) -> str:
    light, dark = plots[name]
    return html.plot(light, dark, text, caption)
