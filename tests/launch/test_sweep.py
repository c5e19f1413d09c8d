"""A sweep does every job once, whatever happens to it: a job fails, the driver is killed, the
machine goes down.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from repository import HELPERS
from tiny_commands import (
    MODEL,
    checkpoint,
    coco_data,
    environment,
    metric_rows,
    printed_by,
    refused,
    result,
    run_command,
    same,
    script,
)

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.grid import Job, read_sweep
from maskrcnn_lit.launch.sweep import begin, check_same, job_result, stopped_as_interrupted
from maskrcnn_lit.runs.folder import freeze_config
from maskrcnn_lit.runs.result import RunResult, read_result, write_result
from maskrcnn_lit.training.stop import SIGNALS

pytest_plugins = ("tiny_commands",)
SHORT = (
    "trainer.epochs=1",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=4.0e-3",
    "sweep.trial_steps=0",
)
WITNESS = HELPERS / "witness"


def options(data: Path, folder: Path) -> tuple[str, ...]:
    return ("train", "-m", *coco_data(data), *MODEL, *SHORT, f"sweep_dir={folder}")


@pytest.fixture(scope="module")
def swept(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Three jobs of which one cannot be done, and what the command printed."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    yield folder, printed_by(*options(strange, folder), "data.train_images=999,2,4", code=1)


@pytest.mark.process
def test_a_job_that_fails_is_a_row_with_its_reason_and_the_others_go_on(swept: tuple[Path, str]):
    folder, printed = swept
    told = {
        name: result(folder / name)
        for name in ("train_images=999", "train_images=2", "train_images=4")
    }
    assert [entry["status"] for entry in told.values()] == ["failed", "finished", "finished"]
    assert "[1/3] train_images=999: failed: UserError: " in printed
    assert "999 images were requested" in printed
    assert "[2/3] train_images=2: finished in " in printed
    assert ", mask AP 0." in printed
    assert "1 of 3 jobs failed: run the same command to retry only them" in printed
    assert told["train_images=4"]["data"]["train"]["images"] == 4
    assert "999 images were requested" in (folder / "logs" / "train_images=999.txt").read_text()


@pytest.mark.process
def test_a_sweep_says_what_it_is(swept: tuple[Path, str]):
    told = json.loads((swept[0] / "sweep.json").read_text())
    assert [job["name"] for job in told["jobs"]] == [
        "train_images=999",
        "train_images=2",
        "train_images=4",
    ]
    assert told["jobs"][1]["overrides"] == [*result(swept[0] / "train_images=2")["overrides"][:-1]]
    assert told["command"][:3] == ["maskrcnn-lit", "train", "-m"]
    assert "data.train_images=999,2,4" in told["command"]


@pytest.mark.process
def test_the_same_command_runs_only_what_failed(swept: tuple[Path, str], strange: Path):
    folder, _ = swept
    before = {
        path: path.stat().st_mtime_ns
        for path in folder.glob("train_images=[24]/**/*")
        if path.name != ".lock"
    }
    printed = printed_by(*options(strange, folder), "data.train_images=999,2,4", code=1)
    assert "3 jobs, 2 finished" in printed
    assert "[1/1] train_images=999: failed" in printed
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(before) > 10


@pytest.mark.process
def test_other_options_are_not_taken_for_the_same_job(swept: tuple[Path, str], strange: Path):
    command = (*options(strange, swept[0]), "data.train_images=2,4", "seed=9")
    said = refused(*command)
    assert (
        "contains a run with seed=1, but this sweep has seed=9: give another sweep_dir, or remove "
        "that run" in said
    )


@pytest.mark.process
def test_the_plan_alone_runs_nothing(strange: Path, tmp_path: Path):
    command = [
        text for text in options(strange, tmp_path / "sweep") if text != "sweep.trial_steps=0"
    ]
    printed = printed_by(*command, "seed=1,2", "sweep.trial_steps=1", "sweep.plan_only=true")
    assert "measuring 1 kinds of job, 1 steps each" in printed, "seeds are of one kind"
    for seed in (1, 2):
        assert f" seed={seed} 8 images x 1 epochs = 4 steps" in " ".join(printed.split())
    assert " maskrcnn-lit lr, as seed=1 100 steps " in " ".join(printed.split())
    assert "2 of 2 jobs to run: about " in printed
    assert " GB" in printed
    assert not list((tmp_path / "sweep").glob("seed=*"))


def started(command: tuple[str, ...], folder: Path, log: str) -> subprocess.Popen[bytes]:
    """A driver in a process group of its own, so that all of it can be killed."""
    with open(folder / log, "wb") as file:
        return subprocess.Popen(
            [script(), *command],
            cwd=folder,
            env=environment(),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def wait_for(path: Path, driver: subprocess.Popen[bytes], text: str = "") -> None:
    """Until the driver or its job has written `path`, with `text` in it."""
    while not path.exists() or (text and text not in path.read_text()):
        assert driver.poll() is None, f"it ended without {path}"
        time.sleep(0.05)


@pytest.mark.process
def test_a_killed_driver_loses_nothing_but_the_steps_since_the_last_checkpoint(
    strange: Path, tmp_path: Path
):
    """First the driver alone, whose job goes on, then all of them, as when the machine goes
    down.
    """
    folder = tmp_path / "sweep"
    every = ("trainer.epochs=2", "trainer.checkpoint_every_n_steps=1", "seed=1,2")
    command = (*options(strange, folder), *every)
    last = Path("checkpoints", "last.ckpt")

    driver = started(command, tmp_path, "first.txt")
    wait_for(folder / "seed=1" / last, driver)
    # the last child: the first is the template that its jobs are forked from (warm_python.py)
    job = int(Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()[-1])
    os.kill(
        job, signal.SIGSTOP
    )  # so that it is still there, however long the next driver takes to begin
    driver.kill()
    driver.wait()
    driver = started(command, tmp_path, "second.txt")
    wait_for(
        folder / "logs" / "seed=1.txt", driver, "the job is still running, from an earlier sweep"
    )
    os.kill(job, signal.SIGCONT)
    wait_for(folder / "seed=2" / last, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert result(folder / "seed=1")["status"] == "finished"
    assert result(folder / "seed=2")["status"] == "running"

    printed = printed_by(*command)
    assert "2 jobs, 1 finished" in printed
    assert "[1/1] seed=2: finished" in printed
    assert "resumes from step" in (folder / "logs" / "seed=2.txt").read_text()
    for seed in (1, 2):
        rows = metric_rows(folder / f"seed={seed}")
        assert [row["step"] for row in rows if row["train/loss"]] == [str(n) for n in range(8)]
    alone = tmp_path / "alone"
    arguments = [text for text in command[2:] if not text.startswith(("sweep", "seed="))]
    run_command("train", *arguments, "seed=2", f"run_dir={alone}")
    assert metric_rows(alone) == metric_rows(folder / "seed=2")
    assert same(checkpoint(alone)["state_dict"], checkpoint(folder / "seed=2")["state_dict"])


@pytest.mark.process
def test_all_processes_of_every_job_have_one_config_one_folder_and_equal_weights(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    witnesses = tmp_path / "witnesses"
    witnesses.mkdir()
    path = os.pathsep.join([str(WITNESS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = (*options(strange, tmp_path / "sweep"), "seed=1,2", "trainer.devices=2")
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("WITNESS", str(witnesses))
    run_command(*command)
    told = [json.loads(file.read_text()) for file in witnesses.iterdir()]
    assert sorted((entry["seed"], entry["rank"]) for entry in told) == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    for seed in (1, 2):
        first, second = ({**entry, "rank": None} for entry in told if entry["seed"] == seed)
        assert first == second, "config, folder and weights"
        assert first["run_dir"] == str(tmp_path / "sweep" / f"seed={seed}")
        assert first["config"] == result(tmp_path / "sweep" / f"seed={seed}")["config_sha256"]
    assert len({entry["weights"] for entry in told}) == 2


def test_a_job_that_was_killed_before_it_had_a_config_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that has a config goes on, one that failed before its first checkpoint begins anew, a
    finished one ends.
    """
    typed: list[list[str]] = []
    monkeypatch.setattr("maskrcnn_lit.launch.sweep._train", typed.append)
    run = tmp_path / "lr=0.1,seed=1"
    new, again = ["seed=1", f'run_dir="{run}"'], [f'resume="{run}"']

    assert begin(run, ["seed=1"]) == 0
    assert typed[-1] == new
    write_result(run / "result.json", RunResult(status="running"))
    assert begin(run, ["seed=1"]) == 0
    assert typed[-1] == new
    (run / "config.yaml").write_text("seed: 1\n")
    assert begin(run, ["seed=1"]) == 0
    assert typed[-1] == again
    write_result(run / "result.json", RunResult(status="failed", error="no space"))
    assert begin(run, ["seed=1"]) == 0
    assert typed[-1] == new
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    assert begin(run, ["seed=1"]) == 0
    assert typed[-1] == again
    # the loggers, and trust in a class of one's own, are typed again: a run folder is not believed
    mine = "+callbacks.mine={_target_: mylab.Watch}"
    assert begin(run, ["seed=1", "logger=wandb", mine]) == 0
    assert typed[-1] == [*again, "logger=wandb", "trust=[mylab.Watch]"]
    write_result(run / "result.json", RunResult(status="finished"))
    assert begin(run, ["seed=1"]) == 0
    assert len(typed) == 6


@pytest.mark.long
def test_what_a_job_could_not_say_itself(tmp_path: Path):
    job = read_sweep(["experiment=demo", f"sweep_dir={tmp_path}"]).jobs[0]
    log = tmp_path / "log.txt"
    assert (
        job_result(job, -9, log).error
        == "killed by signal 9: if the machine ran out of memory, use a smaller data.batch_size"
    )
    file = job.run_dir / "result.json"
    write_result(file, RunResult(status="running"))
    log.write_text("epoch 1\nmaskrcnn-lit: the disk is full\n\n")
    told = job_result(job, 2, log)
    assert (told.status, told.error, read_result(file).error) == (
        "failed",
        "the disk is full",
        "the disk is full",
    )
    write_result(file, RunResult(status="finished"))
    assert job_result(job, 1, log).status == "finished", "it is done, however its process ended"


@pytest.mark.long
def test_a_gpu_each_and_two_gpus_do_not_go_together():
    command = (
        "train",
        "-m",
        "experiment=demo",
        "seed=1,2",
        "trainer.devices=2",
        "launcher=local_gpus",
    )
    assert "use launcher=sequential" in refused(*command)


def test_without_m_a_grid_is_no_run_and_several_values_are_a_mistake():
    said = refused("train", "experiment=backbones", "seed=1")
    assert "this experiment is a grid over backbone, seed: add -m" in said
    assert "backbone=resnet50" in said
    assert "`maskrcnn-lit train -m` makes a run of each" in refused(
        "train", "experiment=demo", "seed=1,2"
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_sweep_is_an_interruption(number: signal.Signals):
    """Which its launcher passes on to the job (test_backends.py)."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stopped_as_interrupted():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) == before


def test_nothing_to_sweep():
    assert "there is nothing to sweep" in refused("train", "-m")


@pytest.mark.parametrize(("there", "wanted"), [(2, 1), (1, "auto")])
def test_a_job_that_went_on_with_other_processes_is_the_same(
    tmp_path: Path, there: int, wanted: int | str
):
    config = compose("train", ["data=shapes", "data.batch_size=4", f"trainer.devices={wanted}"])
    job = Job("a", [], tmp_path, freeze_config(config))
    stored = job.config.copy()
    stored.trainer.devices, stored.data.batch_size = there, 2
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(stored, resolve=True))
    check_same(job)
    stored.trainer.devices = job.config.trainer.devices = 1
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(stored, resolve=True))
    with pytest.raises(UserError, match=r"contains a run with data.batch_size=2, but this sweep"):
        check_same(job)
