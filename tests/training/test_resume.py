"""A run that was killed at any moment ends, once resumed, bit for bit where the unbroken run
ends.
"""

import csv
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import main

from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.training.checkpoint_files import load_plain

pytestmark = pytest.mark.process

# Each run is a process of its own, forked from one that has imported Lightning once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["maskrcnn_lit.training.trainer"])


def launch(run_dir: Path, *options: str) -> int:
    """Exit code of tiny_run.py."""
    process = PROCESSES.Process(target=main, args=([str(run_dir), *options],))
    process.start()
    process.join(timeout=600)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"{run_dir} {options} hangs")
    return process.exitcode


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b, where


def rows(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv without what is measured by the clock."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))}
            for row in csv.DictReader(file)
        ]


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("speed/", "memory/"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same_run(unbroken: Path, resumed: Path) -> None:
    """Weights, optimizer, schedule, loops, meters and best score; best.ckpt; metrics.csv;
    TensorBoard's curves.
    """
    for name in ("last", "best"):
        a, b = (
            load_plain(folder / "checkpoints" / f"{name}.ckpt") for folder in (unbroken, resumed)
        )
        assert b["spent"].pop("seconds") > 0
        assert a["spent"].pop("seconds") > 0  # what no two runs share
        assert_same(a, b, name)
    assert rows(unbroken) == rows(resumed)
    assert curves(unbroken) == curves(resumed)
    assert not list((resumed / "checkpoints").glob(".*"))  # nothing half-written is left


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: Any) -> dict[tuple[int, int], Path]:
    """(workers, accumulate) -> its run: 3 epochs of 7 batches."""
    made = {}
    for workers, accumulate in ((0, 1), (1, 1), (0, 2)):
        made[workers, accumulate] = tmp_path_factory.mktemp("unbroken")
        options = ("--workers", str(workers), "--accumulate", str(accumulate))
        assert launch(made[workers, accumulate], *options) == 0
    return made


# step:N: after N batches. save:N, saved:N: in the Nth save, before or right after the file gets its
# name. The saves are last (3 steps), last (6), best and last (7, end of the first epoch), last (9),
# last (12), best and last (14), ...
KILLS = {
    (0, 1): (
        "step:1",
        "step:4",
        "step:7",
        "step:13",
        "step:20",
        *("save:1", "save:2", "save:4", "save:7"),
    ),
    (1, 1): ("step:5", "step:7", "save:2", "saved:3"),
    # 4 steps an epoch: last (3 steps, 6 batches), best and last (4, 7), last (6, 11), best and last
    # (8, 14), ...
    (0, 2): ("step:8", "step:12", "step:13", "saved:1", "saved:3"),
}
CASES = [
    (workers, accumulate, kill) for (workers, accumulate), kills in KILLS.items() for kill in kills
]
CASES += [(0, 1, kill) for kill in ("saved:1", "saved:3", "saved:4", "saved:6", "saved:8")]


@pytest.mark.parametrize(("workers", "accumulate", "kill"), CASES)
def test_killed_and_resumed(
    unbroken: dict[tuple[int, int], Path], tmp_path: Path, workers: int, accumulate: int, kill: str
):
    options = ("--workers", str(workers), "--accumulate", str(accumulate))
    assert launch(tmp_path, *options, "--kill", kill) == -signal.SIGKILL
    if kill == "save:1":
        assert last_checkpoint(tmp_path) is None  # half-written, and not taken for one
        assert (tmp_path / "checkpoints" / ".last.ckpt.partial").exists()
    assert launch(tmp_path, *options, "--resume") == 0
    assert_same_run(unbroken[workers, accumulate], tmp_path)


def test_killed_again_and_again(unbroken: dict[tuple[int, int], Path], tmp_path: Path):
    for number in (4, 8, 11, 16):  # each time further than the last checkpoint
        assert launch(tmp_path, "--resume", "--kill", f"step:{number}") == -signal.SIGKILL
    assert launch(tmp_path, "--resume") == 0
    assert_same_run(unbroken[0, 1], tmp_path)


def test_workers_do_not_change_the_run(unbroken: dict[tuple[int, int], Path]):
    assert_same_run(unbroken[0, 1], unbroken[1, 1])
    with pytest.raises(AssertionError):  # and the comparison sees a difference where there is one
        assert_same_run(unbroken[0, 1], unbroken[0, 2])
