"""The plot of `maskrcnn-lit lr`: the loss over the learning rate."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from maskrcnn_lit.report.theme import Theme, axes, legend_below, log_scale


def rate_plot(test: Mapping[str, Any], theme: Theme) -> Figure:
    """The losses of the steps, their moving average, and a line at the suggested rate.

    `test` has "rates", "losses", "smooth" and "suggested" (or None), as `RateTest`.
    """
    figure, ax = axes(12, "optimizer.lr", "loss", margin=1.1)
    ax.plot(test["rates"], test["losses"], ".", ms=3, color=theme.quiet, label="a step")
    ax.plot(test["rates"], test["smooth"], color=theme.colors[0], label="moving average")
    if test["suggested"] is not None:
        text = f"suggested: {test['suggested']:g}"
        ax.axvline(test["suggested"], color=theme.colors[1], lw=1, ls="--", label=text)
    log_scale(ax, "x")
    # The last losses, after the divergence, would flatten all others.
    low, first = min(test["losses"]), max(test["losses"][: max(3, len(test["losses"]) // 4)])
    ax.set_ylim(max(0, low - 0.1 * (first - low)), first + 0.5 * (first - low) + 1e-6)
    ax.grid(axis="y")
    legend_below(figure, ax)
    return figure
