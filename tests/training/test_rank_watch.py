"""Two processes that talk by gloo, of which one stands still: both end, and one sentence says
which.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from maskrcnn_lit.training.rank_watch import (
    EXIT_CODE,
    RankWatch,
    State,
    Stillness,
    position,
    sentence,
)

# Forked from a process that has imported Lightning once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["maskrcnn_lit.training.rank_watch"])

LIMIT = 1.5  # seconds
PATIENT = 5.0  # seconds; a busy machine may halt a process for longer than LIMIT


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def meet() -> None:
    dist.all_reduce(torch.zeros(1))


def live(rank: int, port: int, out: str, name: str, limit: float) -> None:
    """One of two processes: the function `name` of this module, watched."""
    torch.set_num_threads(1)
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)

    def told(text: str) -> None:
        with open(out, "a") as file:
            file.write(f"{text}\n")

    watch = RankWatch(limit / 60, told)
    trainer: Any = SimpleNamespace(world_size=2, global_rank=rank)
    module: Any = None
    watch.setup(trainer, module, "fit")
    try:
        globals()[name](watch, rank)
    except RuntimeError as error:
        watch.on_exception(trainer, module, error)
        raise
    watch.teardown(trainer, module, "fit")
    dist.barrier()


def run(name: str, folder: Path, limit: float = LIMIT) -> tuple[list[int | None], list[str]]:
    """Exit codes of two processes (None: one has not ended), and what the watch said."""
    out = folder / "said.txt"
    out.touch()
    port = free_port()
    running = []
    for rank in (0, 1):
        arguments = (rank, port, str(out), name, limit)
        running.append(PROCESSES.Process(target=live, args=arguments))
        running[-1].start()
    running[0].join(timeout=60)
    running[1].join(timeout=10 if name != "stops" else 0.1)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    return codes, out.read_text().splitlines()


def three_steps(watch: RankWatch) -> None:
    for _ in range(3):
        watch.on_train_batch_end()
        meet()


def sleeps(watch: RankWatch, rank: int) -> None:
    three_steps(watch)
    if rank == 1:
        time.sleep(99)
    meet()


def spins(watch: RankWatch, rank: int) -> None:
    three_steps(watch)
    while rank == 1:
        pass
    meet()


def stops(watch: RankWatch, rank: int) -> None:
    three_steps(watch)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    meet()


class Sleeping(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> int:
        time.sleep(99)
        return i


def loads(watch: RankWatch, rank: int) -> None:
    three_steps(watch)
    if rank == 1:
        next(iter(DataLoader(Sleeping(), num_workers=1, multiprocessing_context="fork")))
    meet()


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("sleeps", "in sleeps"),
        ("spins", "in spins"),
        ("stops", ""),
        ("loads", "it waits for the data loader"),
    ],
)
def test_one_stands_still_and_the_others_wait(name: str, where: str, tmp_path: Path):
    codes, (said,) = run(name, tmp_path)
    assert codes[0] == EXIT_CODE, said
    assert codes[1] == (None if name == "stops" else EXIT_CODE), "that is for its launcher to kill"
    assert said.startswith(f"process 1 of 2 on {socket.gethostname()} has not moved for 1.5 s (")
    assert "and the others wait for it, so all have been ended" in said
    assert where in said


def waits_for_the_other(watch: RankWatch, rank: int) -> None:
    three_steps(watch)
    dist.recv(torch.zeros(1), src=1 - rank)


@pytest.mark.process
def test_two_that_wait_for_each_other(tmp_path: Path):
    codes, (said,) = run("waits_for_the_other", tmp_path)
    assert codes == [EXIT_CODE, EXIT_CODE]
    assert said.startswith("processes 0, 1 of 2")


def scores(watch: RankWatch, rank: int) -> None:
    three_steps(watch)
    watch.on_train_epoch_end()
    begun = time.monotonic()
    while rank == 0 and time.monotonic() - begun < 1.5 * PATIENT:
        sum(range(1000))
    meet()


def is_slow(watch: RankWatch, rank: int) -> None:
    for _ in range(3):
        time.sleep(0.4 * PATIENT * rank)
        watch.on_train_batch_end()
    meet()


def waits_for_another_run(watch: RankWatch, rank: int) -> None:
    for _ in range(15):
        time.sleep(0.1 * PATIENT)
        watch.moved()
    meet()


@pytest.mark.process
@pytest.mark.parametrize("name", ["scores", "is_slow", "waits_for_another_run"])
def test_work_is_no_standing_still(name: str, tmp_path: Path):
    """One scores for all between the batches, or has slower steps, or both wait for another run:
    for longer than the limit.
    """
    assert run(name, tmp_path, PATIENT) == ([0, 0], [])


def state(steps: int = 0, *, ticks: int = 0, done: bool = False, wait: int = 0) -> State:
    return State(steps, ticks, done, wait, "a.py:1 in f", "host")


def judged(*states: State, ticking: bool = True) -> list[int]:
    """Of processes that have been so for 4 s, with a limit of 3."""
    still = Stillness(len(states))
    for second in range(5):
        ticks = second if ticking else 0
        still.note({n: one._replace(ticks=ticks) for n, one in enumerate(states)}, 1.0)
    return still.judge(3.0)


def test_whoever_is_not_waiting_is_waited_for():
    assert judged(state(4, wait=2), state(3), state(3, wait=2)) == [1]
    assert judged(state(4, wait=2), state(3, wait=2)) == [1], "the one that is behind"
    assert judged(state(4, wait=1), state(4, wait=2)) == [0], "one is in the backward pass"
    assert judged(state(4), state(4)) == [0, 1]
    assert judged(state(4), state(4, done=True)) == [0]
    assert judged(state(4), state(4), ticking=False) == [0, 1]


def test_still_time_counts_from_the_last_step():
    still = Stillness(2)
    for second in range(6):
        still.note({0: state(second, ticks=second), 1: state(ticks=second, wait=2)}, 1.0)
        assert still.judge(3.0) == [], "one waits, and the other gets on"
    for second in range(6, 12):
        still.note({0: state(5, ticks=second), 1: state(ticks=second, wait=2)}, 1.0)
        assert still.judge(3.0) == ([0] if second > 8 else [])


def test_the_sentence_names_all_of_them():
    states = {0: state(), 1: state(), 2: state(wait=2)}
    said = sentence([0, 1], states, 5)
    assert said.startswith("processes 0, 1 of 3 on host have not moved for 5 minutes (a.py:1 in f)")


def test_a_position_is_that_of_the_innermost_frame():
    wait, where = position(sys._getframe())
    assert wait == 0
    assert where.startswith(f"{Path(__file__).name}:")
    assert where.endswith("in test_a_position_is_that_of_the_innermost_frame")
    assert position(None) == (0, "unknown")
