"""The tables of a comparison: results.csv with all numbers of result.json, and formatted tables."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.config.overrides import LENGTH, assign
from maskrcnn_lit.evaluation.titles import FREQUENCY_COLUMNS, HIDDEN, metric_title
from maskrcnn_lit.report.comparison.plots import CURVES, over_epochs
from maskrcnn_lit.report.comparison.settings import (
    APS,
    LOCATIONS,
    SHOWN_APS,
    Job,
    Ranking,
    Setting,
    endings,
    option_value,
    varying,
)
from maskrcnn_lit.report.format import csv_rows, number
from maskrcnn_lit.report.latex import latex_table
from maskrcnn_lit.runs.costs import COSTS

METRICS = ("val/mask_ap", "val/mask_ap50", "val/box_ap", "val/box_ap50")

OFFICIAL = ("val/cityscapes_ap", "val/cityscapes_ap50")

Rows = list[list[str]]


def csv_text(jobs: Sequence[Job], rankings: Sequence[Ranking]) -> str:
    """A row for each job: varied options, status, scores with their intervals over images and, for
    its setting, over seeds, costs, and the command to train it again. Numbers have full precision
    and the units of result.json; missing ones are empty.
    """
    places = {
        job.name: (i + 1, letter, setting)
        for i, ranking in enumerate(rankings)
        for letter, setting in zip(ranking.letters, ranking.settings, strict=True)
        for job in setting.jobs
    }
    options = varying(jobs)
    official = any(job.metric(name) is not None for job in jobs for name in OFFICIAL)
    names = [*METRICS, *(OFFICIAL if official else ())]
    names += [*frequency_aps(jobs), *hidden_metrics(jobs)]
    accuracies = kinds(jobs)
    rows = []
    for i, job in enumerate(jobs):
        row: dict[str, Any] = {"job": i + 1, "name": job.name, "status": job.status}
        row |= {name: values[i] for name, values in options.items()} | {"seed": job.seed}
        row["images"], row["setting"], setting = places.get(job.name, (None, None, None))
        for name in names:
            row[_plain(name)] = job.metric(name)
            if name in SHOWN_APS:
                row |= _ends(f"{_plain(name)}_images", job.result.intervals.get(name))
                mean = setting.mean(name) if setting else None
                row[f"{_plain(name)}_seeds"] = mean.value if mean else None
                row |= _ends(f"{_plain(name)}_seeds", mean.interval if mean else None)
        row |= {
            _accuracy(kind): job.metric("val/roi_accuracy") if roi_boxes(job) == kind else None
            for kind in accuracies
        }
        row |= {name: job.result.cost.get(name) for name in (*COSTS, "device")}
        row |= {"error": job.result.error, "command": command(job)}
        row["parent"] = (job.result.parent or {}).get("run")
        rows.append(row)
    return csv_rows(rows)


def frequency_aps(jobs: Sequence[Job]) -> list[str]:
    """The AP of rare, common and frequent classes that a job has: those of data with frequencies,
    like LVIS.
    """
    names = [f"{ap}{key.removeprefix('ap')}" for ap in APS for key in FREQUENCY_COLUMNS]
    return [name for name in names if any(job.metric(name) is not None for job in jobs)]


def hidden_metrics(jobs: Sequence[Job]) -> list[str]:
    """The metrics of hidden, merged and split objects that a job has."""
    names = [f"val/{key}" for key in HIDDEN]
    return [name for name in names if any(job.metric(name) is not None for job in jobs)]


def hidden_rows(ranking: Ranking, numbers: Mapping[str, int]) -> tuple[list[str], Rows]:
    """Head and rows: the metrics of hidden, merged and split objects of each scored job; no rows if
    no job has them.
    """
    names = hidden_metrics(ranking.jobs)
    rows = [
        [str(numbers[job.name]), letter, *(number(job.metric(name)) for name in names)]
        for letter, setting in zip(ranking.letters, ranking.settings, strict=True)
        for job in setting.jobs
    ]
    return ["job", "setting", *map(metric_title, names)], rows if names else []


def curve_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """A row for each epoch of each job: the data of the plots over epochs."""
    rows = []
    for i, job in enumerate(jobs, start=1):
        epochs: dict[int, dict[str, Any]] = {}
        for column in CURVES:
            for epoch, value in over_epochs(job, column):
                epochs.setdefault(epoch, {"job": i, "name": job.name, "epoch": epoch})[column] = (
                    value
                )
        rows += [epochs[epoch] for epoch in sorted(epochs)]
    return rows


def latex(rankings: Sequence[Ranking], numbers: Mapping[str, int]) -> str:
    """The tables of settings and jobs in LaTeX."""
    return "\n".join(
        latex_table(f"{title}, {ranking.title}", *rows)
        for ranking in rankings
        for title, rows in (
            ("Settings", setting_rows(ranking)),
            ("Jobs", score_rows(ranking, numbers)),
        )
    )


def setting_rows(ranking: Ranking) -> tuple[list[str], Rows]:
    """Head and rows: each setting by its letter, best first, with means over its seeds."""
    options = list(ranking.settings[0].options)
    accuracies = kinds(ranking.jobs)
    aps = [name for name in SHOWN_APS if any(setting.values(name) for setting in ranking.settings)]
    head = ["", *endings(options), "seeds"]
    for name in aps:
        head.append(f"{SHOWN_APS[name]} (95 % over seeds)")
    head += [_accuracy(kind) for kind in accuracies]
    rows = []
    for letter, setting in zip(ranking.letters, ranking.settings, strict=True):
        seeds = max(len(setting.runs(name)) for name in aps)
        row = [letter, *setting.options.values(), str(seeds)]
        for name in aps:
            mean = setting.mean(name)
            row.append(_with_interval(mean.value, mean.interval) if mean else "-")
        rows.append([*row, *(number(_mean_accuracy(setting, kind)) for kind in accuracies)])
    return head, rows


def score_rows(ranking: Ranking, numbers: Mapping[str, int]) -> tuple[list[str], Rows]:
    """Head and rows: each scored job of a ranking by its number, with its intervals over images.
    Options come last, since a phone shows the first columns.
    """
    options = list(ranking.settings[0].options)
    aps = [name for name in SHOWN_APS if any(setting.values(name) for setting in ranking.settings)]
    accuracies = kinds(ranking.jobs)
    by_frequency = frequency_aps(ranking.jobs)
    head = ["job", "setting", "seed"]
    for name in aps:
        head += [f"{SHOWN_APS[name]} (95 % over images)", f"{SHOWN_APS[name]}50"]
    rows = []
    for letter, setting in zip(ranking.letters, ranking.settings, strict=True):
        for job in setting.jobs:
            row = [str(numbers[job.name]), letter, _seed(job)]
            for name in aps:
                row.append(_with_interval(job.metric(name), job.result.intervals.get(name)))
                row.append(number(job.metric(f"{name}50")))
            row += [number(job.metric(name)) for name in by_frequency]
            values = [
                job.metric("val/roi_accuracy") if roi_boxes(job) == kind else None
                for kind in accuracies
            ]
            rows.append([*row, *map(number, values), *setting.options.values()])
    head += map(metric_title, by_frequency)
    return [*head, *map(_accuracy, accuracies), *endings(options)], rows


def cost_rows(jobs: Sequence[Job]) -> tuple[list[str], Rows]:
    """Head and rows: the costs of each job that ran; unknown columns are left out."""
    ran = [(i + 1, job) for i, job in enumerate(jobs) if job.result.cost]
    known = [name for name in COSTS if any(job.result.cost.get(name) is not None for _, job in ran)]
    options = varying(jobs)
    head = ["job", *endings(options), "seed", *(COSTS[name].title for name in known)]
    rows = [
        [
            str(i),
            *(options[name][i - 1] for name in options),
            _seed(job),
            *(cost(job, name) for name in known),
        ]
        for i, job in ran
    ]
    return head, rows


def failure_rows(jobs: Sequence[Job]) -> tuple[list[str], Rows]:
    """Head and rows: the jobs that have not finished, and why."""
    rows = [
        [str(i + 1), job.name, job.status, reason(job)]
        for i, job in enumerate(jobs)
        if job.status != "finished"
    ]
    return ["job", "name", "status", "reason"], rows


def reason(job: Job) -> str:
    """Why a job has not finished."""
    if job.result.error:
        return job.result.error
    return {
        "not run": "not started: the sweep was stopped before",
        "pruned": "ended early by the search, since others were better",
        "running": "running or killed: continue it with its command or with resume",
        "interrupted": "interrupted: continue it with resume",
    }.get(job.status, "no reason was recorded")


def command(job: Job) -> str:
    """The command that trains a run with the same options in a new folder; a run that continued a
    finished one does so again.
    """
    named = [(text.lstrip("+").partition("=")[0], text) for text in job.overrides]
    left_out = (*LOCATIONS, "callbacks.prune")  # which compares a run with its search
    selected = [text for name, text in named if name not in left_out]
    if job.result.parent:
        resume = assign("resume", job.result.parent.get("run"))
        selected = [resume, *(text for name, text in named if name in LENGTH)]
    return shlex.join(["maskrcnn-lit", "train", *selected])


def kinds(jobs: Sequence[Job]) -> list[str]:
    """The definitions of roi_accuracy in these jobs: "all", "study" or both; each has its own
    column.
    """
    box_kinds = {roi_boxes(job) for job in jobs if job.metric("val/roi_accuracy") is not None}
    return sorted(box_kinds)


def roi_boxes(job: Job) -> str:
    return str(option_value(job, "metrics.roi_accuracy.boxes", "all"))


def cost(job: Job, name: str) -> str:
    value, entry = job.result.cost.get(name), COSTS[name]
    return number(None if value is None else float(value * entry.factor), entry.digits)


def interval(ends: Sequence[float | None] | None) -> str:
    if ends is None or None in ends:
        return "-"
    return f"{number(ends[0])} to {number(ends[1])}"


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table, with bars in cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |"
        for line in lines
    )


def _with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    message = interval(ends)
    return number(value) if message == "-" else f"{number(value)} ({message})"


def _mean_accuracy(setting: Setting, kind: str) -> float | None:
    mean = setting.mean("val/roi_accuracy")
    return mean.value if mean is not None and roi_boxes(setting.jobs[0]) == kind else None


def _ends(name: str, ends: Sequence[float | None] | None) -> dict[str, float | None]:
    low, high = ends or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _seed(job: Job) -> str:
    return "-" if job.seed is None else str(job.seed)


def _accuracy(kind: str) -> str:
    return "roi_accuracy" if kind == "all" else f"roi_accuracy_{kind}"


def _plain(metric: str) -> str:
    return metric.removeprefix("val/")
