"""A signal asks all processes of a run to stop after the same step."""

import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed
from lightning.pytorch import Trainer

from maskrcnn_lit.training.stop import MARGIN, SIGNALS, AgreedStep, StopRequest


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


class Freed:
    """Ctrl-C comes while it is freed, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_interrupts_at_once_or_after_the_next_step():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    request, alone = StopRequest(), cast(Trainer, SimpleNamespace(world_size=1))
    request.listen()
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
            signal.raise_signal(signal.SIGINT)
        request.received = None
        Freed()
        assert request.due(alone)
    finally:
        request.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_that_others_set_stay():
    request, before = StopRequest(), signal.getsignal(signal.SIGINT)
    request.listen()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        request.release()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("rounds", [1, 2])
def test_processes_agree_on_the_step(rounds: int):
    store = torch.distributed.HashStore()
    first, second = AgreedStep("key"), AgreedStep("key")
    for begin in (7, 207)[:rounds]:
        assert not first._agreed(begin, False, store)
        assert not second._agreed(begin + 1, False, store)
        assert not second._agreed(begin + 2, True, store)
        assert not first._agreed(begin + 1, True, store)  # both want it: the first wish counts
        due = [
            next(step for step in range(begin + 3, begin + 100) if own._agreed(step, False, store))
            for own in (first, second)
        ]
        assert due == [begin + 2 + MARGIN] * 2


def test_wishes_at_the_same_moment_give_one_step():
    """The second process has looked for a wish before the first one wrote its own."""
    store = torch.distributed.HashStore()
    first, second = AgreedStep("key"), AgreedStep("key")
    first._agreed(5, True, store)
    missed: Any = SimpleNamespace(check=lambda keys: False, compare_set=store.compare_set)
    second._agreed(6, True, missed)
    assert first._step == second._step == 5 + MARGIN
