"""A signal asks all processes of a run to stop after the same step."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from maskrcnn_lit.training.stop import MARGIN, SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_given_back(number: signal.Signals):
    before = signal.getsignal(number)
    request: Any = StopRequest()
    alone: Any = SimpleNamespace(world_size=1, global_step=3)
    request.listen()
    try:
        assert not request.due(alone)
        os.kill(os.getpid(), number)
        assert request.due(alone)
        with pytest.raises(KeyboardInterrupt, match=number.name):
            request.interrupt()
    finally:
        request.release()
    assert signal.getsignal(number) == before


def test_processes_agree_on_the_step():
    values: dict[str, bytes] = {}

    def agreed(request: StopRequest, step: int) -> bool:
        store: Any = (
            lambda keys: all(key in values for key in keys),
            values.__getitem__,
            lambda key, text: values.update({key: text.encode()}),
        )
        return request._agreed(step, *store)

    first, second = StopRequest(), StopRequest()
    assert not agreed(first, 7)
    assert not agreed(second, 8)
    second.received = signal.SIGTERM
    assert not agreed(second, 9)
    stops = [
        next(step for step in range(7, 100) if agreed(request, step)) for request in (first, second)
    ]
    assert stops == [9 + MARGIN, 9 + MARGIN]
