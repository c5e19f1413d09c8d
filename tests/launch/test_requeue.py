"""A run in a job of SLURM: a signal requeues the job, and the same command continues the run."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_commands import MODEL, checkpoint, coco_data, environment, metric_rows, result, script

from maskrcnn_lit.launch.requeue import continued, requeue, slurm_job
from maskrcnn_lit.runs.result import RunResult, write_result

pytest_plugins = ("tiny_commands",)

OF_A_JOB = ("SUBMITIT_EXECUTOR", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OF_A_JOB:
        monkeypatch.delenv(name, raising=False)


def scontrol(folder: Path, last: str = "") -> str:
    """The PATH with a `scontrol` that appends its arguments to `asked`, then runs `last`."""
    folder.mkdir(exist_ok=True)
    file = folder / "scontrol"
    file.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{last}\n')
    file.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_the_job_of_a_process(monkeypatch: pytest.MonkeyPatch):
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "10_2", "12 would be one task alone, with the name of the whole array"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert slurm_job() is None


@pytest.mark.process
def test_a_job_is_requeued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", scontrol(tmp_path / "bin"))
    requeue()
    assert (tmp_path / "bin/asked").read_text() == "requeue 12\n"
    assert caplog.messages == [
        "job 12 is in SLURM's queue again, and the run goes on when it starts"
    ]


@pytest.mark.process
def test_a_job_that_cannot_be_requeued_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", scontrol(tmp_path / "bin", "echo Requested operation >&2; exit 1"))
    requeue()
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    refused, missing = caplog.messages
    assert refused == (
        "SLURM's job 12 cannot be requeued (Requested operation): submit the same command again"
    )
    assert "scontrol" in missing
    assert missing.endswith("submit the same command again")


def test_the_same_command_continues_its_run(tmp_path: Path):
    run = tmp_path / "run"
    typed = ["seed=2", "requeue=true", f"run_dir={run}", "logger=wandb"]
    assert continued(run, typed) is None
    run.mkdir()
    (run / "config.yaml").write_text("seed: 2\n")
    write_result(run / "result.json", RunResult(status="running", overrides=typed))
    assert continued(run, typed) == [f"resume={run}", "logger=wandb"]
    assert continued(run, ["seed=3", *typed[1:]]) is None
    write_result(run / "result.json", RunResult(status="failed", error="a", overrides=typed))
    assert continued(run, typed) is None, "it failed before its first checkpoint"


def finished_by_signal(command: list[str], folder: Path, number: int, **more: str) -> str:
    """Start the command in `folder`, send the signal to all of its processes once it has logged a
    step, and return what it has printed.
    """
    with open(folder / "printed", "w") as printed:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**more),
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        try:
            for _ in range(6000):
                if process.poll() is not None or list(folder.rglob("metrics.csv")):
                    break
                time.sleep(0.1)
            os.killpg(process.pid, number)
            code = process.wait(timeout=300)
        finally:
            process.kill()
    text = (folder / "printed").read_text()
    assert code == 130, text
    return text


LONG = (
    *("trainer.epochs=10", "evaluation.every_n_epochs=1000", "trainer.log_every_n_steps=1"),
    *("trainer.checkpoint_every_n_steps=null", "optimizer.lr=1e-3"),
)


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "number", "job"),
    [
        (("data.workers=1",), signal.SIGUSR1, {"SLURM_JOB_ID": "7"}),
        pytest.param(
            ("trainer.devices=2", "data.batch_size=1"),
            signal.SIGTERM,
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_at_its_time_limit_saves_and_requeues_its_job(
    strange: Path, tmp_path: Path, options: tuple[str, ...], number: int, job: dict[str, str]
):
    """SLURM signals all processes of a job step, loaders included. The requeued job runs the same
    command, which has the folder of the job's number.
    """
    name = "7_3" if len(job) > 1 else "7"
    command = [script(), "train", *coco_data(strange), *MODEL, *LONG, *options, "requeue=true"]
    job = job | {"PATH": scontrol(tmp_path / "bin")}
    said = finished_by_signal(command, tmp_path, number, **job)
    run_dir = tmp_path / "outputs/slurm" / name
    assert (tmp_path / "bin/asked").read_text() == f"requeue {name}\n"
    assert f"job {name} is in SLURM's queue again" in said
    assert result(run_dir)["status"] == "interrupted"
    step = checkpoint(run_dir)["global_step"]
    assert step >= 1
    again = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(**job, SLURM_RESTART_COUNT="1"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"outputs/slurm/{name} resumes from step {step}" in again.stdout
    assert result(run_dir)["status"] == "finished"
    rows = [row["step"] for row in metric_rows(run_dir) if row["train/loss"]]
    assert rows == [str(n) for n in range(40)]
    assert (tmp_path / "bin/asked").read_text() == f"requeue {name}\n", "it has not stopped again"
