"""Writes the report on many runs: reads them, scores their detections on common resamples of the
images.
"""

import hashlib
import logging
import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.bootstrap import Resampled, resample
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.evaluation.coco.results import read_results
from maskrcnn_lit.evaluation.coco.scores import match_all
from maskrcnn_lit.report.comparison.collect import read_runs, validation_index
from maskrcnn_lit.report.comparison.examples import Example, draw_examples
from maskrcnn_lit.report.comparison.page import (
    Ranked,
    Report,
    Searched,
    Tabled,
    build_markdown,
    build_page,
)
from maskrcnn_lit.report.comparison.pivot import Pivot, Request, csv_of, pivot, table_of
from maskrcnn_lit.report.comparison.pivot_plot import pivot_plot
from maskrcnn_lit.report.comparison.plots import plots_of
from maskrcnn_lit.report.comparison.search_plots import search_plots
from maskrcnn_lit.report.comparison.settings import (
    APS,
    Job,
    Ranking,
    Setting,
    limit,
    option_value,
    rankings,
)
from maskrcnn_lit.report.comparison.significance import compared
from maskrcnn_lit.report.comparison.tables import csv_text, curve_rows, latex
from maskrcnn_lit.report.format import csv_rows, number
from maskrcnn_lit.report.latex import REFERENCES, latex_table
from maskrcnn_lit.report.pictures import choose, image_reader
from maskrcnn_lit.report.theme import DARK, LIGHT, render, render_as
from maskrcnn_lit.runs.result import file_fault
from maskrcnn_lit.storage.files import atomic_write

_log = logging.getLogger(__name__)

IMAGES = 6  # number of drawn validation images

COLUMNS = 5  # number of runs side by side

KINDS = ("png", "pdf", "svg")  # of each plot

_VALIDATION = (
    "root",
    "val",
    "classes",
    "image_ids",
    "val_images",
    "subset",
    "keep_empty",
    "on_bad",
)  # of a config's data

_SAME = 1e-6  # maximum difference of the AP from detections.json and the one in result.json


def write_comparison(
    sources: Sequence[Path],
    out: Path,
    metric: str | None = None,
    table: Request | None = None,
    baselines: Sequence[Path] = (),
) -> Path:
    """Write report.html, report.md, results.csv, curves.csv, tables.tex, references.bib, and
    plots/NAME.png, .pdf and .svg of the runs in `sources` to `out`; return the path of the page.

    metric: ranks the runs, "val/mask_ap" or "val/box_ap"; None: mask AP, or box AP if some runs
        have no masks.
    table: of one more table, written as table.tex, table.csv and plots/table.*.
    baselines: run folders, whose settings are the baselines of their rankings.

    Raises:
        UserError: a source without runs, no run with `metric`, a `table` that cannot be made, or a
            folder of `baselines` that is none of the runs.
    """
    runs = read_runs(sources)
    notes = list(runs.notes)
    truths = _truths(runs.jobs, notes)
    jobs = [
        replace(job, truth=truths[job.name].digest) if job.name in truths else job
        for job in runs.jobs
    ]
    asked = None if table is None else pivot(jobs, table)
    ranked = []
    files: dict[str, bytes] = {}
    with_baselines = _with_baselines(_rankings(jobs, metric), baselines)
    for i, ranking in enumerate(with_baselines):
        resampled, examples = _against_truth(ranking, truths, notes)
        prefix, drawn = f"{i + 1}_" if i else "", {}
        searched = any(job.folder in record.folders for record in runs.searches for job in jobs)
        for name, plot in plots_of(ranking, varied_options=not searched).items():
            contents = render_as(KINDS, plot, ranking, LIGHT)
            drawn[name] = contents[0], render(plot, ranking, DARK)
            files |= _named(f"{prefix}{name}", contents)
        ranked.append(Ranked(ranking, resampled, drawn, examples, prefix))
    tabled = None
    if asked is not None:
        contents = render_as(KINDS, pivot_plot, asked, LIGHT)
        files |= _named("table", contents)
        tabled = Tabled(asked, (contents[0], render(pivot_plot, asked, DARK)))
        notes += asked.warnings
        for warning in asked.warnings:
            _log.warning(warning)
    searches = []
    for i, record in enumerate(runs.searches):
        prefix, drawn = f"{i + 1}_" if i else "", {}
        for name, draw in search_plots(record).items():
            contents = render_as(KINDS, draw, record, LIGHT)
            drawn[name] = contents[0], render(draw, record, DARK)
            files |= _named(f"{prefix}{name}", contents)
        searches.append(Searched(record, drawn, prefix))
    names = [source.name or str(source) for source in sources]
    report = Report(
        title=f"Comparison of {', '.join(names) if len(names) < 5 else f'{len(names)} folders'}",
        written=time.strftime("%Y-%m-%d %H:%M"),
        jobs=jobs,
        ranked=ranked,
        questions=list(dict.fromkeys(runs.questions)),
        commands=[shlex.join(words) for words in runs.commands],
        notes=notes,
        table=tabled,
        searches=searches,
    )
    _remove_old_plots(out, files)
    for name, content in files.items():
        atomic_write(out / "plots" / name, content)
    _write_table(out, asked)
    atomic_write(out / "results.csv", csv_text(jobs, report.rankings))
    atomic_write(out / "curves.csv", csv_rows(curve_rows(jobs)))
    atomic_write(out / "tables.tex", latex(report.rankings, report.numbers))
    atomic_write(out / "references.bib", REFERENCES.read_text(encoding="utf-8"))
    atomic_write(out / "report.md", build_markdown(report))
    atomic_write(out / "report.html", build_page(report))
    return out / "report.html"


def _named(name: str, contents: Sequence[bytes]) -> dict[str, bytes]:
    return {f"{name}.{kind}": content for kind, content in zip(KINDS, contents, strict=True)}


def _write_table(out: Path, table: Pivot | None) -> None:
    """Write table.tex and table.csv; without a table, remove those of an earlier report."""
    if table is None:
        for name in ("table.tex", "table.csv"):
            (out / name).unlink(missing_ok=True)
        return
    head, rows, bold = table_of(table)
    left = len(table.request.rows)
    text = latex_table(table.caption, head, rows, left=left, bold=bold)
    atomic_write(out / "table.tex", text)
    atomic_write(out / "table.csv", csv_rows(csv_of(table)))


def _rankings(jobs: Sequence[Job], metric: str | None) -> list[Ranking]:
    if metric is not None and not any(job.metric(metric) is not None for job in jobs):
        raise UserError(
            f"metric={metric.removeprefix('val/')}, but no run has a {APS[metric]}: leave "
            "metric out"
        )
    return rankings(jobs, metric)


def _with_baselines(rankings: Sequence[Ranking], folders: Sequence[Path]) -> list[Ranking]:
    """The rankings, with the settings of these run folders as baselines."""
    wanted = {folder.resolve(): folder for folder in folders}
    result = []
    for ranking in rankings:
        settings = {}
        for setting in ranking.settings:
            of_setting = {job.folder.resolve() for job in setting.jobs if job.folder is not None}
            if named := of_setting & wanted.keys():
                settings[setting.label] = setting
                wanted = {folder: name for folder, name in wanted.items() if folder not in named}
        if len(settings) > 1:
            raise UserError(
                f"baseline= names runs of several settings of one data set, {'; '.join(settings)}: "
                "give a run of one of them"
            )
        baseline = next(iter(settings.values()), None)
        if baseline is not None and not baseline.values(ranking.ap):
            raise UserError(
                f"baseline={baseline.jobs[0].folder} has no {APS[ranking.ap]}, by which the runs "
                "are ranked: use metric=box_ap, or give a run with masks"
            )
        result.append(replace(ranking, baseline=baseline))
    if wanted:
        raise UserError(
            f"baseline={next(iter(wanted.values()))} is none of the finished runs of runs=: give "
            "the folder of one of them"
        )
    return result


def _remove_old_plots(out: Path, names: Collection[str]) -> None:
    """Remove plots of an earlier report in `out` that are not in `names`."""
    report = out / "report.md"
    if report.is_file():
        old = set(re.findall(r"\]\(plots/([\w.-]+\.png)\)", report.read_text(errors="replace")))
        for name in old.difference(names):
            for kind in KINDS:
                (out / "plots" / name).with_suffix(f".{kind}").unlink(missing_ok=True)


class Truth(NamedTuple):
    """The validation images of a job: the COCO json, and its digest."""

    images: AnnotationIndex
    coco: dict[str, Any]
    digest: str


def _truths(jobs: Sequence[Job], notes: list[str]) -> dict[str, Truth]:
    """Job name -> validation data, for scored jobs with readable data; each data set is read
    once.
    """
    truths: dict[str, Truth] = {}
    cached: dict[str, Truth | None] = {}
    for job in jobs:
        if not job.scored:
            continue
        described = [option_value(job, f"data.{name}") for name in _VALIDATION]
        key = str([*described, job.result.data.get("val")])
        if key not in cached:
            try:
                cached[key] = _truth(validation_index(job))
            except UserError as error:
                cached[key] = None
                notes.append(
                    f"The validation images of {job.name} and similar jobs are neither drawn nor "
                    f"used for tests: {error}"
                )
        if (truth := cached[key]) is not None:
            truths[job.name] = truth
    return truths


def _truth(index: AnnotationIndex) -> Truth:
    coco = index.coco_ground_truth()
    objects = [
        (a["image_id"], a["category_id"], [float(x) for x in a["bbox"]])
        for a in coco["annotations"]
    ]
    return Truth(index, coco, hashlib.sha256(repr(sorted(objects)).encode()).hexdigest())


def _against_truth(
    ranking: Ranking, truths: dict[str, Truth], notes: list[str]
) -> tuple[dict[str, Resampled], list[Example]]:
    """AP on the resamples for each job with detections that is tested, and drawn examples for
    some: with many runs, the detections of most are not read.
    """
    drawn = {setting.jobs[0].name: setting.label for setting in _shown(ranking)}
    needed = drawn.keys() | {job.name for s in compared(ranking) for job in s.runs(ranking.ap)}
    known = [job for job in ranking.jobs if job.name in truths and job.name in needed]
    if not known:
        return {}, []
    truth = truths[known[0].name]
    ids = choose(truth.images.image_ids.tolist(), IMAGES, seed=0)
    detections: dict[str, list[dict[str, Any]]] = {}
    resampled = {}
    for job in known:
        try:
            file = _folder(job) / "detections.json"
            if unlike := file_fault(file, job.result):
                raise UserError(unlike)
            results = read_results(file)
            if job.metric(ranking.ap) is not None:
                matches = match_all(truth.coco, results, limit(job))
                resampled[job.name] = _resampled(job, ranking.ap, matches)
        except UserError as error:
            notes.append(f"{job.name} is neither drawn nor tested: {error}")
            continue
        if job.name in drawn:
            detections[job.name] = [entry for entry in results if entry["image_id"] in ids]
    runs = [(drawn[name], detections[name]) for name in drawn if name in detections]
    return resampled, draw_examples(ids, truth.coco, runs, image_reader(truth.images))


def _resampled(job: Job, ap: str, matches: Mapping[str, Matches]) -> Resampled:
    """AP on the resamples. UserError: detections.json does not match result.json."""
    kind = APS[ap].partition(" ")[0]
    one, recorded = resample(matches[kind]) if kind in matches else None, job.metric(ap)
    if one is None or recorded is None or abs(one.value - recorded) > _SAME:
        raise UserError(
            f"{APS[ap]} is {number(one.value if one else None, 6)} by its detections.json and "
            f"{number(recorded, 6)} by its result.json, so they are not of the same weights"
        )
    return one


def _shown(ranking: Ranking) -> list[Setting]:
    """The best setting of each backbone; with a single backbone, the best settings."""
    best: dict[Any, Setting] = {}
    for setting in ranking.settings:
        best.setdefault(option_value(setting.jobs[0], "backbone.name"), setting)
    return (list(best.values()) if len(best) > 1 else list(ranking.settings))[:COLUMNS]


def _folder(job: Job) -> Path:
    if job.folder is None:
        raise ValueError(f"{job.name} has no folder")
    return job.folder
