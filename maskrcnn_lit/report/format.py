"""How reports write numbers and counts."""

from collections.abc import Mapping
from typing import Any

Analysis = Mapping[str, Any]

# what the last curve, of all classes together, is called; a class may be called so too
POOLED = "all classes"


def number(value: float | None, digits: int = 3) -> str:
    """A number of the data as the page shows it; a dash where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
