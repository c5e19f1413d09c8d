"""A search does every trial once, whatever is killed, and finds what it would have found."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import HELPERS
from tiny_commands import RESNET, coco_data, environment, printed_by, refused, result

from maskrcnn_lit.callbacks.prune import RUNGS, read_rungs
from maskrcnn_lit.launch.backends import Command
from maskrcnn_lit.launch.search import Driver
from maskrcnn_lit.launch.space import read_search
from maskrcnn_lit.launch.study import JOURNAL, Study, Trial
from maskrcnn_lit.launch.sweep_progress import SweepProgress
from maskrcnn_lit.runs.result import RunResult, write_result
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.sealed import read_sealed_json, write_sealed_json

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
    assert len(broken) == 14
    assert {state for _, state, _, _ in broken} == {"complete"}


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


def test_a_search_is_planned_before_it_runs(tmp_path: Path):
    printed = printed_by("train", "-m", *words(tmp_path, 7, "sweep.plan_only=true"))
    assert "tpe, 7 trials, 0 ended; goals val/mask_ap:max" in printed
    assert "optimizer.lr: 1e-05 to 0.1, logarithmic" in printed
    assert "backbone: resnet18, resnet34" in printed


def test_another_search_is_not_mixed_with_one_of_before(tmp_path: Path):
    write_sealed_json(tmp_path / "sweep.json", {"jobs": [], "search": {"method": "random"}})
    said = refused("train", "-m", *words(tmp_path, 7))
    assert "contains a search with another method (random; now tpe): give another sweep_dir" in said
    write_sealed_json(tmp_path / "sweep.json", {"jobs": []})
    assert "contains a sweep without a search" in refused("train", "-m", *words(tmp_path, 7))


def ended(driver: Driver, **outcomes: dict[str, Any]) -> list[str]:
    """Run a driver with jobs that write these results, in order of their trials: the names of the
    jobs that it started.
    """
    names = []

    def launch(commands: Iterable[Command]) -> Iterator[tuple[str, int]]:
        for command in commands:
            names.append(command.name)
            outcome = dict(outcomes[f"t{command.name[:3]}"])
            code = outcome.pop("code", 0)
            if outcome:
                file = driver.search.folder / command.name / "result.json"
                write_result(file, RunResult(**outcome))
            yield command.name, code

    driver.run(launch)
    return names


SCORED = {"status": "finished", "metrics": {"val/mask_ap": 0.5}, "cost": {"seconds": 1.0}}
FAILED = {"status": "failed", "error": "no such file", "code": 2}


def driver_of(folder: Path, trials: int, *more: str) -> Driver:
    overrides = [*words(folder, trials), "sweep.search=random", *more]
    return Driver(read_search(overrides), overrides)


def test_a_failed_trial_is_tried_once_more_by_the_same_command(tmp_path: Path):
    ended(driver_of(tmp_path, 3), t000=SCORED, t001=FAILED, t002=SCORED)
    again = driver_of(tmp_path, 3)
    assert len(ended(again, t003=SCORED)) == 1
    trials = again.study.trials()
    assert [trial.state for trial in trials] == ["complete", "failed", "complete", "complete"]
    assert trials[3].params == trials[1].params
    assert trials[3].retry_of == 1
    assert [job.name[:3] for job in again.counted_jobs()] == ["000", "002", "003"]
    assert ended(driver_of(tmp_path, 3)) == []


def test_more_trials_go_on(tmp_path: Path):
    ended(driver_of(tmp_path, 1), t000=SCORED)
    driver = driver_of(tmp_path, 3)
    assert [name[:3] for name in ended(driver, t001=SCORED, t002=SCORED)] == ["001", "002"]


def test_five_failures_in_a_row_end_the_search(tmp_path: Path):
    outcomes = {f"t{n:03d}": FAILED for n in range(9)}
    assert len(ended(driver_of(tmp_path, 9), **outcomes)) == 5


def test_a_killed_job_starts_again_and_at_last_has_failed(tmp_path: Path):
    driver = driver_of(tmp_path, 1)
    assert [name[:3] for name in ended(driver, t000={"code": -9})] == ["000"] * 3
    assert driver.study.trials()[0].state == "failed"


def test_a_run_without_a_goal_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ended(driver_of(tmp_path, 1, "sweep.goals=[val/mine:max]"), t000=SCORED)
    assert "it has no val/mine, but val/mask_ap" in capsys.readouterr().out


def test_a_pruned_run_is_no_failure(tmp_path: Path):
    driver = driver_of(tmp_path, 1)
    folder = next(driver._commands(SweepProgress([], Path, {}))).name
    write_json(tmp_path / folder / RUNGS, {"values": [[0.1], [0.2]]})
    again = driver_of(tmp_path, 1)
    ended(again, t000={"status": "pruned", "cost": {"seconds": 1.0}})
    (trial,) = again.study.trials()
    assert (trial.state, trial.validations) == ("pruned", [0.1, 0.2])
    described = read_sealed_json(tmp_path / "sweep.json")["search"]
    assert described["method"] == "random"
    assert described["trials"][0]["state"] == "running"
    again.write()
    assert read_sealed_json(tmp_path / "sweep.json")["search"]["trials"][0]["state"] == "pruned"


@pytest.mark.process
@pytest.mark.long
def test_real_jobs_are_pruned_and_reported(strange: Path, tmp_path: Path):
    """The second and third job of a rate near zero are pruned where one of two goes on."""
    command = (
        *("train", "-m", *coco_data(strange), *RESNET, "trainer.epochs=2"),
        *("optimizer.lr=4e-3,1e-7,1e-8", "sweep.search=grid", "sweep.prune=true"),
        *("sweep.prune_keep=2", "sweep.goals=[val/loss:min]", f"sweep_dir={tmp_path / 'search'}"),
    )
    printed = printed_by(*command)
    folders = sorted(path.parent for path in tmp_path.glob("search/*/result.json"))
    told = [result(folder) for folder in folders]
    assert [entry["status"] for entry in told] == ["finished", "pruned", "pruned"]
    assert "val/loss" in told[1]["metrics"]
    assert told[1]["cost"]["seconds"] > 0
    assert len(read_rungs(folders[0])) == 2
    assert len(read_rungs(folders[1])) == 1
    assert (
        "pruned after validation 1: 1 of 2 runs are better"
        in (tmp_path / "search" / "logs" / f"{folders[1].name}.txt").read_text()
    )
    assert "best of 1 finished trial:\n  val/loss" in printed
    report = (tmp_path / "search" / "report" / "report.md").read_text()
    assert "## Search" in report
    assert "2 trials ended early." in report
    assert "ended early by the search, since others were better" in report
    before = {folder: (folder / "result.json").stat().st_mtime_ns for folder in folders}
    printed_by(*command)
    assert before == {folder: (folder / "result.json").stat().st_mtime_ns for folder in folders}
