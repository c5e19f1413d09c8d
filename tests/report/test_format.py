"""How reports write numbers and counts."""

import math

import pytest

from maskrcnn_lit.report.format import csv_rows, number


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (math.nan, "-"), (0.12345, "0.123"), (1.0, "1.000"), (1234, "1,234"), (0, "0")],
)
def test_how_a_number_is_written(value: float | None, text: str):
    assert number(value) == text


def test_rows_as_csv():
    rows = [{"class": "a, b", "AP": 0.5}, {"class": "c", "AP": None, "F1": 1}]
    assert csv_rows(rows) == 'class,AP,F1\n"a, b",0.5,\nc,,1\n'
