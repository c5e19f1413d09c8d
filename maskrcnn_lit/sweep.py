"""`maskrcnn-lit train -m`: many runs from one command. Each is a process and a run folder of its own.

What a sweep has done is in its run folders alone: the same command again skips the runs that are finished, goes on with
those that were stopped, and begins the others.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from maskrcnn_lit.config import build
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.evaluation.result import RunResult, read_result, write_result
from maskrcnn_lit.files import atomic_write, locked, write_json
from maskrcnn_lit.grid import Job, Sweep, read_sweep
from maskrcnn_lit.launchers import Command
from maskrcnn_lit.overrides import assign
from maskrcnn_lit.plan import kind, plan_table
from maskrcnn_lit.run_folder import LOCK, program

PYTHON = (sys.executable, "-m", "maskrcnn_lit")


def run(overrides: list[str]) -> int:
    """All jobs of the command line `overrides`; the exit code: 1 if one of them failed."""
    sweep = read_sweep(overrides)
    launch = build(sweep.options.launcher)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with locked(sweep.folder / LOCK, wait=False) as free:
        if not free:
            raise UserError(f"{sweep.folder} is being swept by another process: wait until it has ended")
        _check_same(sweep.jobs)
        _write(sweep, overrides)
        wait_for_orphans(sweep.jobs)
        missing = [job for job in sweep.jobs if status(job) != "finished"]
        print(f"sweep {sweep.folder}: {len(sweep.jobs)} jobs, {len(sweep.jobs) - len(missing)} finished", flush=True)
        if missing:
            trials = _trials(sweep, missing, launch)
            print(plan_table(sweep.jobs, missing, trials), flush=True)
        if sweep.options.sweep.plan_only:
            return 0
        by_name = {job.name: job for job in missing}
        for number, (name, code) in enumerate(launch([_command(sweep.folder, job) for job in missing]), start=1):
            result = settled(by_name[name], code, _log(sweep.folder, name))
            print(f"[{number}/{len(missing)}] {name}: {_outcome(result)}", flush=True)
        return _ending(sweep)


def status(job: Job) -> str:
    """finished, failed, interrupted, running (so it says, but nobody runs it), or missing."""
    file = job.run_dir / "result.json"
    return read_result(file).status if file.is_file() else "missing"


def wait_for_orphans(jobs: Sequence[Job]) -> None:
    """A job outlives a driver that was killed: it is not begun a second time."""
    for job in jobs:
        if not job.run_dir.is_dir():
            continue
        with locked(job.run_dir / LOCK, wait=False) as free:
            if free:
                continue
        print(f"{job.name} is still running, from a sweep that was stopped: waiting for it", flush=True)
        with locked(job.run_dir / LOCK):
            pass


def settled(job: Job, code: int, log: Path) -> RunResult:
    """The result of a job that has ended, with the reason if it could not write it itself."""
    wait_for_orphans([job])  # where it had not been told of another process that was beginning it
    file = job.run_dir / "result.json"
    result = read_result(file) if file.is_file() else RunResult(status="running", overrides=job.overrides)
    if result.status == "running" or (code != 0 and result.status == "finished"):
        result.status, result.error = "failed", _reason(code, log)
        write_result(file, result)
    return result


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return f"killed by signal {-code}: if the memory was full, take a smaller data.batch_size"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1].removeprefix("maskrcnn-lit: ") if lines else f"it ended with exit code {code} and said nothing"


def _check_same(jobs: Sequence[Job]) -> None:
    """A run folder of another sweep, or of other options, is not taken for a job's."""
    for job in jobs:
        file = job.run_dir / "result.json"
        if file.is_file() and _without_place(read_result(file).overrides) != job.overrides:
            raise UserError(
                f"{job.run_dir} holds a run of other options ({' '.join(read_result(file).overrides)}): give another "
                "sweep_dir, or remove it"
            )


def _without_place(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if not text.startswith("run_dir=")]


def _write(sweep: Sweep, overrides: list[str]) -> None:
    """sweep.json: what the sweep is, for its report."""
    told = {
        "command": ["maskrcnn-lit", "train", "-m", *overrides],
        "question": sweep.question,
        "jobs": [{"name": job.name, "overrides": job.overrides} for job in sweep.jobs],
    }
    write_json(sweep.folder / "sweep.json", told)


def _command(folder: Path, job: Job) -> Command:
    """Begins the job, or goes on with it."""
    begun = (job.run_dir / "config.yaml").is_file() and status(job) != "failed"
    again = begun or (job.run_dir / "checkpoints" / "last.ckpt").is_file()
    words = [assign("resume", job.run_dir)] if again else [*job.overrides, assign("run_dir", job.run_dir)]
    return Command(job.name, [*PYTHON, "train", *words], _log(folder, job.name))


def _log(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.txt"


def _trials(sweep: Sweep, jobs: Sequence[Job], launch: Any) -> dict[str, Any]:
    """By kind of job what a trial has measured, or why it could not; kept beside the runs."""
    steps = sweep.options.sweep.trial_steps
    check_whole(0, sweep__trial_steps=steps)
    folder = sweep.folder / "trials"
    kinds = {kind(job): job for job in jobs} if steps else {}
    commands = []
    for name, job in kinds.items():
        if not (folder / f"{name}.json").is_file():
            atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(job.config, resolve=True))
            words = ["-m", "maskrcnn_lit.trial", str(folder / f"{name}.yaml"), str(folder / f"{name}.json"), str(steps)]
            commands.append(Command(name, [sys.executable, *words], folder / f"{name}.txt"))
    if commands:
        print(f"measuring {len(commands)} kinds of job, {steps} steps each", flush=True)
    failed = {name: _reason(code, folder / f"{name}.txt") for name, code in launch(commands) if code != 0}
    return {
        name: failed[name] if name in failed else json.loads((folder / f"{name}.json").read_text()) for name in kinds
    }


def _outcome(result: RunResult) -> str:
    if result.status != "finished":
        return f"{result.status}: {result.error}"
    scores = [
        f"{title} {result.metrics[f'val/{key}']:.3f}" for key, title in (("mask_ap", "mask AP"), ("box_ap", "box AP"))
    ]
    return f"finished in {result.cost['seconds']:.0f} s, {', '.join(scores)}"


def _ending(sweep: Sweep) -> int:
    """The report of all jobs, also of those that were finished before; how many failed."""
    done = [status(job) for job in sweep.jobs]
    failed = len(done) - done.count("finished")
    told = subprocess.run([*PYTHON, "compare", assign("runs", sweep.folder)], capture_output=True, text=True)
    print(told.stdout if told.returncode == 0 else f"no report: {told.stderr.strip()}")
    if failed:
        print(f"{failed} of {len(done)} jobs failed: the same command tries them again, and only them")
    print(f"Next:\n  {program('tensorboard')} --logdir {sweep.folder}")
    return 1 if failed else 0
