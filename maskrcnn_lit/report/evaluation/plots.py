"""The plots of an analysis, one function each: (analysis, theme) -> matplotlib Figure.

They do not use pyplot, so they leave no global state. Numbers that are None (no such object) are
left out.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maskrcnn_lit.errors import plural
from maskrcnn_lit.report.evaluation.sentences import ERRORS, headline
from maskrcnn_lit.report.format import POOLED
from maskrcnn_lit.report.theme import Analysis, Theme, axes, blank, log_scale

NAMED = 6  # classes with their own color in a plot of curves

CONFUSED = 20  # maximum number of classes of a confusion matrix: the most confused ones

WRITTEN = 10  # maximum number of classes with numbers in the cells

_LEAST, _ROOM = (
    0.01,
    1.2,
)  # minimum length of the longest bar, and the space for its number


def class_ap(analysis: Analysis, theme: Theme) -> Figure:
    """AP of each class, best first: masks as bars and boxes as dots, or boxes as bars."""
    key = headline(analysis)
    classes = sorted(
        (c for c in analysis["per_class"] if c[key] is not None), key=lambda c: (c[key], c["name"])
    )
    figure, ax = axes(max(len(classes), 2), "AP (IoU 0.50 to 0.95)", "", margin=0.8)
    names, values = [c["name"] for c in classes], [c[key] for c in classes]
    _bars(ax, names, values, theme.colors[0], "mask AP")
    if key == "mask_ap":
        boxes = [_number(c["box_ap"]) for c in classes]
        ax.plot(
            boxes,
            range(len(classes)),
            "o",
            ms=4,
            color=theme.colors[1],
            mec=theme.paper,
            label="box AP",
        )
        _from_zero(ax, [*values, *boxes])
        figure.legend(loc="outside upper right", ncols=2, reverse=True)
    return figure


def precision_recall(analysis: Analysis, theme: Theme) -> Figure:
    """Precision against recall: all classes pooled in ink; of many classes, those with most objects
    in color.
    """
    figure, ax = axes(14, "recall", "precision")
    for curve, style in _curves(analysis, theme):
        ax.plot(curve["recall"], curve["precision"], **style)
    _unit(ax, both=True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def f1_threshold(analysis: Analysis, theme: Theme) -> Figure:
    """F1 against the score threshold, with the best threshold of each curve marked."""
    figure, ax = axes(14, "score threshold", "F1")
    for curve, style in _curves(analysis, theme):
        thresholds, f1 = _numbers(curve["thresholds"]), _numbers(curve["f1"])
        ax.plot(thresholds, f1, **style)
        if np.isfinite(f1).any() and style["zorder"] > 1:
            best = int(np.nanargmax(f1))
            ax.plot(
                thresholds[best],
                f1[best],
                "o",
                ms=5,
                color=style["color"],
                mec=theme.paper,
                zorder=5,
            )
            if curve is analysis["curves"][-1]:  # all classes together
                ax.plot(
                    [thresholds[best]] * 2,
                    [0, 1],
                    color=theme.quiet,
                    lw=0.8,
                    ls=(0, (4, 3)),
                    zorder=1,
                )
                side = "left" if thresholds[best] < 0.5 else "right"
                message = f" F1 {f1[best]:.2f} from {thresholds[best]:.2f} on "
                ax.text(thresholds[best], 1.0, message, ha=side, va="top")
    _unit(ax, both=True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def confusion(analysis: Analysis, theme: Theme) -> Figure:
    """The confusion matrix, as shares of each row."""
    labels, counts = most_confused(analysis["confusion"])
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)
    shares[-1, -1] = np.nan  # true negatives are undefined
    size = len(labels)
    figure, ax = axes(max(1.1 * size, min(3 + 1.6 * size, 12)), "detected as", "truth", margin=1.3)
    drawn = ax.imshow(shares, cmap=theme.shades, vmin=0, vmax=1, aspect="auto")
    small = 8.5 if size <= 12 else 7
    ax.set_xticks(range(size), labels, rotation=90 if size > 4 else 0, fontsize=small)
    ax.set_yticks(range(size), labels, fontsize=small)
    ax.spines[:].set_visible(False)
    if size > WRITTEN + 1:
        bar = figure.colorbar(drawn, ax=ax, shrink=0.5, aspect=30, label="share of the row")
        bar.outline.set_visible(False)
        return figure
    for row, column in np.argwhere(np.isfinite(shares)).tolist():
        share = shares[row, column]
        color = theme.paper if share > 0.55 else theme.ink
        ax.text(column, row, f"{share:.2f}", ha="center", va="center", color=color, fontsize=8)
    return figure


def most_confused(confusion: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """Labels and counts (L L, rows are the truth) of the `CONFUSED` classes with most mix-ups with
    other classes, in their old order, and of the background, which is the last one.
    """
    counts, labels = np.asarray(confusion["counts"], np.float64), confusion["labels"]
    classes = len(labels) - 1
    mixed = counts[:classes, :classes] * (1 - np.eye(classes))
    order = np.argsort(-(mixed.sum(0) + mixed.sum(1)), kind="stable")[:CONFUSED]
    selected = [*sorted(order.tolist()), classes]
    return [labels[i] for i in selected], counts[np.ix_(selected, selected)]


def errors(analysis: Analysis, theme: Theme) -> Figure:
    """The gain in AP50 from fixing each kind of error (TIDE, figure 2): six kinds, false positives
    and false negatives.
    """
    gains = analysis["errors"]
    kinds = [kind for kind in ERRORS if gains[kind] is not None][::-1]
    figure, ax = axes(1.4 * len(kinds), "AP50 gained by fixing it", "")
    sides = ("false_positives", "false_negatives")
    colors = [theme.quiet if kind in sides else theme.colors[0] for kind in kinds]
    _bars(ax, [ERRORS[kind] for kind in kinds], [gains[kind] for kind in kinds], colors)
    return figure


def occlusion(analysis: Analysis, theme: Theme) -> Figure:
    """AP, AP50 and recall by overlap with other objects, and of crowded images."""
    slices = [entry for entry in analysis["occlusion"] if entry["objects"]][::-1]
    figure, ax = axes(2 * max(len(slices), 3), "AP, AP50, recall", "", margin=0.95)
    rows = np.arange(len(slices))
    kinds = (("ap", "AP", "o"), ("ap50", "AP50", "D"), ("recall", "recall", "^"))
    values = np.array([[_number(entry[key]) for entry in slices] for key, _, _ in kinds]).reshape(
        3, -1
    )
    for row in rows[np.isfinite(values).any(0)]:
        ax.plot(
            [np.nanmin(values[:, row]), np.nanmax(values[:, row])],
            [row, row],
            color=theme.quiet,
            lw=1.2,
        )
    for (_, name, marker), column, color in zip(kinds, values, theme.colors, strict=False):
        ax.plot(column, rows, marker, ms=6, color=color, mec=theme.paper, mew=0.5, label=name)
    names = [
        e["slice"] if e["slice"].startswith("crowded") else f"{e['slice']} covered" for e in slices
    ]
    counts = [plural(entry["objects"], "object") for entry in slices]
    ax.set_yticks(rows, [f"{name}\n{count}" for name, count in zip(names, counts, strict=True)])
    ax.set_ylim(-0.6, len(slices) - 0.4)
    ax.grid(axis="x")
    _unit(ax)
    ax.spines["left"].set_visible(False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def calibration(analysis: Analysis, theme: Theme) -> Figure:
    """Precision against score; below, the number of detections by score."""
    bins = [entry for entry in analysis["calibration"]["bins"] if entry["count"]]
    figure = blank(18)
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ax.plot([0, 1], [0, 1], color=theme.quiet, lw=1, ls=(0, (4, 3)), label="as the score says")
    scores, precision = ([_number(entry[key]) for entry in bins] for key in ("score", "precision"))
    ax.plot(scores, precision, "o-", ms=4, lw=1.5, color=theme.colors[0], label="found right")
    ax.set(ylabel="share that is right")
    _unit(ax, both=True)
    ax.legend(loc="upper left")
    lows = [entry["from"] for entry in bins]
    widths = [(entry["to"] - entry["from"]) * 0.9 for entry in bins]
    below.bar(lows, [entry["count"] for entry in bins], widths, align="edge", color=theme.quiet)
    below.set(xlabel="score", ylabel="detections")
    if bins:
        log_scale(below, "y")
        below.set_ylim(0.8)
    return figure


PLOTS = {
    "class_ap": class_ap,
    "precision_recall": precision_recall,
    "f1_threshold": f1_threshold,
    "confusion": confusion,
    "errors": errors,
    "occlusion": occlusion,
    "calibration": calibration,
}


def _curves(analysis: Analysis, theme: Theme) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each curve with its style: quiet ones first, then the classes with a color, the pooled curve
    last.
    """
    objects = {entry["name"]: entry["objects"] for entry in analysis["per_class"]}
    *of_classes, pooled = analysis["curves"]
    classes = sorted(of_classes, key=lambda c: -objects.get(c["name"], 0))
    if len(classes) > 1:  # a single class is all of them
        remaining = len(classes) - NAMED
        for curve in classes[NAMED:]:
            named = {"label": f"{remaining} more"} if curve is classes[NAMED] else {}
            yield curve, {"color": theme.quiet, "lw": 0.5, "alpha": 0.7, "zorder": 1, **named}
        for curve, color in zip(classes[:NAMED], theme.colors, strict=False):
            yield curve, {"color": color, "lw": 1.2, "zorder": 2, "label": curve["name"]}
    yield pooled, {"color": theme.ink, "lw": 2.2, "zorder": 3, "label": POOLED}


def _bars(
    ax: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colors: str | Sequence[str],
    label: str = "",
) -> None:
    """Horizontal bars from below, each with its number at the right edge."""
    ax.barh(range(len(names)), values, height=0.68, color=colors, label=label)
    for row, value in enumerate(values):
        ax.text(
            1.0,
            row,
            f"{value:.3f}",
            fontsize=8,
            ha="right",
            va="center",
            transform=ax.get_yaxis_transform(),
        )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, max(len(names), 1) - 0.4)
    _from_zero(ax, values)
    ax.spines["left"].set_visible(False)


def _from_zero(ax: Axes, values: Sequence[float]) -> None:
    """Set the x axis from 0 to beyond the values, without a tick at the end, whose label would be
    cut.
    """
    end = float(np.nanmax([*values, _LEAST])) * _ROOM
    ax.set_xlim(0, end)
    ax.set_xticks([tick for tick in MaxNLocator(5).tick_values(0, end) if tick < 0.95 * end])


def _unit(ax: Axes, both: bool = False) -> None:
    """Set the x axis, or both, from 0 to 1, with a quiet grid."""
    ax.set_xlim(-0.01, 1.01)
    if both:
        ax.set_ylim(-0.01, 1.04)
        ax.grid()


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([_number(value) for value in values], np.float64)
