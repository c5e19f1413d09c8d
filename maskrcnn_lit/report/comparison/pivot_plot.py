"""The plot of a table for a paper: its first metric, rows as lines over the columns, or as bars."""

from matplotlib.figure import Figure

from maskrcnn_lit.report.comparison.pivot import Cell, Pivot, title_of
from maskrcnn_lit.report.comparison.plots import shorten
from maskrcnn_lit.report.theme import Theme, axes, legend_below, line_style
from maskrcnn_lit.runs.costs import COSTS

LINE = 80  # maximum number of letters side by side below the axis


def pivot_plot(table: Pivot, theme: Theme) -> Figure:
    """Means, with bars of the spread that the table has; equal distances between the columns."""
    return _lines(table, theme) if len(table.columns) > 1 else _bars(table, theme)


def _lines(table: Pivot, theme: Theme) -> Figure:
    metric = table.request.metrics[0]
    across = ", ".join(table.request.columns)
    figure, ax = axes(12 + min(len(table.rows), len(theme.colors) + 1), across, title_of(metric))
    labels = shorten([", ".join(row) for row in table.rows])
    for i, row in reversed(list(enumerate(table.rows))):
        there = [(x, table.cells.get((metric, row, c))) for x, c in enumerate(table.columns)]
        known = [(x, cell) for x, cell in there if cell is not None]
        ax.errorbar(
            [x for x, _ in known],
            [cell.mean * _factor(metric) for _, cell in known],
            [_spread(cell, table) for _, cell in known],
            fmt="o-",
            ms=4,
            lw=1.6,
            elinewidth=1,
            capsize=2,
            **line_style(i, len(table.rows), labels[i], theme),
        )
    # the values of a column, one below the other
    names = ["\n".join(column) for column in table.columns]
    ax.set_xticks(range(len(names)), names)
    longest = max(len(value) for column in table.columns for value in column)
    if longest * len(names) > LINE:
        ax.tick_params(axis="x", rotation=30)
    ax.set_ylim(bottom=0)
    ax.grid()
    legend_below(figure, ax)
    return figure


def _bars(table: Pivot, theme: Theme) -> Figure:
    metric = table.request.metrics[0]
    column = table.columns[0]
    known = [(row, table.cells.get((metric, row, column))) for row in table.rows[::-1]]
    shown = [(row, cell) for row, cell in known if cell is not None]
    figure, ax = axes(max(1.4 * len(shown), 3), title_of(metric), "")
    ax.barh(
        range(len(shown)),
        [cell.mean * _factor(metric) for _, cell in shown],
        xerr=[_spread(cell, table) for _, cell in shown],
        height=0.6,
        color=theme.colors[0],
        ecolor=theme.ink,
        capsize=2,
    )
    ax.set_yticks(range(len(shown)), shorten([", ".join(row) for row, _ in shown]))
    ax.set_xlim(left=0)
    return figure


def _factor(metric: str) -> float:
    return COSTS[metric].factor if metric in COSTS else 1.0


def _spread(cell: Cell, table: Pivot) -> float:
    spread = {"mean±std": cell.std, "mean±ci": cell.half}.get(table.request.seeds)
    return (spread or 0.0) * _factor(table.request.metrics[0])
