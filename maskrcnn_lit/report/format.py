"""How reports write numbers and counts."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Analysis = Mapping[str, Any]

# what the last curve, of all classes together, is called; a class may be called so too
POOLED = "all classes"


def number(value: float | None, digits: int = 3) -> str:
    """A number of the data as the page shows it; a dash where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def csv_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a column for each name that a row has; empty where there is no value."""
    text = io.StringIO(newline="")
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
