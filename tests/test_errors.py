import math
import pickle

import pytest

from maskrcnn_lit.errors import UserError, check_whole, check_within


def test_it_comes_back_from_another_process_as_it_was():
    """Loader processes pickle what they raise."""
    again = pickle.loads(pickle.dumps(UserError("image 7 is missing: mend it")))
    assert type(again) is UserError and str(again) == "image 7 is missing: mend it"


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3", math.nan])
def test_what_is_no_whole_number_is_named(value: object):
    with pytest.raises(
        UserError, match=f"data.batch_size={value} must be a whole number, 1 or more"
    ):
        check_whole(1, data__batch_size=value)
    check_whole(0, a=0, b=7)


@pytest.mark.parametrize("value", [-0.1, 1.1, None, "0.5", math.nan, math.inf])
def test_what_lies_outside_is_named(value: object):
    with pytest.raises(UserError, match=f"model.rpn.nms_iou={value} must be a number from 0 to 1"):
        check_within(0, 1, model__rpn__nms_iou=value)
    check_within(0, 1, a=0, b=0.5, c=1)
    with pytest.raises(UserError, match="a=-1 must be a number of at least 0"):
        check_within(0, math.inf, a=-1)
