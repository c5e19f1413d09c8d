from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_lit.data.coco.faults import BadEntryError, Fault, describe, whole


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_whole_numbers_pass(value: int):
    assert whole({"id": value}, "id") == value


def test_floats_without_a_fraction_are_whole():
    number = whole({"id": 3.0}, "id")
    assert number == 3 and isinstance(number, int)


@pytest.mark.parametrize(
    "value", ["7", None, 1.5, True, 2**63, -(2**63), 1e300, float("nan"), float("inf"), [1], {}]
)
def test_anything_else_is_a_fault_of_its_kind(value: Any):
    with pytest.raises(BadEntryError) as caught:
        whole({"id": value}, "id")
    assert caught.value.args == ("incomplete annotation", f"id is {value!r}, not a whole number")
    with pytest.raises(BadEntryError) as caught:
        whole({"file_name": "a.jpg", "height": value}, "height")
    assert caught.value.args == (
        "incomplete image entry",
        f"height is {value!r}, not a whole number",
    )
    with pytest.raises(BadEntryError, match="id is None"):
        whole({}, "id")


def test_faults_are_told_by_kind_with_the_first_few():
    faults = [Fault("missing file", f"{k}.jpg", None, "no such file") for k in range(5)]
    faults.insert(1, Fault("box without area", "a.jpg", 7, "bbox [0, 0, 0, 1]"))
    told = list(describe(faults, names=2))
    assert told == [
        "5 x missing file (0.jpg: no such file; 1.jpg: no such file; ...)",
        "1 x box without area (annotation 7 of a.jpg: bbox [0, 0, 0, 1])",
    ]
    assert "..." not in next(describe(faults, names=5)) and list(describe([])) == []
