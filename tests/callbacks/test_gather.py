"""Processes that talk by gloo: what they share, and that none hangs when one fails."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_commands import environment

from maskrcnn_lit.callbacks.gather import gather_and_combine, publish_failure, raise_remote_failure
from maskrcnn_lit.errors import UserError

pytest_plugins = ("tiny_commands",)
pytestmark = pytest.mark.process

HERE = Path(__file__).resolve().parent

# {body} is one process; what it raises, and for how long it lived, goes into a file.
SCRIPT = """
import json, os, sys, time
from datetime import timedelta
import torch.distributed as dist
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.callbacks.gather import raise_remote_failure, publish_failure, gather_and_combine

rank, world, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{{port}}", rank=rank, world_size=world,
    timeout=timedelta(seconds=60),
)
started, said = time.monotonic(), None
try:
{body}
except Exception as error:
    try:
        raise_remote_failure(error)
        publish_failure(error)
    except Exception as other:
        error = other
    said = [type(error).__name__, str(error)]
with open(f"{{out}}/{{rank}}.json", "w") as file:
    json.dump([said, time.monotonic() - started], file)
"""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def run(body: str, world: int, folder: Path) -> list[list[Any]]:
    """What each process said, [kind of error, message] or None, and its seconds."""
    script = SCRIPT.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    arguments = [str(world), str(free_port()), str(folder)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), *arguments], env=environment(), cwd=HERE
        )
        for rank in range(world)
    ]
    try:
        for process in running:
            process.wait(timeout=120)
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def test_all_get_what_the_first_makes_of_all(tmp_path: Path) -> None:
    body = """
for turn in range(3):
    made = gather_and_combine(f"turn {turn}", rank + 10 * turn, lambda gathered: (rank, gathered))
    assert made == (0, [r + 10 * turn for r in range(world)]), made
"""
    assert [said for said, _ in run(body, 3, tmp_path)] == [None] * 3


@pytest.mark.parametrize(("failing", "kind"), [(0, "UserError"), (2, "ValueError")])
def test_one_that_fails_before_they_meet_ends_all(failing: int, kind: str, tmp_path: Path) -> None:
    body = f"""
if rank == {failing}:
    raise {kind}("no such picture")
gather_and_combine("turn", rank, len)
"""
    found = run(body, 3, tmp_path)
    told = "no such picture" if kind == "UserError" else "ValueError: no such picture"
    for rank, (said, seconds) in enumerate(found):
        if rank == failing:
            assert said == [kind, "no such picture"]
        else:
            assert said == [
                "UserError" if kind == "UserError" else "RuntimeError",
                f"process {failing} failed: {told}",
            ]
        assert seconds < 25  # nobody waits for the limit of 60 s, nor process 0 for its 30 s


def test_a_failure_of_the_first_in_scoring_ends_all(tmp_path: Path) -> None:
    body = """
def combine(gathered):
    raise UserError("the disk is full")
gather_and_combine("turn", rank, combine)
"""
    found = [said for said, _ in run(body, 3, tmp_path)]
    assert (
        found
        == [["UserError", "the disk is full"]]
        + [["UserError", "process 0 failed: the disk is full"]] * 2
    )


def test_one_that_fails_while_others_are_in_a_collective_ends_all(tmp_path: Path) -> None:
    """As in a validation in which DDP sends buffers: the others wait for it where no look into the
    store is.
    """
    body = """
if rank == 1:
    time.sleep(1)
    raise ValueError("no such picture")
dist.barrier()
"""
    first, _ = run(body + "\n", 2, tmp_path)
    assert first[0] == ["RuntimeError", "process 1 failed: ValueError: no such picture"]
    assert first[1] < 25


def test_one_that_is_killed_is_not_waited_for_without_end(tmp_path: Path) -> None:
    body = """
if rank == 1:
    with open(f"{out}/1.json", "w") as file:
        json.dump([["killed", ""], 0], file)
    os._exit(9)
try:
    gather_and_combine("turn", rank, len, wait_seconds=1)
except RuntimeError as error:
    said = ["RuntimeError", str(error)]
"""
    (said, seconds), _ = run(body, 2, tmp_path)
    assert said[0] == "RuntimeError"
    assert 1 <= seconds < 25
    assert said[1].startswith(
        "process 0 waited 1 s for all 2 processes in 'turn': one was killed (out of memory?)"
    )


def test_alone_nothing_is_sent(tmp_path: Path) -> None:
    assert gather_and_combine("turn", 7, lambda gathered: gathered) == [7]
    started = time.monotonic()
    publish_failure(UserError("no such picture"))
    raise_remote_failure()
    assert time.monotonic() - started < 5
