"""A table of runs for a paper: one option down, another across, a metric over the seeds in each
cell.

`rows` and `columns` name options, groups, or what else tells runs apart: `commit`, `source` (the
folder of `runs=` that a run is in), `data` (a digest of its validation data) or `seed`. A cell
has the finished runs with these values. They may differ in the seed alone.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from maskrcnn_lit.config.overrides import suggest
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.evaluation.t_test import CONFIDENCE, holm, mean, welch
from maskrcnn_lit.evaluation.titles import TITLES, metric_title
from maskrcnn_lit.report.comparison.settings import (
    LOCATIONS,
    Job,
    common_ap,
    endings,
    flat_config,
    limit,
    neutral,
    option,
    option_value,
)
from maskrcnn_lit.report.format import number
from maskrcnn_lit.runs.costs import COSTS
from maskrcnn_lit.training.monitor import falls

SEEDS = ("mean±std", "mean±ci", "mean", "n")  # what a cell shows

LEVEL = 0.05  # of the tests of a column together

NAMED = 4  # options, seeds or runs that a message names

SHORT = 12  # characters of a digest or commit

_RISING_COSTS = ("images_per_second", "inference_images_per_second")

_NOT_COMPARED = (*LOCATIONS, "seed", "data.cache_dir", "data.root", "data.workers")


@dataclass(frozen=True)
class Request:
    """What a table is to have. rows, columns: names of options; metrics: with several, each has
    its own columns; none: mask AP, or box AP if some runs have no masks; seeds: one of SEEDS.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    seeds: str = "mean±std"


@dataclass(frozen=True)
class Cell:
    """values: one for each seed, ordered by it; data: the digest of the validation data."""

    values: tuple[float, ...]
    seeds: tuple[int | None, ...]
    data: str

    @property
    def mean(self) -> float:
        return mean(self.values).value

    @property
    def std(self) -> float | None:
        """The standard deviation of the sample (n - 1); None for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval of the mean; None for a single seed."""
        ends = mean(self.values).interval
        return None if ends is None else (ends[1] - ends[0]) / 2


Key = tuple[str, ...]


@dataclass(frozen=True)
class Pivot:
    """rows, columns: their values in order; cells: (metric, row, column) -> Cell; missing ones have
    no runs. best: the cells that are significantly better than all others of their column.
    warnings: what a reader of the table must know.
    """

    request: Request
    rows: tuple[Key, ...]
    columns: tuple[Key, ...]
    cells: Mapping[tuple[str, Key, Key], Cell]
    best: frozenset[tuple[str, Key, Key]]
    caption: str
    warnings: tuple[str, ...]


def pivot(jobs: Sequence[Job], request: Request) -> Pivot:
    """The table of the finished jobs.

    Raises:
        UserError: an option or metric that no run has; a cell whose runs differ in more than the
            seed.
    """
    finished = [job for job in jobs if job.status == "finished"]
    asked = request.metrics or (common_ap(finished),)
    metrics = tuple(_metric(finished, name) for name in asked)
    for name in (*request.rows, *request.columns):
        _check_option(finished, name)
    groups: dict[tuple[Key, Key], list[Job]] = {}
    for job in finished:
        row = tuple(_value(job, name) for name in request.rows)
        column = tuple(_value(job, name) for name in request.columns)
        groups.setdefault((row, column), []).append(job)
    request = Request(request.rows, request.columns, metrics, request.seeds)
    repeated: list[str] = []
    cells = {}
    for (row, column), members in groups.items():
        repeated += _check_alike(members, request, (*row, *column))
        for metric in metrics:
            if (cell := _cell(members, metric)) is not None:
                cells[metric, row, column] = cell
    shown = [job for members in groups.values() for job in members]
    warnings = (*repeated, *_data_warnings(groups))
    best = _best(cells)
    return Pivot(
        request,
        _ordered(row for row, _ in groups),
        _ordered(column for _, column in groups),
        cells,
        best,
        _caption(request, shown, cells, best, warnings),
        warnings,
    )


def text_of(cell: Cell | None, metric: str, seeds: str) -> str:
    """What a cell shows: "0.312 ± 0.004", or "0.312" for a single seed; "-" without runs."""
    if cell is None:
        return "-"
    if seeds == "n":
        return str(len(cell.values))
    factor, digits = _unit(metric)
    spread = {"mean±std": cell.std, "mean±ci": cell.half, "mean": None}[seeds]
    middle = number(cell.mean * factor, digits)
    return middle if spread is None else f"{middle} ± {number(spread * factor, digits)}"


def title_of(metric: str) -> str:
    """The head of a column: "mask AP", "latency, ms", or the name of a metric of the user's."""
    if metric in COSTS:
        return COSTS[metric].title
    return metric_title(metric) if metric.removeprefix("val/") in TITLES else metric


def table_of(table: Pivot) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Head, rows, and the (row, column) of the best cells."""
    request = table.request
    names = [*request.rows]
    head = endings(names)
    several = len(request.metrics) > 1
    for metric in request.metrics:
        for column in table.columns:
            text = column_title(request, column)
            parts = [title_of(metric)] * (several or not text) + [text] * bool(text)
            head.append(", ".join(parts))
    rows, bold = [], set()
    for i, row in enumerate(table.rows):
        line = list(row)
        for metric in request.metrics:
            for column in table.columns:
                if (metric, row, column) in table.best:
                    bold.add((i, len(line)))
                line.append(text_of(table.cells.get((metric, row, column)), metric, request.seeds))
        rows.append(line)
    return head, rows, bold


def column_title(request: Request, column: Key) -> str:
    """ "train_images=1000"; a group, a commit or a source is named by its value alone."""
    names = zip(request.columns, endings(request.columns), column, strict=True)
    return ", ".join(f"{end}={value}" if "." in name else value for name, end, value in names)


def csv_of(table: Pivot) -> list[dict[str, Any]]:
    """A row for each cell with runs: its values in full precision, in the units of result.json."""
    request = table.request
    rows: list[dict[str, Any]] = []
    for metric in request.metrics:
        for row in table.rows:
            for column in table.columns:
                if (cell := table.cells.get((metric, row, column))) is None:
                    continue
                names = (*request.rows, *request.columns)
                options: dict[str, Any] = dict(zip(names, (*row, *column), strict=True))
                rows.append(
                    options
                    | {
                        "metric": metric,
                        "n": len(cell.values),
                        "mean": cell.mean,
                        "std": cell.std,
                        "ci95_half": cell.half,
                        "best": int((metric, row, column) in table.best),
                        "values": " ".join(map(repr, cell.values)),
                        "seeds": " ".join(map(str, cell.seeds)),
                        "data": cell.data,
                    }
                )
    return rows


def lower_is_better(metric: str) -> bool:
    return metric not in _RISING_COSTS if metric in COSTS else falls(metric)


def _commit(job: Job) -> str:
    commit = job.result.commit or {}
    if not commit.get("hash"):
        return "unknown"
    return f"{str(commit['hash'])[:SHORT]}{' with changes' if commit.get('dirty') else ''}"


def data_digest(job: Job) -> str:
    """A digest of the validation data: ids of the images, classes, their files as far as they were
    recorded, and the objects where they could be read.
    """
    data = {key: value for key, value in job.result.data.items() if key not in ("train", "name")}
    text = json.dumps([data, job.truth, job.metric("val/images"), limit(job)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


_BESIDE: dict[str, Callable[[Job], str]] = {
    "commit": _commit,
    "data": data_digest,
    "seed": lambda job: str(job.seed),
    "source": lambda job: job.source,
}


def _value(job: Job, name: str) -> str:
    return _BESIDE[name](job) if name in _BESIDE else option(job, name)


def _check_option(jobs: Sequence[Job], name: str) -> None:
    if name in _BESIDE or any(option_value(job, name, missing=...) is not ... for job in jobs):
        return
    known = {part for job in jobs for key in flat_config(job.config) for part in _prefixes(key)}
    beside = ", ".join(_BESIDE)
    raise UserError(
        f"no run has the option '{name}'{suggest(name, [*sorted(known), *_BESIDE])}; rows and "
        f"columns take options of the runs, and {beside}"
    )


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _metric(jobs: Sequence[Job], name: str) -> str:
    """The full name of a metric or cost: "mask_ap" is "val/mask_ap"."""
    known = {key for job in jobs for key in job.result.metrics}
    known |= {key for job in jobs for key in job.result.cost if key in COSTS}
    for full in (name, f"val/{name}"):
        if full in known:
            return full
    raise UserError(
        f"metric={name}: no finished run has it{suggest(name, sorted(known))}; they have "
        f"{', '.join(sorted(known)) or 'none'}"
    )


def _cell(jobs: Sequence[Job], metric: str) -> Cell | None:
    """The last run of each seed counts."""
    values = {job.seed: value for job in jobs if (value := _number(job, metric)) is not None}
    if not values:
        return None
    seeds = sorted(values, key=lambda seed: (seed is None, seed or 0))
    return Cell(tuple(values[seed] for seed in seeds), tuple(seeds), data_digest(jobs[0]))


def _number(job: Job, metric: str) -> float | None:
    value = job.result.cost.get(metric) if metric in COSTS else job.metric(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def _unit(metric: str) -> tuple[float, int]:
    return (COSTS[metric].factor, COSTS[metric].digits) if metric in COSTS else (1.0, 3)


def _check_alike(jobs: Sequence[Job], request: Request, where: Key) -> list[str]:
    """Warnings on a cell. UserError: its runs differ in options, in the data, or, with one seed, in
    the commit.
    """
    named = (*request.rows, *request.columns)
    differing = _differing(jobs)
    for name, one in (("data", data_digest), ("commit", _commit)):
        twice = {job.seed for job, count in _by_seed(jobs) if count > 1}
        compared = jobs if name == "data" else [job for job in jobs if job.seed in twice]
        if len({one(job) for job in compared}) > 1:
            differing = [*differing, name]
    place = ", ".join(where)
    if differing:
        more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise UserError(
            f"the runs of {', '.join(named)}={place} differ in "
            f"{', '.join(differing[:NAMED])}{more}, so they have no common mean: add "
            f"{differing[0]} to rows or columns, or give other runs"
        )
    repeated = sorted({str(job.seed) for job, count in _by_seed(jobs) if count > 1})
    if not repeated:
        return []
    return [f"{place} was trained more than once with seed {', '.join(repeated)}: the last counts."]


def _by_seed(jobs: Sequence[Job]) -> list[tuple[Job, int]]:
    counts = Counter(job.seed for job in jobs)
    return [(job, counts[job.seed]) for job in jobs]


def _differing(jobs: Sequence[Job]) -> list[str]:
    """The options that differ among runs, apart from seeds that follow the run's, and paths."""
    if len(jobs) < 2:
        return []
    skipped = neutral(jobs)
    flat = [(job, flat_config(job.config)) for job in jobs]
    names = dict.fromkeys(name for _, config in flat for name in config)

    def shown(job: Job, config: Mapping[str, Any], name: str) -> str:
        value = config.get(name)
        if name.rpartition(".")[2] == "seed" and value == job.seed:
            return "its own"
        run_dir = str(config.get("run_dir"))
        return str(value).replace(run_dir, "") if isinstance(value, str) else repr(value)

    return [
        name
        for name in names
        if name not in _NOT_COMPARED
        and not name.startswith(skipped)
        and len({str(config.get(name)) for _, config in flat}) > 1
        and len({shown(*one, name) for one in flat}) > 1
    ]


def _data_warnings(groups: Mapping[tuple[Key, Key], Sequence[Job]]) -> list[str]:
    """A warning if the cells were scored on different validation data, or trained on different
    images where no option says so.
    """
    digests: dict[str, list[str]] = {}
    for (row, column), jobs in groups.items():
        digests.setdefault(data_digest(jobs[0]), []).append(", ".join((*row, *column)))
    if len(digests) < 2:
        return []
    parts = [
        f"{digest}: {'; '.join(places[:NAMED])}"
        f"{f' and {len(places) - NAMED} more' if len(places) > NAMED else ''}"
        for digest, places in digests.items()
    ]
    return [
        "The validation data differ, so numbers of different data are not comparable: "
        f"{' | '.join(parts)}."
    ]


def _best(cells: Mapping[tuple[str, Key, Key], Cell]) -> frozenset[tuple[str, Key, Key]]:
    """The best cell of each column, where it is significantly better than all others of the
    column by Welch's test over seeds with Holm's correction, on the same data.
    """
    best = set()
    in_order = sorted(cells, key=lambda key: (key[0], key[2]))
    for (metric, _), keys in groupby(in_order, key=lambda key: (key[0], key[2])):
        column = list(keys)
        sign = 1 if lower_is_better(metric) else -1
        first, *others = sorted(column, key=lambda key: sign * cells[key].mean)
        known = [cells[first], *(cells[key] for key in others)]
        tested = all(len(cell.values) > 1 for cell in known)
        if others and tested and len({cell.data for cell in known}) == 1:
            p = [welch(known[0].values, cell.values).p_value for cell in known[1:]]
            if all(holm(p, LEVEL)):
                best.add(first)
    return frozenset(best)


def _ordered(keys: Iterator[Key]) -> tuple[Key, ...]:
    """Distinct keys; a position with numbers alone is in their order, others as they came."""
    distinct = list(dict.fromkeys(keys))
    ranks = []
    for values in zip(*distinct, strict=True):
        appeared = {value: i for i, value in enumerate(dict.fromkeys(values))}
        numbers = [_as_number(value) for value in values]
        ranks.append([appeared[v] for v in values] if None in numbers else numbers)
    order = sorted(range(len(distinct)), key=lambda i: [rank[i] for rank in ranks])
    return tuple(distinct[i] for i in order)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _caption(
    request: Request,
    jobs: Sequence[Job],
    cells: Mapping[tuple[str, Key, Key], Cell],
    best: frozenset[tuple[str, Key, Key]],
    warnings: Sequence[str],
) -> str:
    """Metric, seeds, data, commits, what bold means: what a paper has to say of the table."""
    shows = {
        "mean±std": "mean ± standard deviation over seeds",
        "mean±ci": f"mean ± half of the {CONFIDENCE:.0%} interval of the mean (Student's t)",
        "mean": "mean over seeds",
        "n": "number of seeds",
    }[request.seeds].replace("%", " %")
    seeds = sorted({seed for cell in cells.values() for seed in cell.seeds if seed is not None})
    counts = sorted({len(cell.values) for cell in cells.values()})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    sentences = [
        f"{', '.join(map(title_of, request.metrics))}: {shows}.",
        f"{plural(len(jobs), 'run')}, {several} in a cell"
        f"{f', seeds {_listed(map(str, seeds))}' if seeds else ''}.",
    ]
    if counts[0] == 1 and "±" in request.seeds:
        sentences.append("A value without ± has one seed.")
    names = _listed(dict.fromkeys(str(job.result.data.get("name", "unknown")) for job in jobs))
    digests = _listed(dict.fromkeys(cell.data for cell in cells.values()))
    sentences.append(f"Validation data: {names}, digest {digests}.")
    sentences.append(f"Code: commit {_listed(dict.fromkeys(map(_commit, jobs)))}.")
    if request.seeds != "n":
        sentences.append(
            "Bold: significantly better than every other value of its column (Welch's t-test over "
            f"seeds, Holm's method, {LEVEL:g})."
            if best
            else "No value is bold: none was shown to be significantly better than every other of "
            f"its column (Welch's t-test over seeds, Holm's method, {LEVEL:g})."
        )
    return " ".join([*sentences, *warnings])


def _listed(values: Any) -> str:
    texts = list(values)
    more = f" and {len(texts) - 2 * NAMED} more" if len(texts) > 2 * NAMED else ""
    return ", ".join(texts[: 2 * NAMED]) + more
