"""Ends a run of several processes when one of them has stalled: the others would wait for it
forever.

In each process a thread watches the main thread and publishes in the store of the process group
whether it makes progress and, if not, where it is. If a process has stalled for too long, all end,
with one sentence that names the process the others wait for.
"""

import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

POLLS = 20  # number of polls within the time limit
LONGEST_POLL = 2.0  # seconds
LEAVE_SECONDS = 3 * LONGEST_POLL  # for the others to notice
CPU_SHARE = 0.05  # share of a core above which a process counts as working between batches

EXIT_CODE = 2

# Innermost code of a main thread that waits for other processes.
WAITS = ("torch.distributed", "torch.nn.parallel.distributed", "maskrcnn_lit.callbacks.gather")
BACKWARD = "torch.autograd.graph"  # computes, or waits for gradients of other processes

VERDICT, LEAVING = "maskrcnn_lit/stalled", "maskrcnn_lit/leaving"


class State(NamedTuple):
    """The published state of a process.

    Attributes:
        steps: number of steps so far; ticks: number of polls; done: it is no longer watched.
        wait: 0 working, 1 in the backward pass, 2 waiting for other processes. where: its innermost
            code, "file.py:12 in function". host: its machine.
    """

    steps: int
    ticks: int
    done: bool
    wait: int
    where: str
    host: str


class RankWatch(Callback):
    """Ends a run of several processes when one of them has stalled for `minutes`.

    Every batch counts as progress. Between batches (the first one, scores, checkpoints) CPU time
    counts, too, since one process may work there for all.

    Args:
        minutes: above 0; None: no watching.
        on_stall: called with the sentence, in one process, which then ends like the others.
    """

    def __init__(self, minutes: float | None, on_stall: Callable[[str], None]) -> None:
        self.minutes = minutes
        self.on_stall = on_stall
        self._count = 0
        self._in_batches = False
        self._rounds = 0
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._leaving = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.minutes is None or trainer.world_size == 1:
            return
        self._rounds += 1
        self._in_batches = False
        self._stop = threading.Event()
        main = threading.main_thread().ident or 0
        store = torch.distributed.distributed_c10d._get_default_store().clone()
        keys = [f"maskrcnn_lit/watch{self._rounds}/{rank}" for rank in range(trainer.world_size)]
        own = keys[trainer.global_rank]
        store.set(own, json.dumps(State(0, 0, False, 0, "the start", socket.gethostname())))
        arguments = (store, own, keys, main, self._stop)
        self._thread = threading.Thread(target=self._watch, args=arguments, daemon=True)
        self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._thread is not None and self._leaving.is_set():
            self._thread.join()  # another process left first, which is not an error of this one
        self._end()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._count += 1

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._count += 1
        self._in_batches = True  # the first batch may compile, or fill caches

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._between()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._count += 1
        self._in_batches = True

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._count += 1

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._between()

    def moved(self) -> None:
        """Count progress that is neither a batch nor CPU time, as that of another run."""
        self._count += 1

    def _between(self) -> None:
        self._count += 1
        self._in_batches = False

    def _end(self) -> None:
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _watch(
        self, store: Any, own: str, keys: list[str], main: int, stop: threading.Event
    ) -> None:
        """The thread's loop, until `stop` or the end of all processes."""
        limit = 60 * (self.minutes or 0)
        poll = min(LONGEST_POLL, limit / POLLS)
        still = Stillness(len(keys))
        ticks, cpu, host = 0, time.process_time(), socket.gethostname()
        try:
            while True:
                done = stop.wait(poll)
                now, ticks = time.process_time(), ticks + 1
                if not self._in_batches and now - cpu > CPU_SHARE * poll:
                    self._count += 1
                cpu = now
                wait, where = position(sys._current_frames().get(main))
                state = State(self._count, ticks, done, wait, where, host)
                store.set(own, json.dumps(state))
                if done:
                    return
                if store.add(VERDICT, 0) > 0:
                    self._leave(store, len(keys))
                states = {
                    other: State(*json.loads(store.get(key)))
                    for other, key in enumerate(keys)
                    if store.check([key])
                }
                still.note(states, poll)
                ranks = still.judge(limit)
                if ranks:
                    self._judge(store, ranks, still.states)
        except torch.distributed.DistError:  # the process with the store has ended
            return

    def _judge(self, store: Any, ranks: list[int], states: Mapping[int, State]) -> None:
        """Report the stalled processes, from one process only, and end."""
        try:
            if store.add(VERDICT, 1) == 1:
                self.on_stall(sentence(ranks, states, self.minutes or 0))
        finally:
            self._leave(store, len(states))

    def _leave(self, store: Any, world: int) -> None:
        """End after all responsive processes have arrived here: a process waiting for an ended one
        would fail with a traceback.
        """
        self._leaving.set()
        deadline = time.monotonic() + LEAVE_SECONDS
        try:
            store.add(LEAVING, 1)
            while store.add(LEAVING, 0) < world and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:  # even if the process with the store has ended
            _exit()


class Stillness:
    """The seconds without progress of each process, as seen by this process. Time while this
    process itself is suspended (Ctrl-Z, for example) does not count.
    """

    def __init__(self, world: int) -> None:
        """Start with `world` processes without a published state."""
        self._steps = dict.fromkeys(range(world), 0.0)
        self._ticks = dict.fromkeys(range(world), 0.0)
        self.states = dict.fromkeys(range(world), State(0, 0, False, 0, "unknown", "unknown"))

    def note(self, states: Mapping[int, State], seconds: float) -> None:
        """Add the published `states`, `seconds` after the last ones."""
        for rank in self._steps:
            before = self.states[rank]
            now = states.get(rank, before)
            same = now.steps == before.steps and not now.done
            self._steps[rank] = self._steps[rank] + seconds if same else 0.0
            same = now.ticks == before.ticks and not now.done
            self._ticks[rank] = self._ticks[rank] + seconds if same else 0.0
        self.states.update(states)

    def judge(self, limit: float) -> list[int]:
        """The processes that the others wait for, if one has stalled for `limit` seconds."""
        frozen = [rank for rank, seconds in self._ticks.items() if seconds > limit]
        if frozen:  # even its watch thread makes no progress
            return frozen
        alive = [rank for rank, state in self.states.items() if not state.done]
        still = [rank for rank in alive if self._steps[rank] > limit]
        busy = [rank for rank in still if self.states[rank].wait == 0]
        if not busy and (not still or len(still) < len(alive)):
            return []  # a waiting process is stalled only if no process makes progress
        least = min(self.states[rank].wait for rank in still)
        candidates = [rank for rank in still if self.states[rank].wait == least]
        behind = min(self.states[rank].steps for rank in candidates)
        return [rank for rank in candidates if self.states[rank].steps == behind]


def sentence(ranks: list[int], states: Mapping[int, State], minutes: float) -> str:
    """The message: which processes stalled, where, and for how long."""
    limit = f"{minutes:g} minutes" if minutes >= 1 else f"{60 * minutes:.3g} s"
    names = ", ".join(map(str, ranks))
    hosts = ", ".join(sorted({states[rank].host for rank in ranks}))
    where = ", ".join(sorted({states[rank].where for rank in ranks}))
    subject = f"process {names} of {len(states)} on {hosts} has"
    if len(ranks) > 1:
        subject = f"processes {names} of {len(states)} on {hosts} have"
    all_ = len(ranks) == len(states)
    reason = "each waits for another" if all_ else "the others wait for it"
    return (
        f"{subject} not moved for {limit} ({where}) and {reason}, so all have been ended "
        "(trainer.rank_timeout_minutes sets the limit)"
    )


def position(frame: FrameType | None) -> tuple[int, str]:
    """`State.wait` and `State.where` of a main thread, from its innermost frame."""
    if frame is None:
        return 0, "unknown"
    frames: list[FrameType] = []
    inner: FrameType | None = frame
    while inner is not None:
        frames.append(inner)
        inner = inner.f_back
    modules = [str(each.f_globals.get("__name__", "")) for each in frames]
    if any(module.startswith("torch.utils.data") for module in modules):
        return 0, "it waits for the data loader"
    near = modules[:4]
    where = (
        f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
    )
    if any(module.startswith(WAITS) for module in near):
        return 2, where
    return int(BACKWARD in near), where


def _exit() -> None:
    """End this process at once: its main thread may never come back. Its loader processes end
    too.
    """
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)
