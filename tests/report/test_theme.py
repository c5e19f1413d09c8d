"""The look of the plots: its size, its colors, and that it stays with them."""

import io
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from maskrcnn_lit.report.theme import (
    DARK,
    LIGHT,
    Analysis,
    Theme,
    axes,
    legend_below,
    line_style,
    render,
    render_as,
)

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def line(analysis: Analysis, theme: Theme) -> Figure:
    figure, place = axes(4, "x", "y")
    place.plot([0, 1], [0, 1], color=theme.colors[0])
    return figure


@THEMES
def test_a_plot_is_a_png_on_the_paper_of_its_theme(theme: Theme):
    before = dict(matplotlib.rcParams)
    picture = Image.open(io.BytesIO(render(line, {}, theme))).convert("RGB")
    assert picture.width == 960
    assert picture.height == round((4 * 0.19 + 0.7) * 200)
    assert picture.getpixel((0, 0)) == tuple(
        round(255 * channel) for channel in to_rgb(theme.paper)
    )
    assert dict(matplotlib.rcParams) == before


def test_of_many_lines_the_first_have_a_color_and_the_rest_one_name():
    count = len(LIGHT.colors) + 3
    styles = [line_style(i, count, f"line {i}", LIGHT) for i in range(count)]
    assert [style["color"] for style in styles] == [*LIGHT.colors, *[LIGHT.quiet] * 3]
    names = [style.get("label") for style in styles]
    assert names == [*(f"line {i}" for i in range(len(LIGHT.colors))), "3 more", None, None]


@pytest.mark.parametrize(("name", "columns"), [("short", 2), ("a name that is rather long", 1)])
def test_the_legend_names_the_most_important_line_first(name: str, columns: int):
    figure, place = axes(4, "x", "y")
    for i in (1, 0):  # drawn last, it lies over the others
        place.plot([0, 1], [0, i], **line_style(i, 2, f"{name} {i}", LIGHT))
    legend_below(figure, place)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{name} 0",
        f"{name} 1",
    ]
    assert legend._ncols == columns


def luminance(color: str) -> float:
    """WCAG 2.2, "relative luminance"."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], channels))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@THEMES
def test_text_and_lines_can_be_seen(theme: Theme):
    assert contrast(theme.ink, theme.paper) > 7  # WCAG 2.2, 1.4.6
    assert min(contrast(color, theme.paper) for color in theme.colors[:3]) > 3  # 1.4.11


# Viénot, Brettel and Mollon (1999): what who lacks one kind of cones sees, in linear RGB
PROTAN = np.array([[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.004, -0.004, 1.0]])
DEUTAN = np.array([[0.2928, 0.7072, 0.0], [0.2928, 0.7072, 0.0], [-0.0223, 0.0223, 1.0]])


def seen(colors: tuple[str, ...]) -> Iterator[np.ndarray]:
    linear = np.array([to_rgb(color) for color in colors]) ** 2.2
    for matrix in (np.eye(3), PROTAN, DEUTAN):
        yield (linear @ matrix.T).clip(0, 1) ** (1 / 2.2)


@THEMES
def test_the_color_blind_can_tell_the_colors_apart(theme: Theme):
    for points in seen(theme.colors):
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2)[
            np.triu_indices(len(points), 1)
        ]
        assert gaps.min() > 0.12


@THEMES
def test_a_cell_without_a_number_is_paper(theme: Theme):
    for value in (np.nan, 0.0):
        assert theme.shades(np.ma.masked_invalid([value]))[0, :3] == pytest.approx(
            to_rgb(theme.paper)
        )


def test_files_for_papers_have_their_fonts_inside():
    def plot(name: str, theme: Theme) -> Figure:
        figure, ax = axes(5, name, "")
        ax.plot([0, 1])
        return figure

    pdf, svg = render_as(("pdf", "svg"), plot, "a title", LIGHT)
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf.replace(b" ", b"")
    assert b"<text" not in svg
    assert b"font-family" not in svg
    assert render_as(("pdf", "svg"), plot, "a title", LIGHT) == [pdf, svg]
