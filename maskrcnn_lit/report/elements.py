"""HTML elements of a page: tables, figures, sections. Text is escaped here; nothing is loaded from
elsewhere.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css")


def page(title: str, body: Iterable[str]) -> str:
    """A complete page. Its content security policy forbids loading external content."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text()}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    return (
        '<ul class="sentences">\n'
        + "\n".join(f"<li>{escape(text)}</li>" for text in texts)
        + "\n</ul>"
    )


def group(*parts: str) -> str:
    return "<div>\n" + "\n".join(parts) + "\n</div>"


def pair(*parts: str) -> str:
    """Elements side by side if there is room."""
    return '<div class="pair">\n' + "\n".join(parts) + "\n</div>"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table whose first cells are row headers. Numeric columns are right-aligned, others
    left-aligned; with `kind` "told" the last column contains long texts. A wide table scrolls by
    itself.
    """
    lists = [list(row) for row in rows]
    sides = [
        "text" if any(_is_text(cell) for cell in column) else ""
        for column in zip(*lists, strict=True)
    ]
    sides = ["", *sides[1:]] if sides else [""] * len(head)
    titles = "".join(
        f'<th scope="col"{_class(side)}>{escape(title)}</th>'
        for title, side in zip(head, sides, strict=bool(head))
    )
    lines = [
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f"<td{_class(side)}>{escape(cell)}</td>"
            for cell, side in zip(cells, sides[1:], strict=True)
        )
        + "</tr>"
        for first, *cells in lists
    ]
    return (
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}">\n<table{_class(kind)}>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody>\n</table>\n</div>"
    )


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Tiles with large numbers: (label, number, a note or ""); a long note makes a wide tile."""
    return (
        '<dl class="tiles">\n'
        + "\n".join(
            f"<div{_class('wide' if len(note) > 40 else '')}>"
            f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
            + (f'<dd class="note">{escape(note)}</dd>' if note else "")
            + "</div>"
            for label, value, note in entries
        )
        + "\n</dl>"
    )


def plot(light: bytes, dark: bytes, text: str, caption: str) -> str:
    """A PNG for paper and light screens and one for dark ones; `text` is the alternative text."""
    images = "".join(
        f'<img class="{kind}" alt="{escape(text)}" src="{_data(image, "png")}">'
        for kind, image in (("light", light), ("dark", dark))
    )
    return f"<figure>{images}<figcaption>{escape(caption)}</figcaption></figure>"


def photo(jpeg: bytes, width: int, height: int, text: str, caption: str) -> str:
    size = f'width="{width}" height="{height}"'
    image = f'<img {size} alt="{escape(text)}" src="{_data(jpeg, "jpeg")}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _is_text(cell: str) -> bool:
    """Whether a cell is text: not empty, not a dash, not a number with optional interval or
    unit.
    """
    return re.match(r"[-+\d(]|$", cell) is None


def _data(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
