"""The plot of a model card: AP of boxes and masks."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from maskrcnn_lit.evaluation.titles import AP_COLUMNS
from maskrcnn_lit.report.theme import Theme, axes, legend_below


def score_plot(facts: Mapping[str, Any], theme: Theme) -> Figure:
    """A group of bars for each AP, of all sizes and of each size, and its 95 % interval where there
    is one.

    `facts` has "metrics" (val/mask_ap, ...: 0..1) and "intervals" (low, high by metric, or None).
    """
    figure, ax = axes(10, "", "AP", margin=1.1)
    kinds = [kind for kind in ("mask", "box") if f"val/{kind}_ap" in facts["metrics"]]
    names = [
        key for key in AP_COLUMNS if any(f"val/{kind}_{key}" in facts["metrics"] for kind in kinds)
    ]
    width = 0.8 / max(1, len(kinds))
    for n, kind in reversed(list(enumerate(kinds))):
        places, heights = [], []
        for i, key in enumerate(names):
            metric = f"val/{kind}_{key}"
            if metric in facts["metrics"]:
                places.append(i + (n - (len(kinds) - 1) / 2) * width)
                heights.append(facts["metrics"][metric])
                interval = facts["intervals"].get(metric)
                if interval:
                    ax.vlines(places[-1], *interval, color=theme.ink, lw=1, zorder=4)
        ax.bar(places, heights, width * 0.9, color=theme.colors[n], label=kind, zorder=3)
    ax.set_xticks(range(len(names)), [AP_COLUMNS[key] for key in names])
    ax.set_ylim(0, 1)
    ax.grid(axis="y")
    if kinds:
        legend_below(figure, ax)
    return figure
