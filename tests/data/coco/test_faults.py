import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_lit.data.coco.faults import (
    BadEntryError,
    Fault,
    describe,
    finite,
    flag,
    identifier,
    integer,
    shown,
)


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_whole_numbers_pass(value: int):
    assert integer({"id": value}, "id") == value


def test_floats_without_a_fraction_are_whole():
    number = integer({"id": 3.0}, "id")
    assert number == 3
    assert isinstance(number, int)


def test_whole_numbers_in_quotes_are_whole():
    assert integer({"id": " 7 "}, "id") == 7
    assert integer({"id": "-3"}, "id") == -3


@pytest.mark.parametrize(
    "value",
    ["7.5", "seven", None, 1.5, True, 2**63, -(2**63), 1e300, float("nan"), float("inf"), [1], {}],
)
def test_anything_else_is_a_fault_of_its_kind(value: Any):
    with pytest.raises(BadEntryError) as caught:
        integer({"id": value}, "id")
    assert caught.value.args == ("incomplete annotation", f"id is {value!r}, not a whole number")
    with pytest.raises(BadEntryError) as caught:
        integer({"file_name": "a.jpg", "height": value}, "height")
    assert caught.value.args == (
        "incomplete image entry",
        f"height is {value!r}, not a whole number",
    )
    with pytest.raises(BadEntryError, match="id is None"):
        integer({}, "id")


def test_an_id_is_a_number_or_text():
    assert [identifier({"id": value}, "id") for value in (3, "3", 3.0, "a3")] == [3, 3, 3, "a3"]
    for value in (None, "", True, [1], 2**63):
        with pytest.raises(BadEntryError):
            identifier({"id": value}, "id")


def test_finite_numbers():
    assert [finite(value) for value in (1, 2.5, "3.5", -1e300)] == [1, 2.5, 3.5, -1e300]
    bad = (True, None, [1], "x", "nan", math.inf, 10**400, {})
    assert [finite(value) for value in bad] == [None] * len(bad)


def test_flags():
    assert [flag({"a": value}, "a") for value in (None, 0, "0", "False", "", 0.0)] == [False] * 6
    assert [flag({"a": value}, "a") for value in (1, "1", "TRUE", True)] == [True] * 4
    assert not flag({}, "a")
    for value in (2, "maybe", [], [1], math.nan, 10**400):
        with pytest.raises(BadEntryError, match="neither 0 nor 1"):
            flag({"a": value}, "a")


def test_any_value_of_a_file_can_be_shown():
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, 10**4000, "\ud800", {"\ud800": 1}, "x" * 10**6, [1.5] * 10**6):
        text = shown(value)
        assert len(text) < 200
        assert text.encode()
    assert shown([1, 2.5]) == "[1, 2.5]"


def test_faults_are_told_by_kind_with_the_first_few():
    faults = [Fault("missing file", f"{k}.jpg", None, "no such file") for k in range(5)]
    faults.insert(1, Fault("box without area", "a.jpg", 7, "bbox [0, 0, 0, 1]"))
    told = list(describe(faults, names=2))
    assert told == [
        "5 x missing file (0.jpg: no such file; 1.jpg: no such file; ...)",
        "1 x box without area (annotation 7 of a.jpg: bbox [0, 0, 0, 1])",
    ]
    assert "..." not in next(describe(faults, names=5))
    assert list(describe([])) == []
