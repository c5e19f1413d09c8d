"""Selects a font that has all characters of a text, in any script.

Pillow's font has only Latin letters; DejaVu Sans, which comes with matplotlib, has most alphabets;
for other scripts the installed fonts are searched. A character that no font has is written as an
escape (\\u732b), not as an empty box.
"""

import re
import unicodedata
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Unicode categories: control characters and spaces of all widths.
_BLANK = ("Cc", "Zs", "Zl", "Zp")

# Prefer the plain style of a family. Monospaced and serif fonts are the last choice.
_UNWANTED = re.compile(
    r"bold|black|heavy|light|thin|italic|oblique|condensed|mono|serif|emoji", re.I
)


def fitting_font(text: str, size: int) -> tuple[Font, str]:
    """A font of `size` pixels for `text`, and the text with undrawable characters replaced.

    Control characters become spaces; joiners and similar marks are left out if the font lacks them.
    Among fonts with all characters Pillow's comes first, then DejaVu Sans; if none has all, the
    font with most is used.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(c) in _BLANK else c for c in text)
    unseen = frozenset(filter(_is_unseen, text))
    file, missing = _choose(frozenset(text) - unseen - {" "})
    shown = {c: _escape(c) for c in missing} | dict.fromkeys(unseen - _letters_of(file, unseen), "")
    return _load(file, size), "".join(shown.get(c, c) for c in text)


def _is_unseen(letter: str) -> bool:
    """Whether `letter` is invisible: a joiner, a direction mark, a variation selector."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def fit_figure(figure: Figure) -> None:
    """Set fonts for texts of a plot with characters that DejaVu Sans lacks."""
    for ax in figure.axes:
        ax.get_xticklabels(), ax.get_yticklabels()  # this call creates them
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    letters = frozenset(
        c for text in texts for c in text.get_text() if c.isprintable() and not _is_unseen(c)
    )
    families = ["DejaVu Sans"]
    missing = letters - _letters_of(_dejavu(), letters)
    while missing:
        file, missing_here = _choose(missing)
        if file is None or missing_here == missing:
            break
        font_manager.fontManager.addfont(file)
        families.append(FT2Font(file).family_name)
        missing = missing_here
    for text in texts if len(families) > 1 else ():
        text.set_fontfamily(families)


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode()


@lru_cache(maxsize=1024)
def _choose(letters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """The file of the best font (None: Pillow's own), and the letters that it lacks."""
    best: tuple[str | None, frozenset[str]] = (None, letters - _letters_of(None, letters))
    if not best[1]:
        return best
    for file in [_dejavu(), *_installed()]:
        missing = letters - _letters_of(file, letters)
        if len(missing) < len(best[1]) and _loads(file):
            best = (file, missing)
        if not best[1]:
            break
    return best


def _dejavu() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _installed() -> list[str]:
    """The font files of this machine, plain sans-serif styles first."""
    files = font_manager.findSystemFonts()
    return sorted(files, key=lambda file: (bool(_UNWANTED.search(Path(file).stem)), file))


@lru_cache(maxsize=1)
def _of_pillow() -> frozenset[str]:
    """The letters that Pillow's own font has."""
    font = ImageFont.load_default(12)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType
        return frozenset(map(chr, range(32, 127)))
    return frozenset(map(chr, FT2Font(BytesIO(font.font_bytes)).get_charmap()))


def _letters_of(file: str | None, letters: frozenset[str]) -> frozenset[str]:
    """Those of `letters` that a font file has (None: Pillow's own); none if it cannot be read."""
    if file is None:
        return letters & _of_pillow()
    try:
        font = FT2Font(file)
        return frozenset(c for c in letters if font.get_char_index(ord(c)))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _loads(file: str) -> bool:
    """Whether Pillow can draw a font at any size; bitmap color fonts fail."""
    try:
        ImageFont.truetype(file, 12)
    except (OSError, ValueError):
        return False
    return True


@lru_cache(maxsize=64)
def _load(file: str | None, size: int) -> Font:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
