"""Groups the runs of a comparison: varied options, settings (runs that differ only in the seed),
rankings.
"""

import json
import math
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from maskrcnn_lit.evaluation.t_test import Mean, mean
from maskrcnn_lit.evaluation.titles import metric_title
from maskrcnn_lit.runs.result import RunResult

NOT_RUN = "not run"  # the status of a job of a sweep that has no folder

# Runs are ranked by the first one that the most of them have.
APS = {name: metric_title(name) for name in ("val/mask_ap", "val/box_ap")}

# Shown in tables and plots over epochs.
SHOWN_APS = APS | {"val/cityscapes_ap": metric_title("val/cityscapes_ap")}

LOCATIONS = ("run_dir", "sweep_dir", "resume")  # paths, which do not affect the result

# Beginnings of options that differ from run to run and change nothing: how the batch was chosen
# (the batch itself counts), the search that might have ended the run, and how data were made (the
# data count; a resumed run makes none).
NEUTRAL = ("auto_batch", "callbacks.prune", "data.prepare")

# Options of the validations of a training.
VALIDATIONS = ("evaluation.every_n_epochs", "evaluation.images", "trainer.monitor")

_SKIPPED = (
    *LOCATIONS,
    "data.root",
    "data.cache_dir",
    "seed",
    "launcher",
    "sweep_scale",
    "sweep",
)


@dataclass(frozen=True)
class Job:
    """One run, or a job of a sweep that never ran (folder None).

    overrides: NAME=VALUE as typed after `train`; config: resolved, as plain dicts ({} if missing).
    curves: of each epoch the means of columns of metrics.csv.
    truth: a digest of the objects in its validation images; None if they could not be read.
    source: the folder of `runs=` that it is in.
    """

    name: str
    folder: Path | None
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    result: RunResult
    curves: tuple[Mapping[str, float], ...] = ()
    truth: str | None = None
    source: str = ""

    @property
    def status(self) -> str:
        return NOT_RUN if self.folder is None else self.result.status

    @property
    def seed(self) -> int | None:
        """The seed; for a job that never ran, from its overrides."""
        if self.result.seed is not None:
            return self.result.seed
        typed = _typed(self).get("seed", "")
        return self.config.get("seed", int(typed) if typed.isdigit() else None)

    def metric(self, name: str) -> float | None:
        """A metric of result.json, or None."""
        value = self.result.metrics.get(name)
        return None if value is None or math.isnan(value) else value

    @cached_property
    def over_epochs(self) -> dict[str, list[tuple[int, float]]]:
        """Column -> (epoch, mean of its values), see `plots.over_epochs`."""
        last = option_value(self, "trainer.epochs")
        values: dict[str, dict[int, list[float]]] = {}
        for row in self.curves:
            if "epoch" in row and (last is None or row["epoch"] < last):
                for column, value in row.items():
                    if column != "epoch":
                        epochs = values.setdefault(column, {})
                        epochs.setdefault(int(row["epoch"]) + 1, []).append(value)
        return {
            column: [(epoch, math.fsum(some) / len(some)) for epoch, some in sorted(epochs.items())]
            for column, epochs in values.items()
        }

    @property
    def scored(self) -> bool:
        """Whether the job has finished and has an AP."""
        return self.status == "finished" and any(self.metric(name) is not None for name in APS)


@dataclass(frozen=True)
class Setting:
    """Finished jobs that differ only in the seed. options: those that vary among the jobs of its
    ranking; label: its unique name in texts, or its letter where that would be too long.
    """

    jobs: tuple[Job, ...]
    options: Mapping[str, str]
    label: str

    def runs(self, metric: str) -> list[Job]:
        """The jobs with this metric, one per seed: the last of several with one seed."""
        return list({job.seed: job for job in self.jobs if job.metric(metric) is not None}.values())

    def values(self, metric: str) -> list[float]:
        """The values of the metric, one per seed."""
        return [value for job in self.runs(metric) if (value := job.metric(metric)) is not None]

    def mean(self, metric: str) -> Mean | None:
        values = self.values(metric)
        return mean(values) if values else None

    def cost(self, name: str) -> float | None:
        """The mean over the jobs that have this cost."""
        known = [value for job in self.jobs if (value := job.result.cost.get(name)) is not None]
        return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True)
class Ranking:
    """Settings scored on the same validation images, ranked by `ap`, best first.

    baseline: the setting that the others are tested against; None: the best one.
    """

    title: str
    settings: tuple[Setting, ...]
    ap: str
    baseline: Setting | None = None

    @property
    def jobs(self) -> list[Job]:
        return [job for setting in self.settings for job in setting.jobs]

    @property
    def ranked(self) -> tuple[Setting, ...]:
        """The settings that have the AP: a model without masks has no mask AP."""
        return tuple(setting for setting in self.settings if setting.values(self.ap))

    @property
    def letters(self) -> list[str]:
        """The letters of the settings in plots and tables."""
        return letters(len(self.settings))


def letters(count: int) -> list[str]:
    """A to Z, then AA, AB, ..."""
    names = list(string.ascii_uppercase)
    return [*names, *(a + b for a in names for b in names)][:count]


# Options in the label of a setting. With more, its letter in the table is its label.
MOST_NAMED = 4


def varying(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Option -> its value in each of `jobs`, for overrides that differ among the jobs, without the
    seed.
    """
    names = dict.fromkeys(name for job in jobs for name in _typed(job))
    skipped = (*_SKIPPED, *neutral(jobs))
    values_by_name = {
        name: [option(job, name) for job in jobs] for name in names if name not in skipped
    }
    return {name: values for name, values in values_by_name.items() if len(set(values)) > 1}


def neutral(jobs: Sequence[Job]) -> tuple[str, ...]:
    """NEUTRAL, and what decides on the validations of a training if nothing waits for them: the
    final weights, whose scores are compared, are the same.
    """
    waits = any(
        option_value(job, "trainer.patience") is not None
        or option_value(job, "optimizer.schedule") == "plateau"
        for job in jobs
    )
    return NEUTRAL if waits else (*NEUTRAL, *VALIDATIONS)


def option(job: Job, name: str) -> str:
    """The value of an option in a job: from its config or, for a group, from its overrides."""
    value = option_value(job, name, missing={})
    if isinstance(value, Mapping):
        return _typed(job).get(name, str(value.get("name", "default")))
    return "null" if value is None else str(value)


def option_value(job: Job, name: str, missing: Any = None) -> Any:
    """A value of the config, unformatted."""
    value: Any = job.config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return missing
        value = value[part]
    return value


def label(options: Mapping[str, str]) -> str:
    """The name of a setting in texts: "resnet50, train_images=1000"; a group is named by its
    choice.
    """
    called = zip(options, endings(options), options.values(), strict=True)
    return ", ".join(
        f"{ending}={value}" if "." in name else value for name, ending, value in called
    )


def endings(names: Collection[str]) -> list[str]:
    """The names of options in tables: the shortest unique ending of each."""

    def ending(name: str) -> str:
        parts = name.split(".")
        own = (".".join(parts[-count:]) for count in range(1, len(parts)))
        return next(
            (end for end in own if sum(f".{other}".endswith(f".{end}") for other in names) == 1),
            name,
        )

    return [ending(name) for name in names]


def settings(jobs: Sequence[Job], options: Mapping[str, Sequence[str]]) -> list[Setting]:
    """The settings of the scored jobs; `options`: the result of `varying` for these jobs."""
    alike: dict[str, list[int]] = {}
    keys = _without_seed([job for job in jobs if job.scored])
    positions = [i for i, job in enumerate(jobs) if job.scored]
    for i, key in zip(positions, keys, strict=True):
        alike.setdefault(key, []).append(i)
    groups = [
        (
            tuple(jobs[i] for i in group),
            {name: values[group[0]] for name, values in options.items()},
        )
        for group in alike.values()
    ]
    labels = [label(chosen) for _, chosen in groups]
    counts = Counter(labels)
    return [
        Setting(
            group,
            chosen,
            text if text and counts[text] == 1 else f"{text} {group[0].name}".strip(),
        )
        for (group, chosen), text in zip(groups, labels, strict=True)
    ]


def rankings(jobs: Sequence[Job], metric: str | None = None) -> list[Ranking]:
    """A ranking for each set of validation images, largest number of jobs first, by `metric` if
    available, else by `common_ap`.
    """
    scored = [job for job in jobs if job.scored]
    truths: dict[str, set[str | None]] = {}
    for job in scored:
        truths.setdefault(_images(job), set()).add(job.truth)
    groups: dict[tuple[str, str | None], list[Job]] = {}
    for job in scored:
        known = truths[_images(job)] - {
            None
        }  # if there is only one, jobs with unreadable images use it, too
        groups.setdefault((_images(job), job.truth if len(known) > 1 else None), []).append(job)
    ordered = sorted(groups.values(), key=lambda members: -len(members))
    titles = _titles(ordered)
    return [
        _ranking(members, title, metric) for members, title in zip(ordered, titles, strict=True)
    ]


def _ranking(jobs: Sequence[Job], title: str, metric: str | None) -> Ranking:
    ranked = settings(jobs, varying(jobs))
    if metric is not None and any(job.metric(metric) is not None for job in jobs):
        ap = metric
    else:
        ap = common_ap(jobs)
    order = sorted(ranked, key=lambda s: -(m.value if (m := s.mean(ap)) else -1))
    if order and len(order[0].options) > MOST_NAMED:
        order = [
            replace(setting, label=f"setting {letter}")
            for setting, letter in zip(order, letters(len(order)), strict=True)
        ]
    return Ranking(title, tuple(order), ap)


def common_ap(jobs: Sequence[Job]) -> str:
    """The AP that the most jobs have: mask AP, or box AP if some jobs have no masks."""
    return max(APS, key=lambda name: sum(job.metric(name) is not None for job in jobs))


def limit(job: Job) -> int:
    """The number of detections per image and class that count for AP."""
    return int((option_value(job, "metrics.max_detections") or [100])[-1])


def repeated_seeds(setting: Setting) -> list[int]:
    seeds = [job.seed for job in setting.jobs if job.seed is not None]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def pareto(points: Iterable[tuple[float, float]]) -> list[int]:
    """Positions of the Pareto-optimal (cost, score) points: no other is at least as good in both
    and better in one. Cheapest first.
    """
    known = list(points)
    front: list[int] = []
    for i in sorted(range(len(known)), key=lambda i: (known[i][0], -known[i][1])):
        if not front or known[i][1] > known[front[-1]][1] or known[i] == known[front[-1]]:
            front.append(i)
    return front


def _typed(job: Job) -> dict[str, str]:
    pairs = (text.lstrip("+").partition("=") for text in job.overrides if not text.startswith("~"))
    return {name: value.strip("'\"") for name, _, value in pairs}


def _without_seed(jobs: Sequence[Job]) -> list[str]:
    """A key for each job, equal for jobs whose configs differ only in the seed and output paths."""
    flat = [flat_config(job.config) for job in jobs]
    skipped = neutral(jobs)
    names = sorted({name for config in flat for name in config if not name.startswith(skipped)})
    names = [name for name in names if len({str(config.get(name)) for config in flat}) > 1]
    keys = []
    for job, config in zip(jobs, flat, strict=True):
        run_dir = str(config.get("run_dir"))
        values = {name: config.get(name) for name in names if run_dir not in str(config.get(name))}
        follows = {
            n for n, value in values.items() if n.rpartition(".")[2] == "seed" and value == job.seed
        }
        message = json.dumps(
            {n: value for n, value in values.items() if n not in follows}, default=str
        )
        keys.append(
            message if config else job.name
        )  # without a config, no other job counts as equal
    return keys


def flat_config(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of nested dicts."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= (
            flat_config(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def _images(job: Job) -> str:
    """A key of what two comparable APs must share: images, classes, number of detections that count
    (and the objects: see `Job.truth`).
    """
    data = {key: value for key, value in job.result.data.items() if key != "train"}
    return json.dumps([data, job.metric("val/images"), limit(job)], sort_keys=True, default=str)


def _titles(groups: Sequence[Sequence[Job]]) -> list[str]:
    """A title for each group of jobs with equal validation images. If several groups have data of
    one name, their titles add the data options that differ between them, or the seed, which may
    draw the images, or else a number.
    """
    titles = [_title(members[0]) for members in groups]
    repeated = {title for title, times in Counter(titles).items() if times > 1}
    for title in repeated:
        alike = [i for i, other in enumerate(titles) if other == title]
        apart = _what_differs([groups[i] for i in alike])
        for number, (i, text) in enumerate(zip(alike, apart, strict=True), 1):
            if text and apart.count(text) == 1:
                titles[i] = f"{title}, {text}"
            elif number > 1:
                titles[i] = f"{title} ({number})"
    return titles


def _what_differs(groups: Sequence[Sequence[Job]]) -> list[str]:
    """For each group, the data options that have one value in it, and another in other groups. If
    there are none, the group's seed.
    """
    texts: list[list[str]] = [[] for _ in groups]
    for name in varying([job for members in groups for job in members]):
        values = [{option(job, name) for job in members} for members in groups]
        if name.startswith("data.") and all(len(own) == 1 for own in values):
            for text, own in zip(texts, values, strict=True):
                text.append(f"{name.rpartition('.')[2]}={own.pop()}")
    seeds = [{job.seed for job in members} for members in groups]
    if not any(texts) and all(len(own) == 1 for own in seeds):
        return [f"seed={own.pop()}" for own in seeds]
    return [", ".join(text) for text in texts]


def _title(job: Job) -> str:
    count, name = job.metric("val/images"), job.result.data.get("name", "unknown data")
    return (
        f"{int(count):,} validation images of {name}"
        if count is not None
        else f"validation images of {name}"
    )
