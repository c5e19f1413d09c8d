"""Run folders as the jobs of a comparison: what they are, and the validation data that they were
scored on.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.stored import checked, read_run_config
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.settings import Job
from maskrcnn_lit.runs.result import RunResult, config_fault, file_fault, read_result
from maskrcnn_lit.storage.sealed import read_sealed_json
from maskrcnn_lit.training.checkpoint import last_checkpoint

SWEEP = "sweep.json"


class Runs(NamedTuple):
    """question, command: of the sweeps among the sources, where they have one."""

    jobs: list[Job]
    questions: list[str]
    commands: list[list[str]]
    notes: list[str]


def read_runs(sources: Sequence[Path]) -> Runs:
    """Every run in or under `sources`, and the jobs of their sweeps that have none.

    Raises:
        UserError: a source that is not there, or no run in all of them.
    """
    runs = Runs([], [], [], [])
    for source in sources:
        if not source.is_dir():
            raise UserError(
                f"{source} is not a folder: give run folders, or folders of runs, runs=[DIR,DIR]"
            )
        folders = [Path(file).parent for file in _results(source)]
        homes = sorted({source, *(folder.parent for folder in folders if folder != source)})
        runs.jobs.extend(
            _job(folder, str(folder.relative_to(source)), runs.notes) for folder in folders
        )
        for home in homes:
            if (home / SWEEP).is_file():
                try:
                    _add_sweep(runs, home)
                except UserError as error:
                    if not runs.jobs:
                        raise
                    runs.notes.append(str(error))
        _leave_out(runs, source)
    if not runs.jobs:
        raise UserError(
            f"there is no run in {', '.join(map(str, sources))}: give the folder of a sweep or of runs, which hold a "
            "result.json each"
        )
    return runs._replace(jobs=_named(runs.jobs))


def _leave_out(runs: Runs, source: Path) -> None:
    """Drop the runs that never began, unless they are jobs of a sweep; one that was named itself is
    told.
    """
    for job in [job for job in runs.jobs if _never_began(job)]:
        runs.jobs.remove(job)
        message = [note for note in runs.notes if note.startswith(f"{job.name} is left out: ")]
        runs.notes[:] = [note for note in runs.notes if note not in message]
        if job.folder == source:
            why = f": {job.result.error}" if job.result.error else ""
            runs.notes.append(f"{source} is left out, since it never began{why}")


def _never_began(job: Job) -> bool:
    """Whether it ended before its first step, and is of no sweep."""
    if job.folder is None or job.result.status == "finished" or job.result.data:
        return False
    try:
        read_result(job.folder / "result.json")
    except UserError:  # a damaged one is told
        return False
    swept = (job.folder.parent / SWEEP).is_file()
    return not swept and not job.curves and last_checkpoint(job.folder) is None


def validation_index(job: Job) -> AnnotationIndex:
    """The validation images that `job` was scored on, from its config, as they lie there: nothing
    is written.

    Raises:
        UserError: they cannot be read.
    """
    data = dict(job.config.get("data") or {})
    data |= {"train": data.get("val"), "prepare": None}  # never read; never drawn or fetched
    try:
        stored = checked({"data": data}, where=f"config.yaml of {job.name}")
        module: CocoDataModule = build(stored.data)
        module.setup("validate")
    except OSError as error:
        raise UserError(str(error)) from error
    if module.val_index is None:
        raise RuntimeError("setup leaves a validation index")
    return module.val_index


def _results(source: Path) -> Iterator[str]:
    """Every result.json below, in the order of the paths; what a run holds besides is not searched."""
    for folder, names, files in os.walk(source):
        if "result.json" in files:
            names.clear()
            yield os.path.join(folder, "result.json")
        names.sort()


def _job(folder: Path, name: str, notes: list[str]) -> Job:
    """A run whose files are damaged or missing counts as failed, with the reason, and is not
    compared; a note says so.
    """
    config: dict[str, Any] = {}
    fault = None
    try:
        result = read_result(folder / "result.json")
    except UserError as error:
        fault, result = str(error), RunResult(status="failed", error=str(error))
        notes.append(f"{name} is left out: {fault}")
    try:
        config = read_run_config(folder)
        if unlike := config_fault(config, result):
            raise UserError(f"{folder}: {unlike}")
    except UserError as error:
        fault = " ".join(str(error).split())
        notes.append(f"{name} is left out: {fault}")
    if fault is not None and result.status == "finished":
        result = replace(result, status="failed", error=fault)
    curves: tuple[dict[str, float], ...] = ()
    table = folder / "metrics.csv"
    try:
        if unlike := file_fault(table, result):
            notes.append(f"{name} has no curves: {unlike}")
        else:
            curves = tuple(_curves(table))
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"{name} has no curves: {table} cannot be read ({error})")
    return Job(name, folder, tuple(map(str, result.overrides)), config, result, curves)


def _curves(file: Path) -> Iterator[dict[str, float]]:
    """The rows of a metrics.csv as numbers; a last line that a killed run left unfinished is
    dropped. Raises OSError, ValueError or csv.Error for a damaged one.
    """
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):
        if None in row:
            raise ValueError("a line has more values than the first has names")
        yield {name: float(value) for name, value in row.items() if value}


def _add_sweep(runs: Runs, folder: Path) -> None:
    """What sweep.json of `folder` says: question, command, the order of its jobs, and those that
    have no folder.
    """
    try:
        sweep = read_sealed_json(folder / SWEEP)
        planned = {
            folder / str(job["name"]): [str(text) for text in job["overrides"]]
            for job in sweep["jobs"]
        }
        command, question = (
            [str(word) for word in sweep.get("command") or []],
            sweep.get("question"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / SWEEP} cannot be read ({error!r}): sweep again, or move it away"
        ) from None
    if question:
        runs.questions.append(str(question))
    if command:
        runs.commands.append(command)
    there = {job.folder: job for job in runs.jobs}
    ran = [there[path].overrides for path in planned if path in there]
    shared = [
        text for text in (ran[0] if ran else ()) if all(text in overrides for overrides in ran)
    ]
    ordered = []
    for path, overrides in planned.items():
        own = {_name(text) for text in overrides}
        typed = (*(text for text in shared if _name(text) not in own), *overrides)
        ordered.append(
            there.get(path) or Job(path.name, None, typed, {}, RunResult(status="failed"))
        )
    runs.jobs[:] = [*(job for job in runs.jobs if job.folder not in planned), *ordered]


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _named(jobs: Sequence[Job]) -> list[Job]:
    """A run that was given itself is called by its folder; names that several have, by their whole
    path.
    """
    plain = [
        replace(job, name=job.folder.name) if job.folder and job.name == "." else job
        for job in jobs
    ]
    names = [job.name for job in plain]
    return [
        replace(job, name=str(job.folder)) if names.count(job.name) > 1 and job.folder else job
        for job in plain
    ]
