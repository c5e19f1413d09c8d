"""The plots of a search: its course, importance, parallel coordinates, slices, the Pareto front."""

import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskrcnn_lit.evaluation.goals import Goal
from maskrcnn_lit.report.comparison.search import (
    Axis,
    SearchRecord,
    Tried,
    goal_factor,
    goal_title,
    shown_value,
)
from maskrcnn_lit.report.comparison.settings import endings
from maskrcnn_lit.report.theme import Theme, axes, legend_below

MOST_AXES = 7  # options in the parallel coordinates, the most important ones

MOST_NAMED = 12  # finished trials that have their number in the plot of the front

_WRAP = 13  # characters of a line below an axis of the parallel coordinates

Draw = Callable[[SearchRecord, Theme], Figure]


def search_plots(record: SearchRecord) -> dict[str, Draw]:
    """Name -> function that draws the plot."""
    if not record.scored:
        return {}
    plots: dict[str, Draw] = {"search_course": course}
    if len(record.goals) > 1 and len(record.complete) > 1:
        plots["search_front"] = pareto_front
    if any(any(shares.values()) for shares in record.importance.values()):
        plots["search_importance"] = importance
    if len(record.scored) > 1:
        plots["search_parallel"] = parallel
    for i, axis in enumerate(record.ranked_axes):
        plots[f"search_slice_{i + 1}"] = partial(slice_of, axis=axis)
    return plots


def search_titles(record: SearchRecord) -> dict[str, str]:
    """Name of a plot -> its title."""
    goal = goal_title(record.goals[0])
    return {
        "search_course": f"{goal} of each trial; the line is the best so far",
        "search_front": f"Pareto front of {' and '.join(map(goal_title, record.goals[:2]))}",
        "search_importance": "importance of the options",
        "search_parallel": "options and goals of each trial; the bold lines are the best",
        **{
            f"search_slice_{i + 1}": f"{goal} against {axis.option}"
            for i, axis in enumerate(record.ranked_axes)
        },
    }


def course(record: SearchRecord, theme: Theme) -> Figure:
    """The first goal of each trial in order, and the best so far."""
    goal = record.goals[0]
    figure, ax = axes(13, "trial", goal_title(goal))
    _dots(ax, record, theme, lambda trial: float(trial.number))
    complete = sorted(record.complete, key=lambda trial: trial.number)
    best = np.maximum if goal.rises else np.minimum
    values = best.accumulate([_scaled(goal, trial.values[0]) for trial in complete])
    numbers = [trial.number for trial in complete]
    last = max(trial.number for trial in record.trials)
    if numbers:
        ax.step(
            [*numbers, last],
            [*values, values[-1]],
            where="post",
            color=theme.colors[1],
            lw=1.6,
            label="best so far",
        )
    ax.locator_params(axis="x", integer=True)
    ax.grid(axis="y")
    legend_below(figure, ax)
    return figure


def pareto_front(record: SearchRecord, theme: Theme) -> Figure:
    """The first two goals of each finished trial, by its number; diamonds are the front."""
    first, second = record.goals[:2]
    figure, ax = axes(15, goal_title(second), goal_title(first))
    best = {trial.number for trial in record.best}
    for trial in record.complete:
        x, y = _scaled(second, trial.values[1]), _scaled(first, trial.values[0])
        on_front = trial.number in best
        color, shape = (theme.colors[1], "D") if on_front else (theme.colors[0], "o")
        ax.plot(x, y, shape, ms=6, color=color, mec=theme.paper, mew=0.6, zorder=3)
        if not on_front and len(record.complete) > MOST_NAMED:
            continue
        name = str(trial.number)
        ax.annotate(name, (x, y), xytext=(6, -3), textcoords="offset points", fontsize=8.5)
    ax.margins(0.1)
    ax.grid()
    return figure


def importance(record: SearchRecord, theme: Theme) -> Figure:
    """Bars: the share of each option, for each goal."""
    ranked = record.ranked_axes[::-1]
    goals = [goal for goal in record.goals if goal.name in record.importance]
    space = max(3, len(ranked) * (1 + 0.9 * len(goals))) + len(goals)
    figure, ax = axes(space, "share of the explained variance", "")
    height = 0.75 / len(goals)
    for i, goal in enumerate(goals):
        shares = [record.importance[goal.name].get(axis.option, 0.0) for axis in ranked]
        rows = [row + 0.375 - height * (i + 0.5) for row in range(len(ranked))]
        ax.barh(
            rows, shares, height=0.85 * height, color=theme.colors[i % 6], label=goal_title(goal)
        )
        for row, share in zip(rows, shares, strict=True):
            ax.text(share + 0.01, row, f"{share:.0%}", va="center", fontsize=8)
    ax.set_yticks(range(len(ranked)), endings([axis.option for axis in ranked]))
    ax.set_xlim(0, 1.12)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.spines["left"].set_visible(False)
    if len(goals) > 1:
        handles, names = ax.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def parallel(record: SearchRecord, theme: Theme) -> Figure:
    """A line for each trial across its options and goals: the darker, the better by the first goal;
    pruned trials are thin.
    """
    shown = record.ranked_axes[:MOST_AXES][::-1]
    goals = record.goals[:2]
    ranges = {goal: _range(record, i, goal) for i, goal in enumerate(goals)}
    names = [*endings([axis.option for axis in shown]), *map(goal_title, goals)]
    figure, ax = axes(20, "", "")
    best = {trial.number for trial in record.best}
    for trial in sorted(record.scored, key=lambda t: (t.number in best, t.state == "complete")):
        ys = [axis.share(trial.params[axis.option]) for axis in shown]
        for goal, value in zip(goals, trial.values, strict=False):
            low, high = ranges[goal]
            ys.append((_scaled(goal, value) - low) / (high - low))
        ax.plot(range(len(ys)), ys, **_line(record, trial, theme, trial.number in best))
    parts: list[Axis | Goal] = [*shown, *goals]
    for x, part in enumerate(parts):
        ax.axvline(x, color=theme.quiet, lw=0.8, zorder=1)
        for y, text in _labels(part, ranges):
            box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            ax.text(x, y, text, fontsize=7, ha="center", va="center", zorder=5, bbox=box)
    lines = ["\n".join(textwrap.wrap(name, _WRAP, break_long_words=False)) for name in names]
    ax.set_xticks(range(len(names)), lines, fontsize=7.5)
    ax.set_yticks([])
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_ylim(-0.08, 1.08)
    ax.spines[:].set_visible(False)
    return figure


def slice_of(record: SearchRecord, theme: Theme, *, axis: Axis) -> Figure:
    """The first goal of each trial against an option."""
    figure, ax = axes(12, axis.option, goal_title(record.goals[0]))
    rng = np.random.default_rng(0)

    def position(trial: Tried) -> float:
        value = trial.params[axis.option]
        if axis.choices:
            return axis.choices.index(str(value)) + float(rng.uniform(-0.12, 0.12))
        return float(value)

    _dots(ax, record, theme, position)
    if axis.choices:
        ax.set_xticks(range(len(axis.choices)), axis.choices)
        ax.set_xlim(-0.5, len(axis.choices) - 0.5)
    elif axis.log:
        ax.set_xscale("log")
        ax.set_xlim(axis.low / 1.15, axis.high * 1.15)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.set_xticks([], minor=True)
    else:
        ax.locator_params(axis="x", integer=axis.whole)
        margin = 0.04 * (axis.high - axis.low)
        ax.set_xlim(axis.low - margin, axis.high + margin)
    ax.grid(axis="y")
    legend_below(figure, ax)
    return figure


def _dots(ax: Axes, record: SearchRecord, theme: Theme, position: Callable[[Tried], float]) -> None:
    """The first goal of each scored trial: the best, the other finished, and the pruned ones."""
    best = {trial.number for trial in record.best}
    kinds = {
        "pruned, last validation": [t for t in record.pruned if t in record.scored],
        "finished": [trial for trial in record.complete if trial.number not in best],
        "best" if len(record.goals) == 1 else "Pareto front": record.best,
    }
    styles: tuple[dict[str, Any], ...] = (
        {"marker": "o", "mfc": "none", "mec": theme.quiet, "ms": 4.5},
        {"marker": "o", "mfc": theme.colors[0], "mec": theme.paper, "ms": 6, "mew": 0.6},
        {"marker": "D", "mfc": theme.colors[1], "mec": theme.paper, "ms": 6.5, "mew": 0.6},
    )
    for (name, trials), style in zip(kinds.items(), styles, strict=True):
        if trials:
            xs = [position(trial) for trial in trials]
            ys = [_scaled(record.goals[0], trial.values[0]) for trial in trials]
            ax.plot(xs, ys, ls="none", label=name, zorder=3, **style)


def _line(record: SearchRecord, trial: Tried, theme: Theme, best: bool) -> dict[str, Any]:
    """The style of a trial in the parallel coordinates."""
    if best:
        return {"color": theme.colors[1], "lw": 2, "zorder": 4}
    if trial.state == "pruned":
        return {"color": theme.quiet, "lw": 0.8, "alpha": 0.6, "zorder": 2}
    values = [other.values[0] for other in record.complete]
    span = (max(values) - min(values)) or 1.0
    share = (trial.values[0] - min(values)) / span
    share = share if record.goals[0].rises else 1 - share
    return {"color": theme.shades(0.35 + 0.65 * share), "lw": 1.2, "zorder": 3}


def _range(record: SearchRecord, i: int, goal: Goal) -> tuple[float, float]:
    """The lowest and highest value of a goal, apart."""
    values = [_scaled(goal, trial.values[i]) for trial in record.scored]
    low, high = np.nanmin(values), np.nanmax(values)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def _labels(part: Axis | Goal, ranges: dict[Goal, tuple[float, float]]) -> list[tuple[float, str]]:
    """Positions and texts on an axis of the parallel coordinates."""
    if isinstance(part, Goal):
        factor = goal_factor(part)
        return [(i, shown_value(part, end / factor)) for i, end in enumerate(ranges[part])]
    if part.choices:
        return [(part.share(value), value) for value in part.choices]
    return [(0.0, f"{part.low:g}"), (1.0, f"{part.high:g}")]


def _scaled(goal: Goal, value: float) -> float:
    return value * goal_factor(goal)
