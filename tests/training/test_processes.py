"""Several processes of a run: each has the config and the folder of the first, and they end
together.
"""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_commands import environment

from maskrcnn_lit.training.processes import broadcast_from_rank_zero

pytest_plugins = ("tiny_commands",)


def without_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)  # of a cluster's node that runs this test


def test_alone(monkeypatch: pytest.MonkeyPatch):
    without_launcher(monkeypatch)
    assert broadcast_from_rank_zero(lambda: "made") == "made"


MEET = """
import os, sys, time
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.processes import broadcast_from_rank_zero, meet
rank, task = int(os.environ["SLURM_PROCID"]), sys.argv[1]
try:
    if task == "late" and rank == 1:
        time.sleep(1)
    if task == "long":
        made = broadcast_from_rank_zero(lambda: time.sleep(4) or "made by 0", 0.05, long=True)
    else:
        made = broadcast_from_rank_zero(lambda: "made by 0", 0.5 if task == "late" else 0.05)
    if task == "stuck" and rank == 1:
        time.sleep(30)
    meet("training", 0.05)
    meet("training", None)
    print(rank, made, flush=True)
except UserError as error:
    print(rank, error, flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(task: str, *ranks: int, world: int) -> dict[int, str]:
    """What each of `ranks` prints, of a run of `world` processes. The first one, which serves what
    they share, ends last.
    """
    port, processes = free_port(), {}
    for rank in ranks:
        told = {"NTASKS": world, "NNODES": 1, "NTASKS_PER_NODE": world, "PROCID": rank}
        slurm = {f"SLURM_{name}": str(value) for name, value in told.items()}
        slurm |= {"SLURM_LOCALID": str(rank), "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes[rank] = subprocess.Popen(
            [sys.executable, "-c", MEET, task],
            env=environment(**slurm, **address),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    if task == "stuck":
        said = {0: processes[0].communicate(timeout=300)[0]}
        processes[1].kill()
    else:
        said = {rank: processes[rank].communicate(timeout=300)[0] for rank in reversed(ranks)}
    for process in processes.values():
        process.wait()
    return {rank: text.strip().partition(" ")[2] for rank, text in said.items()}


@pytest.mark.process
@pytest.mark.long
def test_all_that_come_in_time_go_on_with_what_the_first_made():
    assert started("late", 0, 1, world=2) == {0: "made by 0", 1: "made by 0"}


@pytest.mark.process
@pytest.mark.long
def test_the_others_wait_for_what_takes_long():
    """Four seconds, with a limit of three."""
    assert started("long", 0, 1, world=2) == {0: "made by 0", 1: "made by 0"}


LIMIT = "within 3 s, and the others wait for it, so all end: look at its machine and its output"


@pytest.mark.process
@pytest.mark.long
def test_a_process_that_never_comes_is_named():
    with ThreadPoolExecutor() as pool:  # both wait at the same time
        one, two = pool.map(lambda world: started("never", 0, world=world)[0], (2, 3))
    assert one.startswith(f"process 1 of 2 has not come {LIMIT}")
    assert two.startswith(f"processes 1, 2 of 3 have not come {LIMIT}")


@pytest.mark.process
@pytest.mark.long
def test_a_first_process_that_never_comes_is_named():
    assert started("never", 1, world=2)[1].startswith(f"process 0 of 2 does not answer {LIMIT}")


@pytest.mark.process
@pytest.mark.long
def test_a_process_that_stands_still_before_the_training_is_named():
    begun = time.monotonic()
    said = started("stuck", 0, 1, world=2)
    assert said[0].startswith(f"process 1 of 2 has not come {LIMIT}")
    assert time.monotonic() - begun < 60
