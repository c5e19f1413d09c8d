"""Renders the templates of the pages (templates/*.html). jinja2 escapes every text that comes in,
and a value that a template names and nobody gives is an error; nothing is loaded from elsewhere.
"""

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from maskrcnn_lit.report.format import number


def render_page(template: str, **values: Any) -> str:
    """A whole page as HTML; `template` is the name of its file."""
    return environment().get_template(template).render(**values)


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": number, "data_url": data_url}
    made.globals["sides"] = sides
    return made


def sides(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The class of each column of a table: "text" for one with a text in it, "" for numbers and for
    the first column, which names the rows.
    """
    if not rows:
        return [""] * len(head)
    columns = list(zip(head, *rows, strict=True))[1:]
    return ["", *("text" if any(map(_is_text, cells)) else "" for _, *cells in columns)]


def data_url(image: bytes, kind: str) -> str:
    """`image`, a file of this kind (png, jpeg), as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _is_text(cell: str) -> bool:
    """Whether a cell is text: not empty, not a dash, not a number with optional interval or
    unit.
    """
    return re.match(r"[-+\d(]|$", cell) is None
