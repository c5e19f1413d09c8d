"""Collects run folders as the jobs of a comparison, with their validation data."""

import csv
import inspect
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.stored import checked, read_run_config
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco_data import CocoData
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.plots import CURVES
from maskrcnn_lit.report.comparison.search import SearchRecord, read_record
from maskrcnn_lit.report.comparison.settings import Job
from maskrcnn_lit.runs.own_validation import check_own_validation
from maskrcnn_lit.runs.result import RunResult, config_fault, file_fault, read_result
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.storage.sealed import read_sealed_json

SWEEP = "sweep.json"

DATA_MODULE = "maskrcnn_lit.data.datamodule.CocoDataModule"
PLAIN = "maskrcnn_lit.data.coco_data.CocoData"

SHOWN = {"epoch", *CURVES}  # columns of metrics.csv: others can be hundreds of megabytes


class Runs(NamedTuple):
    """questions, commands: of the sweeps among the sources, if they have any; searches: those of
    them that chose their jobs.
    """

    jobs: list[Job]
    questions: list[str]
    commands: list[list[str]]
    notes: list[str]
    searches: list[SearchRecord]


def read_runs(sources: Sequence[Path]) -> Runs:
    """Every run in or under `sources`, and the jobs of their sweeps that have none.

    Raises:
        UserError: a source does not exist, or none has a run.
    """
    runs = Runs([], [], [], [], [])
    for source in sources:
        if not source.is_dir():
            raise UserError(
                f"{source} is not a folder: give run folders, or folders of runs, runs=[DIR,DIR]"
            )
        folders = [Path(file).parent for file in _results(source)]
        name = source.name or str(source.resolve())
        homes = sorted({source, *(folder.parent for folder in folders if folder != source)})
        runs.jobs.extend(
            replace(_job(folder, str(folder.relative_to(source)), runs.notes), source=name)
            for folder in folders
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
            f"no run in {', '.join(map(str, sources))}: give the folder of a sweep or of runs, "
            "which have a "
            "result.json each"
        )
    return runs._replace(jobs=_named(runs.jobs))


def _leave_out(runs: Runs, source: Path) -> None:
    """Drop runs that never started, unless they are jobs of a sweep; add a note if the source
    itself is one.
    """
    for job in [job for job in runs.jobs if _never_began(job)]:
        runs.jobs.remove(job)
        message = [note for note in runs.notes if note.startswith(f"{job.name} is left out: ")]
        runs.notes[:] = [note for note in runs.notes if note not in message]
        if job.folder == source:
            why = f": {job.result.error}" if job.result.error else ""
            runs.notes.append(f"{source} is left out, since it never started{why}")


def _never_began(job: Job) -> bool:
    """Whether the run ended before its first step and does not belong to a sweep."""
    if job.folder is None or job.result.status == "finished" or job.result.data:
        return False
    try:
        read_result(job.folder / "result.json")
    except UserError:  # a damaged run is reported
        return False
    swept = (job.folder.parent / SWEEP).is_file()
    return not swept and not job.curves and last_checkpoint(job.folder) is None


def validation_index(job: Job) -> AnnotationIndex:
    """The validation images of `job`, by its config, as they are on the disk: nothing is written.

    Raises:
        UserError: they cannot be read, or are not those that the run recorded.
    """
    node = dict(job.config.get("data") or {})
    node |= {"train": node.get("val"), "prepare": None}  # not read, not prepared
    try:
        stored = checked({"data": _without_loaders(node)}, where=f"config.yaml of {job.name}")
        data: CocoData = build(stored.data)
        data.setup("validate")
        if job.folder is not None:
            check_own_validation(job.folder, data, "")
    except OSError as error:
        raise UserError(str(error)) from error
    if data.val_index is None:
        raise RuntimeError("setup leaves a validation index")
    return data.val_index


def _without_loaders(data: dict[str, Any]) -> dict[str, Any]:
    """The config of a `CocoData`, which needs no Lightning, in place of that of our data module."""
    if data.get("_target_") != DATA_MODULE:
        return data
    taken = inspect.signature(CocoData).parameters
    return {name: value for name, value in data.items() if name in taken} | {"_target_": PLAIN}


def _results(source: Path) -> Iterator[str]:
    """Every result.json below `source`, ordered by path; the inside of a run is not searched."""
    for folder, names, files in os.walk(source):
        if "result.json" in files:
            names.clear()
            yield os.path.join(folder, "result.json")
        names.sort()


def _job(folder: Path, name: str, notes: list[str]) -> Job:
    """The job of a run folder. A run with damaged or missing files counts as failed, is not
    compared, and gets a note.
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


def _curves(file: Path) -> list[dict[str, float]]:
    """A row for each epoch of a metrics.csv: the means of the columns SHOWN, without an incomplete
    last line. Raises OSError, ValueError or csv.Error for a damaged file.
    """
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = csv.reader(line for line in lines if line.endswith("\n"))
    names = next(rows, [])
    shown = [(i, name) for i, name in enumerate(names) if name in SHOWN]
    epochs: dict[float, dict[str, list[float]]] = {}
    for row in rows:
        if len(row) > len(names):
            raise ValueError("a line has more values than the first has names")
        numbers = [float(value) if value else None for value in row]
        values = {name: x for i, name in shown if i < len(row) and (x := numbers[i]) is not None}
        epoch = epochs.setdefault(values.pop("epoch", math.nan), {})
        for name, value in values.items():
            epoch.setdefault(name, []).append(value)
    return [
        {"epoch": epoch, **{name: math.fsum(some) / len(some) for name, some in columns.items()}}
        for epoch, columns in epochs.items()
        if not math.isnan(epoch)
    ]


def _add_sweep(runs: Runs, folder: Path) -> None:
    """Add the content of `folder`'s sweep.json: question, command, the order of the jobs, and jobs
    without a folder.
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
        record = read_record(sweep["search"], folder, runs.jobs) if "search" in sweep else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / SWEEP} cannot be read ({error!r}): run the sweep again, or remove the file"
        ) from None
    if record is not None:
        runs.searches.append(record)
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
    """Make the names unique: a run given as a source is named by its folder, duplicate names become
    full paths.
    """
    plain = [
        replace(job, name=job.folder.name) if job.folder and job.name == "." else job
        for job in jobs
    ]
    counts = Counter(job.name for job in plain)
    return [
        replace(job, name=str(job.folder)) if counts[job.name] > 1 and job.folder else job
        for job in plain
    ]
