"""A terminal as a stream: what a person would see after the escape codes that were written."""

import io
import re

_PIECE = re.compile(r"(\x1b\[\??(\d*)([A-Za-z]))|(.)", re.DOTALL)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return visible(self.getvalue())


def visible(text: str) -> list[str]:
    """The lines of a terminal after `text`, without those that are empty at the end. Understands
    carriage return, line feed, cursor up (A), erase line (K), erase below (J), and the cursor's
    visibility (l, h); anything else is an error.
    """
    lines, row, column = [""], 0, 0
    for code, count, kind, character in _PIECE.findall(text):
        if code:
            row = _obey(lines, row, column, int(count or 0), kind)
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif character == "\x1b":
            raise ValueError("unknown escape code")
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]


def _obey(lines: list[str], row: int, column: int, count: int, kind: str) -> int:
    """Do what an escape code says; the row of the cursor after it."""
    if kind == "A":
        return max(0, row - max(count, 1))
    if kind == "K":
        lines[row] = "" if count == 2 else lines[row][:column]
    elif kind == "J":
        lines[row:] = [lines[row][:column]]
    elif kind not in "lh":
        raise ValueError(f"unknown escape code {count}{kind}")
    return row
