"""LaTeX tables for a paper, and its references."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

REFERENCES = Path(__file__).with_name("references.bib")

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "²": r"$^2$",
    "±": r"$\pm$",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex_table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """A `table` with the lines of the package booktabs: the first `left` columns to the left, the
    others to the right. Missing numbers are dashes. bold: (row, column) of cells, from 0.
    """

    def cell(text: str, place: tuple[int, int]) -> str:
        shown = "--" if text == "-" else escape(text)
        return rf"\textbf{{{shown}}}" if place in bold else shown

    lines = [
        " & ".join(cell(text, (i, j)) for j, text in enumerate(row)) + r" \\"
        for i, row in enumerate(rows)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(head) - left)}}}",
            r"\toprule",
            " & ".join(escape(title) for title in head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Escape text for LaTeX."""
    return re.sub(r"[\\~^²±|<>&%$#_{}]", lambda match: _SPECIAL[match[0]], text)
