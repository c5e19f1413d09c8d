"""Handles signals that schedulers send before their time limit: the run saves a checkpoint and ends
as if interrupted, with the command to resume it.
"""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

# Steps between the signal and the checkpoint for several processes. It must exceed the number of
# steps that one process may be ahead of another.
MARGIN = 20

_KEY = "maskrcnn_lit/stop_at_step"


class StopRequest:
    """Whether a signal has asked the run to stop, in any of its processes."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._step: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the signal handlers; Python allows this only in the main thread."""
        for number in SIGNALS:
            try:
                self._handlers[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                return

    def release(self) -> None:
        """Restore the signal handlers from before `listen`."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def due(self, trainer: Trainer) -> bool:
        """Whether the run shall stop after this optimizer step: the same in all processes."""
        if trainer.world_size == 1:
            return self.received is not None
        store = dist.distributed_c10d._get_default_store()
        return self._agreed(trainer.global_step, store.check, store.get, store.set)

    def _agreed(
        self,
        step: int,
        check: Callable[[list[str]], bool],
        get: Callable[[str], bytes],
        put: Callable[[str, str], None],
    ) -> bool:
        if self._step is None and check([_KEY]):
            self._step = int(get(_KEY))
        elif self._step is None and self.received is not None:
            put(_KEY, str(step + MARGIN))
            self._step = int(get(_KEY))  # for requests in two processes, the later step
        return self._step is not None and step >= self._step

    def interrupt(self) -> None:
        """End the run."""
        name = "a signal" if self.received is None else signal.Signals(self.received).name
        raise KeyboardInterrupt(f"stopped by {name}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
