import pytest

from maskrcnn_lit.config.durations import duration, seconds
from maskrcnn_lit.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90min", 5400),
        ("3h", 10_800),
        ("1d12h", 129_600),
        ("1h30min5s", 5405),
        ("45s", 45),
        ("00:11:30:00", 41_400),
        ("100:00:00:01", 8_640_001),
    ],
)
def test_a_duration_in_seconds(text: str, expected: int):
    assert seconds(text, "trainer.max_time") == expected


@pytest.mark.parametrize(
    "text", ["", "0s", "3", "3 h", "-1h", "30min2h", "1.5h", "11:30:00", "9" * 20 + "d", "h"]
)
def test_what_is_no_duration(text: str):
    with pytest.raises(UserError, match=r"trainer.max_time=.* must be a duration such as 90min"):
        seconds(text, "trainer.max_time")


def test_durations_as_one_says_them():
    told = [duration(seconds) for seconds in (40, 700, 5340, 12000, 190000)]
    assert told == ["40 s", "12 min", "89 min", "3 h 20 min", "2 d 4 h"]
