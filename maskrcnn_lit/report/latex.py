"""LaTeX tables for a paper, and its references."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

REFERENCES = Path(__file__).with_name("references.bib")

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "²": r"$^2$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A `table` with the lines of the package booktabs: the first column to the left, the others to
    the right. Missing numbers are dashes.
    """
    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
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
    return re.sub(r"[\\~^²&%$#_{}]", lambda match: _SPECIAL[match[0]], text)
