"""The section of a comparison on a search: what its trials reached and cost, and by which options.
It reads the plain data that the driver of the search left in sweep.json.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.goals import COST, Goal, front, read_goals
from maskrcnn_lit.evaluation.titles import TITLES
from maskrcnn_lit.report.comparison.settings import Job, endings
from maskrcnn_lit.report.format import number
from maskrcnn_lit.runs.costs import COSTS

FEW = 20  # complete and pruned trials below which importance is uncertain

Rows = list[list[str]]


@dataclass(frozen=True)
class Axis:
    """The values of an option of a search: a list of texts, or a range of numbers."""

    option: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False

    def share(self, value: Any) -> float:
        """The position of a value on the axis, from 0 to 1."""
        if self.choices:
            return self.choices.index(str(value)) / max(1, len(self.choices) - 1)
        low, high, own = self.low, self.high, float(value)
        if self.log:
            low, high, own = math.log(low), math.log(high), math.log(own)
        return (own - low) / (high - low)


@dataclass(frozen=True)
class Tried:
    """A trial. values: of the goals, NaN where unknown; those of a pruned trial are from its last
    validation. seconds: of training; validations: their number, of a pruned trial.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: tuple[float, ...]
    seconds: float | None
    validations: int


@dataclass(frozen=True)
class SearchRecord:
    """A search. importance: goal -> option -> share; folders: of its runs; wall_seconds: from the
    start of the first trial to the end of the last one, with the time between two commands.
    """

    method: str
    goals: tuple[Goal, ...]
    axes: tuple[Axis, ...]
    trials: tuple[Tried, ...]
    importance: Mapping[str, Mapping[str, float]]
    folders: frozenset[Path]
    wall_seconds: float | None

    @property
    def complete(self) -> list[Tried]:
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def pruned(self) -> list[Tried]:
        return [trial for trial in self.trials if trial.state == "pruned"]

    @property
    def scored(self) -> list[Tried]:
        """Complete and pruned trials with a value of the first goal."""
        known = (*self.complete, *self.pruned)
        return sorted(
            (trial for trial in known if not math.isnan(trial.values[0])), key=lambda t: t.number
        )

    @property
    def best(self) -> list[Tried]:
        """The best complete trial, or the Pareto front."""
        known = self.complete
        return [known[i] for i in front([trial.values for trial in known], self.goals)]

    @property
    def ranked_axes(self) -> list[Axis]:
        """The options, those that are most important for the first goal first."""
        shares = self.importance.get(self.goals[0].name, {})
        return sorted(self.axes, key=lambda axis: -shares.get(axis.option, 0.0))


def read_record(content: Mapping[str, Any], folder: Path, jobs: Sequence[Job]) -> SearchRecord:
    """The search in a sweep.json. Raises KeyError, TypeError or ValueError if it is damaged."""
    by_folder = {job.folder: job for job in jobs}
    goals = read_goals(content["goals"])
    trials = [
        _tried(trial, by_folder.get(folder / trial["name"]), goals) for trial in content["trials"]
    ]
    return SearchRecord(
        method=str(content["method"]),
        goals=tuple(goals),
        axes=tuple(_axis(name, part) for name, part in content["space"].items()),
        trials=tuple(trials),
        importance=content["importance"],
        folders=frozenset(folder / trial["name"] for trial in content["trials"]),
        wall_seconds=_wall(content["trials"]),
    )


def goal_title(goal: Goal) -> str:
    name = goal.name.partition("/")[2]
    return COSTS[name].title if goal.name.startswith(COST) else TITLES.get(name, name)


def goal_factor(goal: Goal) -> float:
    """From the unit of result.json to that of the title."""
    return COSTS[goal.name.removeprefix(COST)].factor if goal.name.startswith(COST) else 1.0


def shown_value(goal: Goal, value: float) -> str:
    digits = COSTS[goal.name.removeprefix(COST)].digits if goal.name.startswith(COST) else 3
    return "-" if math.isnan(value) else number(value * goal_factor(goal), digits)


def trial_rows(record: SearchRecord) -> tuple[list[str], Rows]:
    """Head and rows: every trial, the complete ones first, the best of them at the top."""
    best = {trial.number for trial in record.best}
    names = [axis.option for axis in record.axes]
    head = ["trial", "state", *map(goal_title, record.goals), *endings(names), "training, s"]
    order = {"complete": 0, "pruned": 1, "failed": 2}
    rows = []
    for trial in sorted(record.trials, key=lambda t: (order.get(t.state, 3), _rank(record, t))):
        state = trial.state
        if trial.number in best:
            state = "best" if len(record.goals) == 1 else "Pareto front"
        elif state == "pruned":
            state = f"pruned after {plural(trial.validations, 'validation')}"
        values = [shown_value(goal, v) for goal, v in zip(record.goals, trial.values, strict=True)]
        options = [str(trial.params[name]) for name in names]
        seconds = "-" if trial.seconds is None else f"{trial.seconds:.0f}"
        rows.append([str(trial.number), state, *values, *options, seconds])
    return head, rows


def search_sentences(record: SearchRecord) -> list[str]:
    """What the search found, cost and learned about its options."""
    return [*_found(record), *_cost(record), *_importance(record)]


def cost_rows_of(record: SearchRecord) -> tuple[list[str], Rows]:
    """Head and rows: trials and their training time by how they ended."""
    rows = []
    total = math.fsum(trial.seconds or 0 for trial in record.trials)
    for state in ("complete", "pruned", "failed", "running"):
        own = [trial for trial in record.trials if trial.state == state]
        seconds = math.fsum(trial.seconds or 0 for trial in own)
        if own:
            share = f"{seconds / total:.0%}" if total else "-"
            mean = f"{seconds / len(own):.0f}"
            rows.append([state, str(len(own)), f"{seconds:.0f}", mean, share])
    return ["trials", "number", "training, s", "each, s", "share"], rows


def _found(record: SearchRecord) -> Iterator[str]:
    best = record.best
    if not best:
        yield "No trial has finished."
        return
    known = f"{plural(len(record.complete), 'finished trial')} ({record.method})"
    if len(record.goals) == 1:
        (goal,) = record.goals
        yield (
            f"Of {known}, trial {best[0].number} has the best {goal_title(goal)}: "
            f"{shown_value(goal, best[0].values[0])}, with {_options(record, best[0])}."
        )
        return
    titles = " and ".join(goal_title(goal).partition(",")[0] for goal in record.goals)
    points = "; ".join(
        f"trial {trial.number} ({_values(record, trial)}; {_options(record, trial)})"
        for trial in best
    )
    yield f"Of {known}, the Pareto front of {titles} is {points}."


def _cost(record: SearchRecord) -> Iterator[str]:
    seconds = [trial.seconds or 0 for trial in record.trials]
    wall = (
        ""
        if record.wall_seconds is None
        else (f", {_hours(record.wall_seconds)} from the first start to the last end")
    )
    yield (
        f"The search cost {_hours(math.fsum(seconds))} of training in "
        f"{plural(len(record.trials), 'trial')}{wall}."
    )
    complete = sorted(trial.seconds for trial in record.complete if trial.seconds is not None)
    if record.pruned and complete:
        median = complete[len(complete) // 2]
        saved = math.fsum(max(0.0, median - (trial.seconds or 0)) for trial in record.pruned)
        yield (
            f"{plural(len(record.pruned), 'trial')} ended early. Each trained to its end, at the "
            f"median time of the finished ones, would have cost {_hours(saved)} more."
        )


def _importance(record: SearchRecord) -> Iterator[str]:
    for goal in record.goals:
        shares = record.importance.get(goal.name)
        if not shares or not any(shares.values()):
            continue
        parts = ", ".join(
            f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda e: -e[1])
        )
        few = f" These are few trials: {len(record.scored)}." if len(record.scored) < FEW else ""
        title = goal_title(goal).partition(",")[0]
        yield f"Share of the variance of {title} that an option explains (fANOVA): {parts}.{few}"


def _values(record: SearchRecord, trial: Tried) -> str:
    texts = []
    for goal, value in zip(record.goals, trial.values, strict=True):
        title, _, unit = goal_title(goal).partition(", ")
        texts.append(f"{title} {shown_value(goal, value)} {unit}".strip())
    return ", ".join(texts)


def _options(record: SearchRecord, trial: Tried) -> str:
    names = [axis.option for axis in record.axes]
    return ", ".join(
        f"{short}={trial.params[name]}" for short, name in zip(endings(names), names, strict=True)
    )


def _rank(record: SearchRecord, trial: Tried) -> float:
    value = trial.values[0]
    if math.isnan(value):
        return math.inf
    return -value if record.goals[0].rises else value


def _axis(name: str, part: Mapping[str, Any]) -> Axis:
    if "values" in part:
        return Axis(name, choices=tuple(map(str, part["values"])))
    low, high = float(part["low"]), float(part["high"])
    return Axis(name, low=low, high=high, log=bool(part["log"]), whole=bool(part["whole"]))


def _tried(trial: Mapping[str, Any], job: Job | None, goals: Sequence[Goal]) -> Tried:
    values = trial["values"]
    if values is None:
        last = trial["validations"][-1] if trial["validations"] else math.nan
        values = [last, *[math.nan] * (len(goals) - 1)]
    seconds = None if job is None else job.result.cost.get("seconds")
    return Tried(
        int(trial["number"]),
        str(trial["state"]),
        trial["params"],
        tuple(math.nan if value is None else float(value) for value in values),
        None if seconds is None else float(seconds),
        len(trial["validations"]),
    )


def _wall(trials: Sequence[Mapping[str, Any]]) -> float | None:
    ended = [datetime.fromisoformat(trial["ended"]) for trial in trials if trial["ended"]]
    started = [datetime.fromisoformat(trial["started"]) for trial in trials if trial["started"]]
    return (max(ended) - min(started)).total_seconds() if ended and started else None


def _hours(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
