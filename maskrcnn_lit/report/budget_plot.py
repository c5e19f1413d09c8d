"""The plot of `bench latency=33ms`: latency of each model and runtime, beside AP where it is
known.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from maskrcnn_lit.report.theme import Theme, axes, legend_below, log_scale


def budget_plot(report: Mapping[str, Any], theme: Theme) -> Figure:
    """A row for each model and image size, a dot for each runtime, a line at the budget.

    `report` has "budget_milliseconds" and "rows", each a dict with "name", "image_size", "runtime",
    "milliseconds" (median first), "mask_ap" and "box_ap".
    """
    rows = report["rows"]
    fastest: dict[str, float] = {}
    for row in rows:
        name = _name(row)
        fastest[name] = min(fastest.get(name, float("inf")), row["milliseconds"][0])
    names = sorted(fastest, key=fastest.__getitem__, reverse=True)
    runtimes = sorted({row["runtime"] for row in rows})
    figure, ax = axes(max(1.4 * len(names), 3), "milliseconds an image (median)", "", margin=1.1)
    for n, runtime in enumerate(runtimes):
        own = [row for row in rows if row["runtime"] == runtime]
        ax.plot(
            [row["milliseconds"][0] for row in own],
            [names.index(_name(row)) for row in own],
            "o",
            ms=5,
            color=theme.colors[n % len(theme.colors)],
            label=runtime,
        )
    ax.axvline(report["budget_milliseconds"], color=theme.ink, lw=1, ls="--", label="budget")
    log_scale(ax, "x")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="both")
    legend_below(figure, ax)
    return figure


def _name(row: Mapping[str, Any]) -> str:
    """The model, its image size and its mask AP, or box AP without masks."""
    size = row["image_size"]
    shown = " x ".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)
    aps = (
        f", {kind} AP {ap:.3f}" for kind in ("mask", "box") if (ap := row[f"{kind}_ap"]) is not None
    )
    ap = next(aps, "")
    return f"{row['name'].replace(', ', chr(10))}\n{shown} px{ap}"
