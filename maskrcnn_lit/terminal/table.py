"""Plain text tables with aligned columns, for the terminal and for log files, by rich."""

import io
import os
from collections.abc import Collection, Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns that a text at least gets before it is broken into lines.
_NARROWEST = 12


def text_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Collection[int] = (0,),
    gap: int = 2,
    indent: int = 0,
    width: int | None = None,
) -> list[str]:
    """Lines of a table without borders, escape codes or trailing spaces.

    Args:
        head: may be empty; a cell may have several lines. rows: a short one is filled up.
        text: positions of the columns of text, aligned to the left; the others are numbers.
        gap: spaces between columns. indent: spaces before each line.
        width: columns of the terminal. A table that is wider has the cells of its text columns
            broken into lines, but for those of the first column, which name the rows, where there
            are others; numbers are never cut or broken. None: as wide as it needs to be.
    """
    if not rows and not head:
        return []
    count = max(map(len, [head, *rows]))
    natural = [
        max((cell_len(line) for row in (head, *rows) for line in _lines(row, i)), default=0)
        for i in range(count)
    ]
    needed = sum(natural) + gap * (count - 1)
    broken = {i for i in text if i > 0} or set(text)
    if width is not None and needed > width - indent:
        least = [min(n, _NARROWEST) if i in broken else n for i, n in enumerate(natural)]
        needed = max(width - indent, sum(least) + gap * (count - 1))
    table = Table(box=None, show_header=bool(head), padding=(0, gap, 0, 0), pad_edge=False)
    for i in range(count):
        table.add_column(
            Text(head[i] if i < len(head) else ""),
            justify="left" if i in text else "right",
            vertical="top",
            no_wrap=i not in broken,
            overflow="fold",
            min_width=None if i in broken else natural[i],
        )
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    _plain(out, needed).print(table)
    return [f"{' ' * indent}{line}".rstrip() for line in out.getvalue().splitlines()]


def columns(out: TextIO) -> int | None:
    """Of the terminal that `out` writes to; None for a file or a pipe."""
    if not out.isatty():
        return None
    if (given := os.environ.get("COLUMNS", "")).isdecimal():
        return int(given) or 80
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _lines(row: Sequence[str], i: int) -> list[str]:
    return row[i].split("\n") if i < len(row) else []


def _plain(out: TextIO, width: int) -> Console:
    """Writes text of at most `width` columns, whatever the environment says."""
    return Console(
        file=out,
        width=max(width, 1),
        height=25,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
        emoji=False,
        markup=False,
        highlight=False,
    )
