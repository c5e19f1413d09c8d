"""The style of the plots, light and dark: no chart junk, and colors that color-blind people can
distinguish.

The colors are those of Okabe and Ito, "Color Universal Design" (2008), lightened for dark
backgrounds.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from maskrcnn_lit.report.fonts import fit_figure

WIDTH = 4.8  # inches of every plot: its 9-point text is legible on a phone 390 pixels wide

DPI = 200

_ROW = 0.19  # inches of a row of text


@dataclass(frozen=True)
class Theme:
    """colors: of series, the main one first. quiet: for secondary elements."""

    paper: str
    ink: str
    grid: str
    quiet: str
    colors: tuple[str, ...]

    @property
    def shades(self) -> Colormap:
        """A color map from the paper color at 0 to 1; cells without a number have the paper
        color.
        """
        shades = LinearSegmentedColormap.from_list("share", [self.paper, self.colors[0]])
        return shades.with_extremes(bad=self.paper)


LIGHT = Theme(
    "#ffffff",
    "#1f2328",
    "#e3e6ea",
    "#a9b1ba",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)

DARK = Theme(
    "#161b22",
    "#dfe4ea",
    "#30363d",
    "#6b7480",
    ("#56b4e9", "#ff8a3c", "#2fc79a", "#e08fc0", "#f0c75e", "#8f8cff"),
)

Analysis = Mapping[str, Any]  # the result of `maskrcnn_lit.evaluation.analysis.analyze.analyze`

Data = TypeVar("Data")


def blank(rows: float, margin: float = 0.7) -> Figure:
    """A figure of `rows` rows of text, and `margin` inches around them."""
    return Figure(figsize=(WIDTH, rows * _ROW + margin), layout="constrained")


def axes(rows: float, x: str, y: str, *, margin: float = 0.7) -> tuple[Figure, Axes]:
    """A `blank` figure and its only axes, with these titles."""
    figure = blank(rows, margin)
    ax = figure.add_subplot()
    ax.set(xlabel=x, ylabel=y)
    return figure, ax


def log_scale(ax: Axes, which: str) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers at 1, 2 and 5; over more than two
    powers of ten at 1 alone. Call it after drawing. matplotlib's own labels are mathtext: see
    `render_as`.
    """
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_data_interval()
    ax.set(**{f"{which}scale": "log"})
    steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def line_style(i: int, count: int, name: str, theme: Theme) -> dict[str, Any]:
    """The style of line `i` of `count`, in order of importance: the first lines have colors, the
    others are quiet.
    """
    if i < len(theme.colors):
        return {"color": theme.colors[i], "label": name, "zorder": 3}
    remaining = count - len(theme.colors)
    named = {"label": f"{remaining} more"} if i == len(theme.colors) else {}
    return {"color": theme.quiet, "alpha": 0.7, "zorder": 1, **named}


def legend_below(figure: Figure, ax: Axes) -> None:
    """Add a legend for lines that were drawn in reverse order of importance."""
    handles, names = ax.get_legend_handles_labels()
    columns = 1 if max(map(len, names), default=0) > 24 else 2
    figure.legend(handles[::-1], names[::-1], loc="outside lower center", ncols=columns)


def render(
    plot: Callable[[Data, Theme], Figure], data: Data, theme: Theme, kind: str = "png"
) -> bytes:
    """The plot as a PNG, 960 pixels wide, or as a "pdf" or "svg"."""
    (content,) = render_as((kind,), plot, data, theme)
    return content


def render_as(
    kinds: Sequence[str], plot: Callable[[Data, Theme], Figure], data: Data, theme: Theme
) -> list[bytes]:
    """The same plot in several kinds, drawn once: see `render`."""
    look: dict[Any, Any] = {
        **{
            "font.size": 9,
            "axes.labelsize": 9,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8,
        },
        **{
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
        },
        **{
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
        },
        **{"axes.edgecolor": theme.quiet, "axes.spines.top": False, "axes.spines.right": False},
        **{
            "axes.grid": False,
            "grid.color": theme.grid,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
        },
        **{"text.parse_math": False},  # class names may contain a $
        # Fonts inside the file: TrueType in a pdf, since publishers refuse Type 3; outlines in an
        # svg, whose element names have the same salt in every process.
        **{"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "maskrcnn_lit"},
        **{
            "legend.frameon": False,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "axes.linewidth": 0.8,
        },
    }
    with rc_context(look):
        figure = plot(data, theme)
        fit_figure(figure)
        contents = []
        for kind in kinds:
            contents.append(_saved(figure, kind))
            figure.set_layout_engine("none")  # the next kind has the same layout
    return contents


def _saved(figure: Figure, kind: str) -> bytes:
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[
        kind
    ]
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=DPI, metadata=undated)
    return file.getvalue()
