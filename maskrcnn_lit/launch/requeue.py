"""A job of SLURM that goes on: the run that its notice stops puts the job back into the queue, and
the same command continues the run.
"""

import logging
import os
import subprocess
from pathlib import Path

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.overrides import assign, is_given
from maskrcnn_lit.config.stored import foreign_targets
from maskrcnn_lit.runs.result import read_result

_log = logging.getLogger(__name__)

SECONDS = 60.0  # that `scontrol` may take


def slurm_job() -> str | None:
    """The job of SLURM that this process is in: 123, or 123_4 in an array. None outside of SLURM,
    and in a job that submitit requeues.
    """
    own = os.environ
    if "SUBMITIT_EXECUTOR" in own:
        return None
    if "SLURM_ARRAY_JOB_ID" in own and "SLURM_ARRAY_TASK_ID" in own:
        return f"{own['SLURM_ARRAY_JOB_ID']}_{own['SLURM_ARRAY_TASK_ID']}"
    return own.get("SLURM_JOB_ID")


def requeue() -> None:
    """Put the job back into the queue, which also ends it. A failure is logged."""
    job = slurm_job()
    if job is None:
        return
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=SECONDS
        )
        fault = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault is None:
        _log.info(f"job {job} is in SLURM's queue again, and the run goes on when it starts")
    else:
        _log.warning(
            f"SLURM's job {job} cannot be requeued ({fault}): submit the same command again"
        )


def job_folder() -> str | None:
    """The default `run_dir` of a job with requeue=true: the same whenever it starts."""
    job = slurm_job()
    return None if job is None else f"outputs/slurm/{job}"


def continued(run_dir: Path, overrides: list[str]) -> list[str] | None:
    """The options that continue the run in `run_dir`; None unless the same command has begun it.

    overrides: of the command, with or without run_dir.
    """
    if not begun(run_dir):
        return None
    before = read_result(run_dir / "result.json").overrides
    if _own(before) != _own(overrides):
        return None
    return to_resume(run_dir, overrides)


def _own(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not is_given("run_dir", [text])]


def begun(run_dir: Path) -> bool:
    """Whether `run_dir` has a run to resume, not one that failed before its first checkpoint."""
    if (run_dir / "checkpoints" / "last.ckpt").is_file():
        return True
    file = run_dir / "result.json"
    failed = file.is_file() and read_result(file).status == "failed"
    return (run_dir / "config.yaml").is_file() and not failed


def to_resume(run_dir: Path, overrides: list[str]) -> list[str]:
    """The overrides to resume a run: its loggers, and trust for the classes that its options
    name.
    """
    loggers = [text for text in overrides if text.lstrip("+").startswith("logger")]
    trust = foreign_targets(compose("train", overrides))
    trusted = [f"trust=[{','.join(trust)}]"] if trust else []
    return [assign("resume", run_dir), *loggers, *trusted]
