import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_lit.data.coco.parse import Entries, NoObjectError, members

SPACE = st.text(" \t\n\r", max_size=2)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
)
VALUES = st.recursive(
    LEAVES,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["annotations", "images", "", 'é\n"', "annotations "]) | st.text(max_size=3)


@st.composite
def objects(draw: st.DrawFn) -> str:
    """The text of an object: any white space, keys more than once, often an array under the
    streamed key.
    """
    pairs = draw(
        st.lists(
            st.tuples(KEYS, VALUES)
            | st.tuples(st.just("annotations"), st.lists(VALUES, max_size=4)),
            max_size=5,
        )
    )
    dumped = [f"{_pad(draw, json.dumps(key))}:{_written(draw, value)}" for key, value in pairs]
    return _pad(draw, "{" + (",".join(dumped) or draw(SPACE)) + "}")


def _pad(draw: st.DrawFn, text: str) -> str:
    return draw(SPACE) + text + draw(SPACE)


def _written(draw: st.DrawFn, value: Any) -> str:
    if isinstance(value, list):
        return _pad(
            draw, "[" + (",".join(_written(draw, item) for item in value) or draw(SPACE)) + "]"
        )
    return _pad(
        draw,
        json.dumps(
            value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
        ),
    )


def read(text: str, at_once: bool = True) -> dict[str, Any]:
    """What `members` gives, as one dict; arrays of the streamed key read when they come, or at the
    end.
    """
    found = {}
    for key, value in members(text, "annotations"):
        found[key] = list(value) if at_once and isinstance(value, Entries) else value
    return {
        key: list(value) if isinstance(value, Entries) else value for key, value in found.items()
    }


@pytest.mark.long
@given(objects(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_members_are_those_of_json_loads(text: str, at_once: bool):
    assert read(text, at_once) == json.loads(text)


@given(st.lists(VALUES, max_size=4), st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_an_array_may_be_read_in_part_and_again(values: list[Any], part: int):
    text = json.dumps({"annotations": values, "b": 1})
    walk = members(text, "annotations")
    _, entries = next(walk)
    assert list(islice(entries, part)) == values[:part]
    assert list(walk) == [("b", 1)]
    assert list(entries) == values == list(entries)


def refused(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return True
    return False


def assert_alike(text: str) -> None:
    """Refused where json.loads refuses, else read as it reads."""
    if refused(text):
        for at_once in (True, False):
            with pytest.raises(json.JSONDecodeError):
                read(text, at_once)
    else:
        try:
            found = read(text)
        except NoObjectError as error:
            found = error.value
        assert found == json.loads(text)


@pytest.mark.long
@given(objects(), st.data())
@settings(max_examples=200, deadline=None)
def test_damage_is_refused_where_json_loads_refuses_it(text: str, data: st.DataObject):
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(begin + 2, len(text))))
    instead = data.draw(
        st.sampled_from(
            ["", ",", ":", "]", "}", "{", "[", '"', "1", "x", "\\", "\v", "\ufeff", "\x00"]
        )
    )
    assert_alike(text[:begin] + instead + text[end:])


def test_a_file_cut_anywhere_is_refused():
    text = ' {"images": [1, {"a": 2}], "annotations": [{"id": 1}, [2], "x"], "n": "é"}'
    for end in range(len(text)):
        with pytest.raises(json.JSONDecodeError):
            read(text[:end])
    assert read(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"annotations": [1 2]}',
        '{"annotations": [1,]}',
        '{"annotations": [,1]}',
        '{"annotations": [1}',
        '{"annotations": [1],}',
        '{"annotations": [1] "a": 2}',
        '{"annotations" [1]}',
        "{annotations: [1]}",
        "{1: [1]}",
        "{[]: 1}",
        '{"annotations": [1]} x',
        '{"annotations": [1]}{}',
        "{} {}",
        '{"annotations": }',
        '\ufeff{"annotations": [1]}',
        '{"annotations": ["\n"]}',
    ],
)
def test_each_kind_of_damage_is_refused(text: str):
    assert refused(text)
    assert_alike(text)


def test_numbers_that_json_has_not_pass_as_json_passes_them():
    text = '{"annotations": [NaN, Infinity, -Infinity], "a": NaN}'
    assert repr(read(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["[]", ' [{"a": 1}]', "1", '"a"', "null", "NaN"])
def test_another_value_than_an_object_is_told_as_such(text: str):
    with pytest.raises(NoObjectError) as caught:
        read(text)
    assert repr(caught.value.value) == repr(json.loads(text))


def test_entries_are_parsed_one_by_one():
    """Those before the damage are there before it is met."""
    seen = []
    with pytest.raises(json.JSONDecodeError):
        for _, entries in members('{"annotations": [1, [2], x]}', "annotations"):
            for entry in entries:
                seen.append(entry)
    assert seen == [1, [2]]
