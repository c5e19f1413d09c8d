"""Handles signals that schedulers send before their time limit: the run saves a checkpoint and ends
as if interrupted, with the command to resume it.

Ctrl-C interrupts at once. Python drops an exception that a signal raises inside a destructor or a
callback of C code; then the run ends like that after its next step.
"""

import signal
import threading
from types import FrameType
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

# Steps from the request of one process to the step at which all act. It must exceed the number of
# steps that one process may be ahead of another.
MARGIN = 20


class AgreedStep:
    """A step at which all processes of a run do something that one of them wants.

    key: of torch's store, by which they agree; they agree on one step after the other.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._round = 0
        self._step: int | None = None

    def due(self, trainer: Trainer, wanted: bool) -> bool:
        """Whether it is due after this optimizer step, the same in all processes; `wanted`: whether
        this process wants it.
        """
        if trainer.world_size == 1:
            return wanted
        store = dist.distributed_c10d._get_default_store()
        return self._agreed(trainer.global_step, wanted, store)

    def _agreed(self, step: int, wanted: bool, store: dist.Store) -> bool:
        key = f"{self.key}/{self._round}"
        if self._step is None and (wanted or store.check([key])):
            # The first process that wants it sets the step, and all others read it.
            self._step = int(store.compare_set(key, "", str(step + MARGIN)))
        due = self._step is not None and step >= self._step
        if due:
            self._step, self._round = None, self._round + 1
        return due


class StopRequest:
    """Whether a signal has asked the run to stop, in any of its processes."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._agreed = AgreedStep("maskrcnn_lit/stop_at_step")
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the signal handlers; Python allows this only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)

    def release(self) -> None:
        """Restore the signal handlers from before `listen`, but those that others have set since:
        Lightning ignores Ctrl-C while it ends an interrupted run.
        """
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self._handlers = {}

    def due(self, trainer: Trainer) -> bool:
        """Whether the run shall stop after this optimizer step: the same in all processes."""
        return self._agreed.due(trainer, self.received is not None)

    def interrupt(self) -> None:
        """End the run."""
        name = "a signal" if self.received is None else signal.Signals(self.received).name
        raise KeyboardInterrupt(f"stopped by {name}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            self.interrupt()
