"""A font for every script: letters are drawn, escaped where no font has them, and never a box."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from maskrcnn_lit.report import fonts
from maskrcnn_lit.report.draw import draw_instances
from maskrcnn_lit.report.fonts import fitting_font
from maskrcnn_lit.report.theme import LIGHT, Theme, axes, render

CAT = "猫"


def write_font(path: Path, letters: str) -> str:
    """A font file in which each letter is a triangle, and what it lacks is a square."""
    names = {letter: f"letter{i}" for i, letter in enumerate(letters)}
    glyphs = {}
    for name in (".notdef", *names.values()):
        pen = TTGlyphPen(None)
        corners = (
            [(50, 0), (450, 700), (850, 0)]
            if name != ".notdef"
            else [(0, 0), (0, 800), (800, 800), (800, 0)]
        )
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The font files that this machine seems to have: none at first."""
    files: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))
    fonts._choose.cache_clear()
    yield files
    fonts._choose.cache_clear()


def is_a_box(letter: str, font: fonts.Font) -> bool:
    """Whether a font draws a letter as it draws what no font has."""
    return bytes(font.getmask(letter)) == bytes(font.getmask("\U0010fffe"))


def test_latin_keeps_pillows_own_font(machine: list[str]):
    font, text = fitting_font("cat (crowd) 0.98", 20)
    assert text == "cat (crowd) 0.98"
    assert font.getname()[0] != "DejaVu Sans"
    assert font.size == 20


@pytest.mark.parametrize("name", ["кошка", "γάτα", "قطة", "חתול", "café", "kačka", "🐱"])
def test_alphabets_have_a_font_on_every_machine(name: str, machine: list[str]):
    font, text = fitting_font(f"{name} 0.98", 20)
    assert text == f"{name} 0.98"
    assert font.getname()[0] == "DejaVu Sans"
    assert not any(is_a_box(letter, font) for letter in name)


def test_another_script_is_drawn_with_a_font_of_the_machine(machine: list[str], tmp_path: Path):
    digits = "0123456789. "
    machine += [
        write_font(tmp_path / "A-Latin.ttf", "abc" + digits),
        write_font(tmp_path / "B-Bold.ttf", CAT + digits),
        write_font(tmp_path / "Chinese.ttf", CAT + digits),
    ]
    font, text = fitting_font(f"{CAT} 0.98", 20)
    assert (font.getname()[0], text) == ("Chinese", f"{CAT} 0.98")
    assert not is_a_box(CAT, font)


def test_a_letter_that_no_font_has_is_escaped(machine: list[str], tmp_path: Path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    machine += [str(tmp_path / "broken.ttf"), str(tmp_path / "missing.ttf")]
    assert fitting_font(f"{CAT} 0.98", 20)[1] == "\\u732b 0.98"
    font, text = fitting_font(f"кот {CAT}", 20)
    assert (font.getname()[0], text) == ("DejaVu Sans", "кот \\u732b")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\nb\tc", "a b c"),
        ("a\u3000b\u00a0c", "a b c"),
        ("\ud800x", "\\ud800x"),  # half of a surrogate pair, which json may hold
        ("x\ufe0f\u200dy", "xy"),
        ("cafe\u0301", "café"),
        ("\u092c\u094d", "\\u092c\\u094d"),
        ("", ""),
    ],
)
def test_what_cannot_be_drawn_is_replaced(given: str, shown: str, machine: list[str]):
    assert fitting_font(given, 20)[1] == shown


@pytest.mark.parametrize("name", [CAT, "\ud800", "a\nb", "\u200d", "कुत्ता"])
def test_no_name_of_a_class_stops_drawing(name: str, machine: list[str]):
    image = np.full((300, 400, 3), 90, np.uint8)
    picture = draw_instances(image, boxes=np.array([[50, 100, 200, 200]]), masks=[], names=[name])
    assert picture.shape == image.shape


def test_a_label_is_the_letter_and_not_a_box(machine: list[str], tmp_path: Path):
    image = np.full((600, 800, 3), 90, np.uint8)
    box = {"boxes": np.array([[200, 150, 500, 450]]), "masks": []}
    escaped = draw_instances(image, **box, names=[CAT])
    machine.append(write_font(tmp_path / "Chinese.ttf", CAT))
    fonts._choose.cache_clear()
    drawn = draw_instances(image, **box, names=[CAT])
    # a triangle covers half of its width: more ink at its foot than at its top
    ink = (drawn[120:150, 190:240] < 40).all(-1)
    rows = np.flatnonzero(ink.any(1))
    assert ink[rows[-2]].sum() > 3 * ink[rows[1]].sum()
    assert not np.array_equal(drawn, escaped)


def plot_of(name: str) -> bytes:
    def plot(data: str, theme: Theme) -> Figure:
        figure, ax = axes(4, "share", "class")
        ax.set_yticks([0, 1], [data, "cat"])
        ax.set_title(f"AP of {data}")
        return figure

    return render(plot, name, LIGHT)


def test_plots_have_the_letters_too(
    machine: list[str], tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    machine.append(write_font(tmp_path / "Chinese.ttf", CAT))
    known = list(font_manager.fontManager.ttflist)
    try:
        with_letters = plot_of(CAT)
    finally:
        font_manager.fontManager.ttflist[:] = known
    assert not [w for w in recwarn if "missing from" in str(w.message)]
    machine.clear()
    fonts._choose.cache_clear()
    without = plot_of(CAT)
    assert [w for w in recwarn if "missing from" in str(w.message)]
    assert with_letters != without


def test_plots_in_letters_of_dejavu_search_no_fonts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fonts, "_installed", lambda: pytest.fail("fonts were searched"))
    assert plot_of("café кот")
