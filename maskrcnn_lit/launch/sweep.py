"""`maskrcnn-lit train -m`: many runs from one command, each in its own process and run folder.

The state of a sweep is only in its run folders: the same command again skips finished runs, resumes
interrupted ones, and starts the others. `python -m maskrcnn_lit.launch.sweep RUN OVERRIDES` is one
of its jobs.
"""

import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import build, compose, to_dict
from maskrcnn_lit.config.overrides import assign, flat
from maskrcnn_lit.config.stored import MOVED, read_run_config
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.evaluation.titles import metric_title
from maskrcnn_lit.launch import console
from maskrcnn_lit.launch.auto_batch import AUTO, AUTO_OPTIONS, CHOSEN
from maskrcnn_lit.launch.backends import Command, reason
from maskrcnn_lit.launch.grid import Job, Sweep, read_sweep
from maskrcnn_lit.launch.plan import estimate, kind, plan_table
from maskrcnn_lit.launch.requeue import begun, to_resume
from maskrcnn_lit.launch.sweep_progress import SweepProgress, job_log
from maskrcnn_lit.launch.train import SHARES, train
from maskrcnn_lit.runs.folder import LOCK, program
from maskrcnn_lit.runs.result import DONE, RunResult, read_result, write_result
from maskrcnn_lit.storage.files import atomic_write, locked
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json, write_sealed_json
from maskrcnn_lit.training.stop import SIGNALS

# Options that a run or its launcher sets.
_LOCATIONS = ("run_dir", "save_dir", "path")  # paths in the run folder, which may have moved

_OF_THE_RUN = (
    *("model.num_classes", "trainer.devices", "trainer.num_nodes"),
    *("trainer.rank_timeout_minutes", "requeue"),
)


def run(overrides: list[str]) -> int:
    """Run all jobs of the command line `overrides`; return the exit code: 1 if a job or the report
    failed.
    """
    if not overrides:
        raise UserError(
            "no option has several values, so there is nothing to sweep: add one, for example "
            "backbone=resnet18,resnet50, or leave out -m"
        )
    sweep = read_sweep(overrides)
    check_devices(sweep.jobs, sweep.options)
    launch = build(sweep.options.launcher)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with stopped_as_interrupted(), locked(sweep.folder / LOCK, wait=False) as free:
        if not free:
            raise UserError(
                f"{sweep.folder} is in use by another process of this sweep: wait until it has "
                "ended"
            )
        for job in sweep.jobs:
            check_same(job)
        missing = [job for job in sweep.jobs if status(job.run_dir) != "finished"]
        print(
            f"sweep {sweep.folder}: {len(sweep.jobs)} jobs, {len(sweep.jobs) - len(missing)} "
            "finished",
            flush=True,
        )
        if len(sweep.jobs) == 1:
            print(
                "no option has several values, so this sweep has one run; NAME=A,B makes one run "
                "of each",
                flush=True,
            )
        try:
            trials = _trials(sweep, missing, launch) if missing else {}
            if missing:
                print(plan_table(sweep.jobs, missing, trials), flush=True)
            if sweep.options.sweep.plan_only:
                return 0
            _write(sweep, overrides)
            _launch(sweep, missing, launch, trials)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command to continue") from None
        return ending(sweep.folder, sweep.jobs)


def _launch(sweep: Sweep, missing: list[Job], launch: Any, trials: dict[str, Any]) -> None:
    """Run the `missing` jobs; print their progress and outcomes."""
    if not missing:
        return
    by_name = {job.name: job for job in missing}
    known = {job.name: trials.get(kind(job)) for job in missing}
    seconds = {
        name: estimate(by_name[name], trial)
        for name, trial in known.items()
        if isinstance(trial, dict)
    }
    print(f"logs of the jobs: {sweep.folder / 'logs'}", flush=True)
    with SweepProgress(list(by_name), partial(job_log, sweep.folder), seconds) as progress:
        commands = [job_command(sweep.folder, job) for job in missing]
        for number, (name, code) in enumerate(launch(commands), start=1):
            progress.ended(name)
            result = job_result(by_name[name], code, job_log(sweep.folder, name))
            print(f"[{number}/{len(missing)}] {name}: {outcome(result)}", flush=True)


@contextmanager
def stopped_as_interrupted() -> Iterator[None]:
    """Handle a termination signal like Ctrl-C, so that it reaches the jobs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python allows it there alone
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(run_dir: Path, overrides: list[str]) -> int:
    """Run one job in this process: start it, resume it, or wait for the process that runs it;
    return the exit code.

    This is decided here, not by the sweep, which may have been killed since, or have waited in a
    queue.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / LOCK, wait=False) as free:
        if not free:
            print("the job is still running, from an earlier sweep: waiting for it", flush=True)
    with locked(run_dir / LOCK):
        run_status = status(run_dir)
    if run_status in DONE:
        return 0
    again = begun(run_dir)
    words = to_resume(run_dir, overrides) if again else [*overrides, assign("run_dir", run_dir)]
    return console.run_and_report_errors(lambda: _train(words))


def _train(words: list[str]) -> None:
    train(compose("train", words), words, command=["maskrcnn-lit", "train", *words])


def status(run_dir: Path) -> str:
    """finished, pruned, failed, interrupted, running (as recorded; its process may be dead), or
    missing.
    """
    file = run_dir / "result.json"
    return read_result(file).status if file.is_file() else "missing"


def job_result(job: Job, code: int, log: Path) -> RunResult:
    """The result of a job that has ended, with the reason if the job could not record it."""
    file = job.run_dir / "result.json"
    result = (
        read_result(file)
        if file.is_file()
        else RunResult(status="running", overrides=job.overrides)
    )
    if result.status not in DONE and result.error is None:
        result.status = "failed" if result.status == "running" else result.status
        result.error = reason(code, log)
        write_result(file, result)
    return result


def check_devices(jobs: Sequence[Job], options: DictConfig) -> None:
    """Raise UserError if a job needs more GPUs than its launcher gives it."""
    several = [job.name for job in jobs if job.config.trainer.devices not in (1, "auto")]
    if several and str(options.launcher.get("_target_")).endswith(".local_gpus"):
        raise UserError(
            f"launcher=local_gpus gives each job one GPU, but {several[0]} needs more: use "
            "launcher=sequential"
        )


def check_same(job: Job) -> None:
    """Raise UserError if the job's run folder contains a run with other options."""
    if not (job.run_dir / "config.yaml").is_file():
        return
    there, wanted = (
        dict(flat(config)) for config in (read_run_config(job.run_dir), to_dict(job.config))
    )
    chosen = (CHOSEN, *(name for name in AUTO_OPTIONS if wanted.get(name) == AUTO))
    for name in [*wanted, *(there.keys() - wanted.keys())]:
        one, other = there.get(name), wanted.get(name)
        one = MOVED.get(one, one) if isinstance(one, str) else one
        dicts = isinstance(one, dict) or isinstance(other, dict)
        ignored = (
            name in _OF_THE_RUN
            or name.startswith(chosen)
            or (name in SHARES and _other_processes(there, wanted))
            or name.split(".")[-1] in _LOCATIONS
            or name.startswith(("data.prepare", "logger"))  # not read from a run folder
        )
        if one != other and not dicts and not ignored:
            raise UserError(
                f"{job.run_dir} contains a run with {name}={one}, but this sweep has "
                f"{name}={other}: give another sweep_dir, or remove that run"
            )


def _other_processes(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the run may have gone on with other processes, which divide its steps otherwise."""
    devices = {config.get("trainer.devices") for config in (there, wanted)}
    return len(devices) > 1 or "auto" in devices


def _write(sweep: Sweep, overrides: list[str]) -> None:
    """Write sweep.json, the description of the sweep for its report; remove earlier outcomes of
    jobs that run again.
    """
    message = {
        "command": ["maskrcnn-lit", "train", "-m", *overrides],
        "question": sweep.question,
        "jobs": [{"name": job.name, "overrides": job.overrides} for job in sweep.jobs],
    }
    write_sealed_json(sweep.folder / "sweep.json", message)
    for job in sweep.jobs:
        if status(job.run_dir) in ("failed", "interrupted"):
            result = read_result(job.run_dir / "result.json")
            result.error = None
            write_result(job.run_dir / "result.json", result)


def job_command(folder: Path, job: Job) -> Command:
    """The process of a job."""
    words = [
        sys.executable,
        "-P",
        "-m",
        "maskrcnn_lit.launch.sweep",
        str(job.run_dir),
        *job.overrides,
    ]
    return Command(job.name, words, job_log(folder, job.name))


def _trials(sweep: Sweep, jobs: Sequence[Job], launch: Any) -> dict[str, Any]:
    """Kind of job -> result of its trial, or why the trial failed; stored beside the runs."""
    steps = sweep.options.sweep.trial_steps
    check_whole(0, sweep__trial_steps=steps)
    folder = sweep.folder / "trials" / socket.gethostname()
    kinds = {kind(job): job for job in jobs} if steps else {}
    commands = []
    for name, job in kinds.items():
        if _measured(folder / f"{name}.json") is None:
            atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(job.config, resolve=True))
            words = [
                "-P",
                "-m",
                "maskrcnn_lit.launch.trial",
                str(folder / f"{name}.yaml"),
                str(folder / f"{name}.json"),
                str(steps),
            ]
            commands.append(Command(name, [sys.executable, *words], folder / f"{name}.txt"))
    if commands:
        print(f"measuring {len(commands)} kinds of job, {steps} steps each", flush=True)
    failed = {
        name: reason(code, folder / f"{name}.txt") for name, code in launch(commands) if code != 0
    }
    return {
        name: failed.get(name) or _measured(folder / f"{name}.json") or "its file is damaged"
        for name in kinds
    }


def _measured(file: Path) -> dict[str, Any] | None:
    """The result of a trial; None if missing or damaged: it is measured again."""
    try:
        return read_sealed_json(file)
    except (OSError, DamagedFileError):
        return None


def outcome(result: RunResult) -> str:
    """How a job has ended: its status with time and scores, or the reason of a failure."""
    if result.status not in DONE:
        return f"{result.status}: {result.error}"
    scores = [
        f"{metric_title(name)} {result.metrics[name]:.3f}"
        for name in ("val/mask_ap", "val/box_ap")
        if name in result.metrics
    ]
    return ", ".join([f"{result.status} in {result.cost['seconds']:.0f} s", *scores])


def ending(folder: Path, jobs: Sequence[Job]) -> int:
    """Write the report on all jobs, including those finished before; return the exit code."""
    done = [status(job.run_dir) for job in jobs]
    failed = sum(one not in DONE for one in done)
    arguments = ["compare", assign("runs", folder)]
    words = [sys.executable, "-P", "-m", "maskrcnn_lit", *arguments]
    report = subprocess.run(words, capture_output=True, text=True)
    print(report.stdout if report.returncode == 0 else f"no report: {report.stderr.strip()}")
    if failed:
        print(f"{failed} of {len(done)} jobs failed: run the same command to retry only them")
    print(f"Next:\n  {program('tensorboard')} --logdir {shlex.quote(str(folder))}")
    return 1 if failed or report.returncode else 0


if __name__ == "__main__":
    console.silence_libraries()
    console.show_library_logs()
    sys.exit(begin(Path(sys.argv[1]), sys.argv[2:]))
