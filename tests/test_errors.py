import math
import pickle
import re

import pytest

from maskrcnn_lit.errors import (
    UserError,
    check_choice,
    check_flag,
    check_list,
    check_text,
    check_whole,
    check_within,
    plural,
)


def test_it_comes_back_from_another_process_as_it_was():
    """Loader processes pickle what they raise."""
    again = pickle.loads(pickle.dumps(UserError("image 7 is missing: fix it")))
    assert type(again) is UserError
    assert str(again) == "image 7 is missing: fix it"


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3", math.nan])
def test_what_is_no_whole_number_is_named(value: object):
    with pytest.raises(
        UserError, match=f"data.batch_size={value} must be a whole number, 1 or more"
    ):
        check_whole(1, data__batch_size=value)
    check_whole(0, a=0, b=7)
    check_whole(0, 7, a=0, b=7)
    with pytest.raises(UserError, match="a=8 must be a whole number, 7 or less"):
        check_whole(0, 7, a=8)


@pytest.mark.parametrize("value", [-0.1, 1.1, True, None, "0.5", [0.5], math.nan, math.inf])
def test_what_lies_outside_is_named(value: object):
    with pytest.raises(
        UserError, match=re.escape(f"model.rpn.nms_iou={value} must be a number from 0 to 1")
    ):
        check_within(0, 1, model__rpn__nms_iou=value)
    check_within(0, 1, a=0, b=0.5, c=1)
    with pytest.raises(UserError, match="a=-1 must be a number of at least 0"):
        check_within(0, math.inf, a=-1)


@pytest.mark.parametrize(
    "value", [[], [1], [1, 2, 3], [1, math.nan], [1, True], [1, "2"], [0, 1], "12", 1, None, {1: 2}]
)
def test_a_list_of_another_length_or_kind_is_named(value: object):
    with pytest.raises(
        UserError, match=re.escape(f"a.b={value} must be a list of 2 numbers from 1")
    ):
        check_list(1, 5, 2, a__b=value)
    check_list(1, 5, 2, a=[1, 5], b=(1.5, 2))


def test_a_list_of_any_length_is_not_empty():
    check_list(0, 1, a=[0.5], b=[0.5] * 9)
    with pytest.raises(
        UserError, match=r"a=\[\] must be a list of one or more numbers from 0 to 1"
    ):
        check_list(0, 1, a=[])


@pytest.mark.parametrize("value", [0, 1, None, "true", [True], math.nan])
def test_what_is_not_a_flag_a_choice_or_text_is_named(value: object):
    with pytest.raises(UserError, match=re.escape(f"a={value} must be true or false")):
        check_flag(a=value)
    with pytest.raises(UserError, match=re.escape(f"a={value} must be one of on, off")):
        check_choice(("on", "off"), a=value)
    if value is not None and value != "true":
        with pytest.raises(UserError, match=re.escape(f"a={value} must be text")):
            check_text(a=value)
    check_flag(a=True, b=False)
    check_choice(("on", "off"), a="on")
    check_choice(("on", "off"), True, a=None)
    with pytest.raises(UserError, match="a=auto must be null or one of on, off"):
        check_choice(("on", "off"), True, a="auto")
    check_text(a=None, b="file")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1234, "1,234 images")]
)
def test_one_of_something_is_singular(count: int, text: str):
    assert plural(count, "image") == text


def test_a_plural_may_be_given():
    assert plural(1, "category", "categories") == "1 category"
    assert plural(2, "category", "categories") == "2 categories"
