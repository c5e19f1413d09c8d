"""Formats numbers for reports."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Analysis = Mapping[str, Any]

# the name of the last curve, of all classes pooled; a class may have the same name
POOLED = "all classes"


def number(value: float | None, digits: int = 3) -> str:
    """A number as the page shows it; a dash for None."""
    if value is None or value != value:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def csv_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table with a column for each name in any row; missing values are empty."""
    text = io.StringIO(newline="")
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
