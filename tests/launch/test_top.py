"""What `maskrcnn-lit top` shows of the folder of a sweep, without a training."""

import csv
import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from screen import Screen

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch import top
from maskrcnn_lit.launch.top import Job, Score, Sweep, View, read_scores, remaining, text, watch
from maskrcnn_lit.runs.result import RunResult, write_result
from maskrcnn_lit.storage.files import locked
from maskrcnn_lit.storage.sealed import write_sealed_json

LINE = (
    "epoch {}  step {}/12  0:{:02}:00 left  2.6 images/s  2% waiting for data  loss 3.349: mask 0.6"
)
NAMES = ["seed=1", "seed=2", "seed=3", "seed=4", "seed=5", "seed=6"]
COMMAND = ["maskrcnn-lit", "train", "-m", "seed=1,2,3,4,5,6", "sweep_dir=a b"]


def add_run(folder: Path, name: str, result: RunResult, aps: list[float], log: str = "") -> Path:
    """A run folder with a validation after each epoch of four steps."""
    run_dir = folder / name
    write_result(run_dir / "result.json", result)
    (run_dir / ".lock").touch()
    with open(run_dir / "metrics.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["step", "epoch", "train/loss", "val/mask_ap"])
        table.writeheader()
        for epoch, ap in enumerate(aps):
            table.writerow({"step": 4 * epoch + 3, "epoch": epoch, "train/loss": 1})
            table.writerow({"step": 4 * epoch + 3, "epoch": epoch, "val/mask_ap": ap})
    if log:
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "logs" / f"{name}.txt").write_text(f"{log}\n")
    return run_dir


def describe(folder: Path, **more: Any) -> None:
    jobs = [{"name": name, "overrides": [name]} for name in NAMES]
    write_sealed_json(
        folder / "sweep.json", {"command": COMMAND, "question": None, "jobs": jobs} | more
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Six jobs: finished, running (if its lock is taken), killed, failed, pruned, waiting."""
    add_run(
        tmp_path,
        "seed=1",
        RunResult("finished", cost={"seconds": 300.0}),
        [0.1, 0.5, 0.4],
        LINE.format("3/3", 11, 0),
    )
    add_run(tmp_path, "seed=2", RunResult("running"), [0.2], LINE.format("2/3", 6, 2))
    add_run(tmp_path, "seed=3", RunResult("running"), [], LINE.format("1/3", 2, 4))
    add_run(tmp_path, "seed=4", RunResult("failed", error="UserError: no\nroom"), [])
    add_run(tmp_path, "seed=5", RunResult("pruned", cost={"seconds": 90.0}), [0.01])
    describe(tmp_path)
    return tmp_path


def by_name(view: View) -> dict[str, Job]:
    return {job.name: job for job in view.jobs}


def test_the_state_of_every_job(sweep: Path):
    with locked(sweep / "seed=2" / ".lock"):
        states = {name: job.state for name, job in by_name(Sweep(sweep).read()).items()}
    expected = ["finished", "running", "killed", "failed", "pruned", "waiting"]
    assert states == dict(zip(NAMES, expected, strict=True))


@pytest.mark.process
def test_a_job_whose_process_is_killed_is_seen_as_such(sweep: Path):
    script = "import fcntl, sys, time; file = open(sys.argv[1], 'ab'); "
    script += "fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", script, str(sweep / "seed=2" / ".lock")]
    reader = Sweep(sweep)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert by_name(reader.read())["seed=2"].state == "running"
        process.kill()
    assert by_name(reader.read())["seed=2"].state == "killed"


def test_a_job_that_runs_again_is_running_whatever_it_recorded(sweep: Path):
    with locked(sweep / "seed=4" / ".lock"):
        job = by_name(Sweep(sweep).read())["seed=4"]
    assert (job.state, job.note) == ("running", "")


def test_progress_and_scores(sweep: Path):
    with locked(sweep / "seed=2" / ".lock"):
        jobs = by_name(Sweep(sweep).read())
    done, running = jobs["seed=1"], jobs["seed=2"]
    assert (done.step, done.steps, done.best, done.last) == (12, 12, Score(0.5, 2), Score(0.4, 3))
    assert (running.epoch, running.step, running.steps, running.left) == ("2/3", 6, 12, 120.0)
    assert jobs["seed=4"].note == "UserError: no room"
    assert jobs["seed=6"] == Job("seed=6", "waiting")


def test_a_changed_file_is_read_again(sweep: Path):
    reader = Sweep(sweep)
    assert by_name(reader.read())["seed=1"].best == Score(0.5, 2)
    with open(sweep / "seed=1" / "metrics.csv", "a") as file:
        file.write("15,3,,0.75\n15,3,,0.9")  # the last line is not whole
    assert by_name(reader.read())["seed=1"].best == Score(0.75, 4)


def test_the_best_of_a_loss_is_the_least(sweep: Path):
    (sweep / "seed=1" / "metrics.csv").write_text("step,epoch,val/loss\n3,0,2.0\n7,1,1.5\n9,2,3\n")
    (sweep / "seed=5" / "metrics.csv").write_text("step,epoch,val/loss\n3,0,nan\n7,1,4.0\n")
    assert Sweep(sweep, "loss").metric == "val/loss"
    view = Sweep(sweep, "val/loss").read()
    assert by_name(view)["seed=1"].best == Score(1.5, 2)
    assert "best so far: val/loss 1.500 in epoch 2, seed=1" in text(view)


def test_the_metric_is_the_goal_of_a_search(sweep: Path):
    describe(sweep, search={"goals": ["val/box_ap50:max", "cost/flops:min"], "limit": 30})
    view = Sweep(sweep).read()
    assert (view.metric, view.limit) == ("val/box_ap50", 30)
    assert text(view).splitlines()[1].endswith("24 not yet chosen")


@pytest.mark.parametrize(
    ("config", "metric"),
    [
        ("trainer: {monitor: val/box_ap75}", "val/box_ap75"),
        ("model: {mask_head: null}", "val/box_ap"),
        ("model: {mask_head: {depth: 4}}", "val/mask_ap"),
        ("", "val/mask_ap"),
    ],
)
def test_else_it_is_what_chooses_the_best_checkpoint(sweep: Path, config: str, metric: str):
    (sweep / "seed=1" / "config.yaml").write_text(config)
    assert Sweep(sweep).read().metric == metric


def test_runs_with_and_without_masks_are_looked_at_by_box_ap(sweep: Path):
    (sweep / "seed=1" / "config.yaml").write_text("model: {mask_head: {depth: 4}}")
    (sweep / "seed=2" / "config.yaml").write_text("model: {mask_head: null}")
    assert Sweep(sweep).read().metric == "val/box_ap"


def test_the_table(sweep: Path):
    with locked(sweep / "seed=2" / ".lock"), locked(sweep / ".lock"):
        lines = text(Sweep(sweep).read()).splitlines()
    counts = "1 running, 1 killed, 1 failed, 1 finished, 1 pruned, 1 waiting"
    assert lines[:5] == [
        str(sweep),
        f"6 jobs: {counts}",
        "best so far: val/mask_ap 0.500 in epoch 2, seed=1",
        "about 6 min left",  # 2 min, and the mean of 300 s and 240 s
        "",
    ]
    assert [line.split() for line in lines[5:]] == [
        ["state", "epoch", "step", "best", "mask", "AP", "last", "left", "job"],
        ["running", "2/3", "6/12", "0.200", "0.200", "2", "min", "seed=2"],
        ["killed", "1/3", "2/12", "seed=3"],
        ["failed", "seed=4:", "UserError:", "no", "room"],
        ["finished", "3", "12/12", "0.500", "0.400", "seed=1"],
        ["pruned", "1", "4", "0.010", "0.010", "seed=5"],
        ["waiting", "seed=6"],
    ]


def test_a_sweep_whose_driver_has_died_names_its_command(sweep: Path):
    shown = "its own process has ended; to go on: maskrcnn-lit train -m seed=1,2,3,4,5,6 'sweep_dir"
    assert shown in text(Sweep(sweep).read())


def test_a_low_terminal_counts_the_rest(sweep: Path):
    lines = text(Sweep(sweep).read(), height=9).splitlines()
    assert len(lines) == 9
    assert lines[-1] == "and 4 more: 1 failed, 1 finished, 1 pruned, 1 waiting"


def test_the_files_stay_as_they_are(sweep: Path):
    def everything() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sweep.rglob("*")}

    before = everything()
    text(Sweep(sweep).read())
    assert everything() == before


def test_any_folder_with_runs(tmp_path: Path):
    run_dir = add_run(tmp_path, "2026/a", RunResult("interrupted"), [0.3])
    (run_dir / "config.yaml").write_text("trainer: {epochs: 5, steps: null}")
    view = Sweep(tmp_path).read()
    (job,) = view.jobs
    assert (job.name, job.state, job.epoch, job.step) == ("2026/a", "interrupted", "1/5", 4)
    assert view.driven is None
    assert view.ended
    assert [job.name for job in Sweep(run_dir).read().jobs] == ["a"]


def test_what_is_not_a_sweep_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"none is not a folder"):
        Sweep(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no sweep\.json and no run"):
        Sweep(tmp_path).read()
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json cannot be read .*run the sweep again"):
        Sweep(tmp_path).read()


def test_a_damaged_result_is_a_failure_with_its_reason(sweep: Path):
    (sweep / "seed=1" / "result.json").write_text("{}x")
    job = by_name(Sweep(sweep).read())["seed=1"]
    assert job.state == "failed"
    assert "is damaged" in job.note


def test_a_damaged_table_has_no_scores(sweep: Path):
    (sweep / "seed=1" / "metrics.csv").write_text("step,epoch,val/mask_ap\n1,0,much\n")
    assert by_name(Sweep(sweep).read())["seed=1"].best is None


def test_where_there_are_no_locks_a_run_is_as_recorded(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(top, "is_locked", lambda path: None)
    assert by_name(Sweep(sweep).read())["seed=3"].state == "running"


def test_scores_of_a_table(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,epoch,val/mask_ap\n3,0,\n3,0,0.5\n7,1,nan\n")
    assert read_scores(file, "val/mask_ap") == ({"step": 7.0, "epoch": 1.0}, [Score(0.5, 1)])


RUNNING = Job("a", "running", step=3, steps=12, left=90.0)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([RUNNING], 90.0),
        ([RUNNING, Job("b", "waiting")], 90.0 + 120.0),
        ([RUNNING, RUNNING, Job("b", "waiting"), Job("c", "waiting")], 90.0 + 120.0),
        ([RUNNING, Job("b", "waiting"), Job("c", "finished", seconds=240.0)], 90.0 + 180.0),
        ([RUNNING, Job("c", "finished", seconds=240.0)], 90.0),
        ([Job("b", "waiting")], None),
        ([RUNNING, Job("d", "running")], None),
        ([RUNNING, Job("d", "running", left=math.nan)], None),
    ],
)
def test_the_time_left_of_a_sweep(jobs: list[Job], expected: float | None):
    assert remaining(jobs) == expected


def test_a_pipe_gets_one_table(sweep: Path):
    out = io.StringIO()
    with locked(sweep / "seed=2" / ".lock"):
        watch(sweep, seconds=1e6, out=out)
    assert out.getvalue().count("state ") == 1
    assert "\x1b" not in out.getvalue()


def test_a_terminal_is_live_until_all_have_ended(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    out, seen = Screen(), []

    def later(seconds: float) -> None:
        seen.append(out.lines())
        step = 6 + len(seen)
        (sweep / "logs" / "seed=2.txt").write_text(LINE.format("2/3", step, 1))
        if len(seen) == 2:
            for name in ("seed=2", "seed=3", "seed=4", "seed=6"):
                (sweep / name).mkdir(exist_ok=True)
                write_result(sweep / name / "result.json", RunResult("finished"))

    monkeypatch.setattr(top.time, "sleep", later)
    with locked(sweep / "seed=2" / ".lock"):
        watch(sweep, seconds=3, out=out)
    shown = [next(line for line in lines if line.endswith("seed=2")) for lines in seen]
    assert [line.split()[2] for line in shown] == ["6/12", "7/12"]
    assert out.lines()[1] == "6 jobs: 5 finished, 1 pruned"
    assert sum("seed=2" in line for line in out.lines()) == 1, "one table is left"


def test_ctrl_c_leaves_the_last_table(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(top.time, "sleep", interrupt)
    out = Screen()
    with locked(sweep / "seed=2" / ".lock"):
        watch(sweep, out=out)
    assert any(line.startswith("running") for line in out.lines())


def test_once_in_a_terminal(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = Screen()
    with locked(sweep / "seed=2" / ".lock"):
        watch(sweep, once=True, seconds=1e6, out=out)
    assert out.lines()[0].startswith(os.fspath(sweep))
