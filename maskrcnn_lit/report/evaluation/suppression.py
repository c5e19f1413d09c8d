"""The kinds of suppression that `evaluate nms=all` scored, as a table and a sentence.

A row has nms, agnostic_nms, exclusive, "own", "metrics" and "difference": launch/suppression.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SURE = 0.05  # a p-value below it is called a difference


def choice_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of text."""
    head = ["suppression", "mask AP", "box AP", "difference", "95 % interval", "p"]
    table = []
    for row in rows:
        scores = [row["metrics"][f"val/{kind}_ap"] for kind in ("mask", "box")]
        cells = [describe(row), *("-" if math.isnan(ap) else f"{ap:.3f}" for ap in scores)]
        if row["own"]:
            cells += ["the run's own", "", ""]
        elif math.isnan(scores[0]):  # no object has a mask
            cells += ["-", "-", "-"]
        else:
            low, high = row["difference"]["interval"]
            value, p = row["difference"]["value"], row["difference"]["p_value"]
            cells += [f"{value:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.3f}"]
        table.append(cells)
    return head, table


def describe(row: Mapping[str, Any]) -> str:
    """The options that make a choice, in words."""
    words = [str(row["nms"])]
    words += [name for name in ("agnostic_nms", "exclusive") if row[name]]
    return ", ".join(words)


def verdict(rows: Sequence[Row]) -> str:
    """Which choices are better than the run's own."""
    better = [
        describe(row)
        for row in rows
        if row["difference"] is not None
        and row["difference"]["value"] > 0
        and row["difference"]["p_value"] < SURE
    ]
    worse = sum(
        row["difference"] is not None
        and row["difference"]["value"] < 0
        and row["difference"]["p_value"] < SURE
        for row in rows
    )
    first = (
        f"Higher mask AP than the run's own with p < {SURE}: {'; '.join(better)}."
        if better
        else f"No choice has a higher mask AP than the run's own with p < {SURE}."
    )
    return f"{first} Lower with p < {SURE}: {worse} of {len(rows) - 1}."
