"""The plots of a comparison: AP of each setting, curves over epochs, AP against costs and varied
options.
"""

import textwrap
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskrcnn_lit.evaluation.titles import metric_title
from maskrcnn_lit.report.comparison.settings import (
    APS,
    SHOWN_APS,
    Job,
    Ranking,
    Setting,
    label,
    option_value,
    pareto,
)
from maskrcnn_lit.report.theme import Theme, axes, blank, legend_below, line_style
from maskrcnn_lit.runs.costs import COSTS, MODEL_COSTS

ROWS = 30  # maximum number of settings in the plots of scores and curves: the best

_WIDE, _LINES = 26, 3  # wrapping of their names: characters per line, lines

CURVES = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/roi_accuracy": metric_title("val/roi_accuracy"),
} | SHOWN_APS

Draw = Callable[[Ranking, Theme], Figure]


def plots_of(ranking: Ranking, *, varied_options: bool = True) -> dict[str, Draw]:
    """Name -> function that draws the plot. Curves of a single epoch have no plot, nor have options
    that do not vary; without `varied_options` no option has one.
    """
    plots: dict[str, Draw] = {"scores": scores} if len(ranking.settings) > 1 else {}
    for column, text in CURVES.items():
        if any(len(over_epochs(job, column)) > 1 for job in ranking.jobs):
            plots[f"curve_{column.replace('/', '_')}"] = partial(curves, column=column, title=text)
    plots |= {f"cost_{name}": partial(against_cost, name=name) for name in varied_costs(ranking)}
    if not varied_options:
        return plots
    varied = [
        name for name in AGAINST if len({position(s, name) for s in ranking.settings} - {None}) > 1
    ]
    if {"epochs", "learning_rate"} <= set(varied):
        plots["epochs_learning_rate"] = heat_map
        varied = [name for name in varied if name not in ("epochs", "learning_rate")]
    return plots | {name: partial(against, name=name) for name in varied}


def scores(ranking: Ranking, theme: Theme) -> Figure:
    """AP of each setting, best first: a dot for each seed on a bar of their mean."""
    shown = [(setting, mean) for setting in ranking.settings if (mean := setting.mean(ranking.ap))][
        :ROWS
    ][::-1]
    names = ["\n".join(textwrap.wrap(setting.label, _WIDE)[:_LINES]) for setting, _ in shown]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    figure, ax = axes(max((0.5 + 0.9 * lines) * len(shown), 3), APS[ranking.ap], "")
    ax.barh(
        range(len(shown)),
        [mean.value for _, mean in shown],
        height=0.6,
        color=theme.colors[0],
        alpha=0.45,
    )
    for row, (setting, mean) in enumerate(shown):
        values = setting.values(ranking.ap)
        ax.plot(
            values, [row] * len(values), "o", ms=5, color=theme.colors[0], mec=theme.paper, mew=0.6
        )
        end = ax.get_yaxis_transform()
        ax.text(1.0, row, f"{mean.value:.3f}", fontsize=8, ha="right", va="center", transform=end)
    ax.set_yticks(range(len(shown)), names)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    most = max((value for setting, _ in shown for value in setting.values(ranking.ap)), default=0)
    ax.set_xlim(0, max(most, 0.01) * 1.2)
    ax.spines["left"].set_visible(False)
    return figure


def curves(ranking: Ranking, theme: Theme, *, column: str, title: str) -> Figure:
    """A column of metrics.csv over epochs: the mean over seeds, in a band from the lowest to the
    highest seed, of the ROWS best settings.
    """
    shown = ranking.settings[:ROWS]
    figure, ax = axes(12 + min(len(shown), len(theme.colors) + 1), "epoch", title)
    labels = shorten([setting.label for setting in shown])
    for i, setting in reversed(list(enumerate(shown))):
        runs = [dict(over_epochs(job, column)) for job in setting.jobs]
        epochs = sorted(set.intersection(*map(set, runs)))
        if not epochs:
            continue
        values = np.array([[run[epoch] for epoch in epochs] for run in runs])
        style = line_style(i, len(shown), labels[i], theme)
        ax.plot(epochs, values.mean(0), "o-", ms=3, lw=1.6, **style)
        if len(runs) > 1:
            ax.fill_between(
                epochs, values.min(0), values.max(0), color=style["color"], alpha=0.18, lw=0
            )
    ax.set_ylim(bottom=0)
    ax.grid()
    ax.locator_params(axis="x", integer=True)
    legend_below(figure, ax)
    return figure


def over_epochs(job: Job, column: str) -> list[tuple[int, float]]:
    """(epoch, value) of a column of metrics.csv, with epochs from 1: the mean of the values logged
    in each epoch. The validation after training is left out: it uses all images, while others may
    use a subset.
    """
    return job.over_epochs.get(column, [])


# Plots of AP against costs, and against training images, epochs and learning rate.

CELLS = 4  # heat maps in one figure, of the best settings

LONG = 44  # letters of a label in a plot

AGAINST = {  # name -> option, title
    "data_size": ("data.train_images", "training images"),
    "epochs": ("trainer.epochs", "epochs"),
    "learning_rate": ("optimizer.lr", "learning rate"),
}


def position(setting: Setting, name: str) -> float | None:
    """The position of a setting on the axis `name` of AGAINST; for the data, the actual number of
    images.
    """
    job = setting.jobs[0]
    value = option_value(job, AGAINST[name][0])
    if name == "data_size":
        value = job.result.data.get("train", {}).get("images")
    return value if isinstance(value, (int, float)) else None


def varied_costs(ranking: Ranking) -> list[str]:
    """The MODEL_COSTS that differ among the settings. Latency of one network varies by chance, so
    it counts only if parameters or FLOPs differ.
    """
    varied = [
        name
        for name in MODEL_COSTS
        if len({setting.cost(name) for setting in ranking.settings} - {None}) > 1
    ]
    return [] if varied == ["latency_seconds"] else varied


def cost_points(ranking: Ranking, name: str) -> list[tuple[Setting, float, float]]:
    """Setting, cost and AP, for all settings with both."""
    points = [
        (setting, setting.cost(name), setting.mean(ranking.ap)) for setting in ranking.settings
    ]
    return [
        (setting, cost, mean.value)
        for setting, cost, mean in points
        if cost is not None and mean is not None
    ]


def against_cost(ranking: Ranking, theme: Theme, *, name: str) -> Figure:
    """AP against a cost: each setting by its letter, those of the Pareto front as diamonds on a
    line of steps.
    """
    figure, ax = axes(16, COSTS[name].title, APS[ranking.ap])
    known = cost_points(ranking, name)
    points = [(cost * COSTS[name].factor, score) for _, cost, score in known]
    front = pareto(points)
    steps = [points[i] for i in front]
    ax.step(
        [x for x, _ in steps],
        [y for _, y in steps],
        where="post",
        color=theme.colors[1],
        lw=1,
        alpha=0.7,
    )
    named = {id(s): x for x, s in zip(ranking.letters, ranking.settings, strict=True)}
    for i, ((setting, _, _), (cost, score)) in enumerate(zip(known, points, strict=True)):
        values = setting.values(ranking.ap)
        color, shape = (theme.colors[1], "D") if i in front else (theme.colors[0], "o")
        ax.plot([cost, cost], [min(values), max(values)], color=color, lw=1)
        ax.plot(cost, score, shape, ms=6, color=color, mec=theme.paper, mew=0.6, zorder=3)
        ax.annotate(
            named[id(setting)],
            (cost, score),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=8.5,
        )
    ax.set_xlim(0, max(cost for cost, _ in points) * 1.1)
    _from_zero(ax, ranking.settings, ranking.ap)
    return figure


def against(ranking: Ranking, theme: Theme, *, name: str) -> Figure:
    """AP against the training images or the learning rate (logarithmic), or epochs: a line for each
    combination of the other options, with bars from the lowest to the highest seed.
    """
    lines = series(ranking, name)
    figure, ax = axes(
        12 + min(len(lines), len(theme.colors) + 1), AGAINST[name][1], APS[ranking.ap]
    )
    labels = shorten(lines)
    for i, members in reversed(list(enumerate(lines.values()))):
        style = line_style(i, len(lines), labels[i], theme)
        values = [setting.values(ranking.ap) for _, setting in members]
        places = [x for x, _ in members]
        ax.plot(places, [np.mean(several) for several in values], "o-", ms=4, lw=1.6, **style)
        ax.vlines(
            places, list(map(min, values)), list(map(max, values)), color=style["color"], lw=1
        )
    places = sorted({x for members in lines.values() for x, _ in members})
    if name != "epochs":
        ax.set_xscale("log")
    ax.set_xticks(places, [f"{x:,.0f}" if x >= 1 else f"{x:g}" for x in places])
    ax.set_xticks([], minor=True)
    _from_zero(ax, ranking.settings, ranking.ap)
    legend_below(figure, ax)
    return figure


def series(ranking: Ranking, name: str) -> dict[str, list[tuple[float, Setting]]]:
    """Label of the other options -> positions and settings that differ only in the option of
    `name`; the line of the best setting first.
    """
    lines: dict[str, list[tuple[float, Setting]]] = {}
    for setting in ranking.settings:
        x = position(setting, name)
        if x is not None and setting.values(ranking.ap):
            lines.setdefault(_rest(setting, name), []).append((x, setting))
    return {text: sorted(members, key=lambda member: member[0]) for text, members in lines.items()}


def heat_map(ranking: Ranking, theme: Theme) -> Figure:
    """AP by epochs and learning rate: a map for each combination of the other options, best
    first.
    """
    maps: dict[str, dict[tuple[float, float], float]] = {}
    for setting in ranking.settings:
        epochs, rate, mean = (
            position(setting, "epochs"),
            position(setting, "learning_rate"),
            setting.mean(ranking.ap),
        )
        if epochs is not None and rate is not None and mean is not None:
            maps.setdefault(_rest(setting, "epochs", "learning_rate"), {})[epochs, rate] = (
                mean.value
            )
    shown = list(maps.items())[:CELLS]
    columns = sorted({epochs for _, cells in shown for epochs, _ in cells})
    rows = sorted({rate for _, cells in shown for _, rate in cells})
    top = max(value for _, cells in shown for value in cells.values())
    figure = blank(len(shown) * (2.2 * len(rows) + 3))
    titles = shorten([text for text, _ in shown])
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for ax, title, (_, cells) in zip(panels, titles, shown, strict=True):
        values = np.array(
            [[cells.get((epochs, rate), np.nan) for epochs in columns] for rate in rows]
        )
        ax.imshow(
            values, cmap=theme.shades, vmin=0, vmax=max(top, 0.01), aspect="auto", origin="lower"
        )
        for row, column in np.argwhere(np.isfinite(values)).tolist():
            color = theme.paper if values[row, column] > 0.55 * top else theme.ink
            ax.text(
                column, row, f"{values[row, column]:.3f}", ha="center", va="center", color=color
            )
        ax.set_xticks(range(len(columns)), [f"{epochs:g}" for epochs in columns])
        ax.set_yticks(range(len(rows)), [f"{rate:g}" for rate in rows])
        ax.set(xlabel="epochs", ylabel="learning rate")
        ax.set_title(title, fontsize=9)
        ax.spines[:].set_visible(False)
    return figure


def shorten(texts: Collection[str]) -> list[str]:
    """The labels as a plot has room for them; in full where they would be the same then."""
    cut = [text if len(text) <= LONG else f"{text[: LONG - 3]}..." for text in texts]
    return cut if len(set(cut)) == len(cut) else list(texts)


def _rest(setting: Setting, *names: str) -> str:
    """The label of a setting without the options of these names."""
    drop = {AGAINST[name][0] for name in names}
    return label({key: value for key, value in setting.options.items() if key not in drop})


def _from_zero(ax: Axes, settings: tuple[Setting, ...], ap: str) -> None:
    most = max((value for setting in settings for value in setting.values(ap)), default=0)
    ax.set_ylim(0, max(most, 0.01) * 1.1)
    ax.grid()
