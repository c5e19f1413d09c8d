"""A search does every trial once, whatever is killed, and finds what it would have found."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import HELPERS
from tiny_commands import environment

from maskrcnn_lit.launch.space import read_search
from maskrcnn_lit.launch.study import JOURNAL, Study, Trial

pytest_plugins = ("tiny_commands",)

SPACE = ("optimizer.lr=log(1e-5,1e-1)", "backbone=resnet18,resnet34")


def words(folder: Path, trials: int, *more: str) -> list[str]:
    return [*SPACE, "sweep.search=tpe", f"sweep.trials={trials}", f"sweep_dir={folder}", *more]


def started(seconds: float, overrides: list[str]) -> subprocess.Popen[str]:
    """A search of fake jobs in a process group of its own."""
    script = [sys.executable, str(HELPERS / "fake_search.py"), str(seconds), *overrides]
    return subprocess.Popen(
        script, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def trials_of(overrides: list[str]) -> list[Trial]:
    search = read_search(overrides)
    study = Study(search.folder, search.space, search.goals, search.method, search.options.seed)
    return study.trials()


def found(overrides: list[str]) -> list[tuple[object, ...]]:
    return [(t.name, t.state, t.params, t.values) for t in trials_of(overrides)]


def kill_and_go_on(
    seconds: float, trials: int, kills: int, folder: Path
) -> tuple[list[tuple[object, ...]], int]:
    """The trials of a search that is killed at random moments, and in how many of the kills it was
    at work. Every other kill spares the job, which goes on.
    """
    rng, overrides, at_work = random.Random(0), words(folder, trials), 0
    for kill in range(kills):
        driver = started(seconds, overrides)
        assert driver.stdout is not None
        driver.stdout.readline()  # it has read the study
        time.sleep(rng.uniform(0, 2.5 * seconds))
        at_work += driver.poll() is None
        if kill % 2:
            driver.kill()
        else:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        driver.stdout.close()
    assert started(seconds, overrides).wait() == 0
    return found(overrides), at_work


def unbroken(seconds: float, trials: int, folder: Path) -> list[tuple[object, ...]]:
    assert started(seconds, words(folder, trials)).wait() == 0
    return found(words(folder, trials))


@pytest.mark.process
def test_a_search_killed_three_times_tries_the_same(tmp_path: Path):
    broken, at_work = kill_and_go_on(0.2, 14, 3, tmp_path / "broken")
    assert at_work == 3
    assert broken == unbroken(0.0, 14, tmp_path / "unbroken")
    assert len(broken) == 14 and {state for _, state, _, _ in broken} == {"complete"}


@pytest.mark.slow
@pytest.mark.process
def test_a_search_killed_twenty_times_tries_the_same(tmp_path: Path):
    broken, at_work = kill_and_go_on(1.0, 30, 20, tmp_path / "broken")
    assert at_work == 20
    assert broken == unbroken(0.0, 30, tmp_path / "unbroken")
    assert len(broken) == 30


def test_a_line_that_was_cut_off_is_no_end(tmp_path: Path):
    overrides = words(tmp_path, 5)
    search = read_search(overrides)
    study = Study(tmp_path, search.space, search.goals, "tpe", 1)
    params = study.suggest()
    assert params is not None
    study.end(study.add("0", params), "complete", [0.5])
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"op_code":4,"worker')
    again = Study(tmp_path, search.space, search.goals, "tpe", 1)
    again.add("1", params)
    assert [trial.state for trial in trials_of(overrides)] == ["complete", "running"]
