import logging
import threading
import time
from collections.abc import Iterator

import pytest

from maskrcnn_lit.storage.read_ahead import read_ahead


class Counted:
    """Counts to `last`, and notes how far it came and in which thread it was closed."""

    def __init__(self, last: int, fault: Exception | None = None) -> None:
        self.last, self.fault, self.made = last, fault, 0
        self.closed_in: list[str] = []

    def items(self) -> Iterator[int]:
        try:
            for number in range(self.last):
                self.made = number + 1
                yield number
            if self.fault:
                raise self.fault
        finally:
            self.closed_in.append(threading.current_thread().name)


def wait_for(condition) -> None:
    ends = time.monotonic() + 5
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()


def test_items_come_in_order_and_a_few_are_made_ahead():
    counted = Counted(100)
    ahead = read_ahead(counted.items(), 4)
    assert next(ahead) == 0
    wait_for(lambda: counted.made == 6)  # one given, four waiting, one in hand
    time.sleep(0.3)
    assert counted.made == 6
    assert list(ahead) == list(range(1, 100))
    assert counted.closed_in == ["read_ahead"]


def test_an_error_comes_after_the_items_before_it():
    counted = Counted(3, ValueError("broken"))
    items = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(counted.items(), 4):
            items.append(item)
    assert items == [0, 1, 2]


def test_closing_ends_the_thread():
    counted = Counted(1000)
    ahead = read_ahead(counted.items(), 4)
    next(ahead)
    ahead.close()
    assert counted.closed_in == ["read_ahead"]
    assert counted.made < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


def test_of_what_does_not_wait_the_newest_stay(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    counted = Counted(100)
    ahead = read_ahead(counted.items(), 4, newest=True)
    first = next(ahead)
    wait_for(lambda: counted.made == 100)
    time.sleep(0.1)
    rest = list(ahead)
    assert rest == sorted(rest)
    assert rest[-1] == 99
    assert len(rest) <= 4
    missing = 100 - 1 - len(rest)
    assert first == 0 or missing
    assert f"{missing} frames were dropped: the model is slower" in caplog.text
