"""The plots of a comparison, and which of them a set of jobs has: AP of each setting, curves over epochs; AP against
what was varied and what it costs is in job_tradeoffs.py."""

import textwrap
from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from maskrcnn_lit.report.job_tradeoffs import AGAINST, against, against_cost, heat_map, position, short, varied_costs
from maskrcnn_lit.report.jobs import APS, Arena, Job, option_value
from maskrcnn_lit.report.theme import Theme, axes, legend_below, line_style

ROWS = 30  # settings in the plot of scores, the best ones
_WIDE, _LINES = 26, 3  # letters of a line of their names, and lines
CURVES = {"train/loss": "training loss", "val/loss": "validation loss", "val/roi_accuracy": "roi_accuracy"} | APS

Draw = Callable[[Arena, Theme], Figure]


def plots_of(arena: Arena) -> dict[str, Draw]:
    """Name -> what draws it. Against a thing that does not vary nothing is drawn."""
    found: dict[str, Draw] = {"scores": scores} if len(arena.settings) > 1 else {}
    for column, title in CURVES.items():
        if any(over_epochs(job, column) for job in arena.jobs):
            found[f"curve_{column.replace('/', '_')}"] = partial(curves, column=column, title=title)
    found |= {f"cost_{name}": partial(against_cost, name=name) for name in varied_costs(arena)}
    varied = [name for name in AGAINST if len({position(s, name) for s in arena.settings} - {None}) > 1]
    if {"epochs", "learning_rate"} <= set(varied):
        found["epochs_learning_rate"] = heat_map
        varied = [name for name in varied if name not in ("epochs", "learning_rate")]
    return found | {name: partial(against, name=name) for name in varied}


def scores(arena: Arena, theme: Theme) -> Figure:
    """AP of each setting, the best on top: a dot for each seed on a bar that is their mean."""
    shown = [(setting, mean) for setting in arena.settings if (mean := setting.mean(arena.ap))][:ROWS][::-1]
    names = ["\n".join(textwrap.wrap(setting.label, _WIDE)[:_LINES]) for setting, _ in shown]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    figure, place = axes(max((0.5 + 0.9 * lines) * len(shown), 3), APS[arena.ap], "")
    place.barh(range(len(shown)), [mean.value for _, mean in shown], height=0.6, color=theme.colours[0], alpha=0.45)
    for row, (setting, mean) in enumerate(shown):
        values = setting.values(arena.ap)
        place.plot(values, [row] * len(values), "o", ms=5, color=theme.colours[0], mec=theme.paper, mew=0.6)
        end = place.get_yaxis_transform()
        place.text(1.0, row, f"{mean.value:.3f}", fontsize=8, ha="right", va="center", transform=end)
    place.set_yticks(range(len(shown)), names)
    place.set_ylim(-0.6, len(shown) - 0.4)
    most = max((value for setting, _ in shown for value in setting.values(arena.ap)), default=0)
    place.set_xlim(0, max(most, 0.01) * 1.2)
    place.spines["left"].set_visible(False)
    return figure


def curves(arena: Arena, theme: Theme, *, column: str, title: str) -> Figure:
    """A column of metrics.csv over epochs: the mean over seeds, in a band from the lowest to the highest seed."""
    figure, place = axes(12 + min(len(arena.settings), len(theme.colours) + 1), "epoch", title)
    for i, setting in reversed(list(enumerate(arena.settings))):
        runs = [dict(over_epochs(job, column)) for job in setting.jobs]
        epochs = sorted(set.intersection(*map(set, runs)))
        if not epochs:
            continue
        values = np.array([[run[epoch] for epoch in epochs] for run in runs])
        style = line_style(i, len(arena.settings), short(setting.label), theme)
        place.plot(epochs, values.mean(0), "o-", ms=3, lw=1.6, **style)
        if len(runs) > 1:
            place.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.18, lw=0)
    place.set_ylim(bottom=0)
    place.grid()
    place.locator_params(axis="x", integer=True)
    legend_below(figure, place)
    return figure


def over_epochs(job: Job, column: str) -> list[tuple[int, float]]:
    """(epoch, value) of a column of metrics.csv, epochs from 1 on: the mean of what was logged in each. The validation
    after the end is left out: it sees all images, and those during training may have seen a part."""
    last = option_value(job, "trainer.epochs")
    values: dict[int, list[float]] = {}
    for row in job.curves:
        if column in row and "epoch" in row and (last is None or row["epoch"] < last):
            values.setdefault(int(row["epoch"]) + 1, []).append(row[column])
    return [(epoch, float(np.mean(several))) for epoch, several in sorted(values.items())]
