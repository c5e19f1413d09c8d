"""The options of a search and their ranges, from the command line: `optimizer.lr=log(1e-5,1e-2)`,
`backbone=resnet50,mobilenet_v3_large`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.overrides import as_path, assign, parse_any, suggest
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.goals import METRIC, Goal, read_goals
from maskrcnn_lit.launch.grid import Job, is_one_value, job_name, read_typed
from maskrcnn_lit.runs.folder import freeze_config
from maskrcnn_lit.training.monitor import OF_MASKS, default_metric, has_masks

# NAME=RANGE(low,high) of a search, in Hydra's grammar.
RANGES = {
    "log": "tag(log, interval({low},{high}))",
    "uniform": "interval({low},{high})",
    "int": "int(interval({low},{high}))",
    "int_log": "int(tag(log, interval({low},{high})))",
}

# Functions of Hydra's grammar that give several values.
_OF_HYDRA = ("choice", "interval", "range", "tag", "shuffle", "sort", "glob")

Value = str | int | float  # of an option in a trial; a text is in Hydra's grammar


class Choices(NamedTuple):
    """A list of values, in Hydra's grammar."""

    values: tuple[str, ...]


class Range(NamedTuple):
    """All numbers from `low` to `high`. log: uniform in the logarithm; whole: integers alone."""

    low: float
    high: float
    log: bool
    whole: bool


Space = dict[str, Choices | Range]


class Search(NamedTuple):
    """folder: contains the runs, the log files and the study; question: of the experiment; options:
    the sweep entries of the config; fixed: the overrides of every trial; space: the searched
    options.
    """

    folder: Path
    question: str | None
    options: DictConfig
    fixed: list[str]
    space: Space
    goals: list[Goal]

    @property
    def probes(self) -> list[Job]:
        """A job with each choice, and with each end of each range."""
        ends = {name: _ends(part) for name, part in self.space.items()}
        first = {name: values[0] for name, values in ends.items()}
        others = [{name: value} for name, values in ends.items() for value in values[1:]]
        return [self.job(0, first | other) for other in ({}, *others)]

    @property
    def method(self) -> str:
        return str(self.options.sweep.search)

    @property
    def described(self) -> dict[str, Any]:
        """All that decides on the trials but their number, as plain data."""
        sweep = self.options.sweep
        return {
            "method": self.method,
            "goals": [str(goal) for goal in self.goals],
            "prune": [sweep.prune_first, sweep.prune_keep] if sweep.prune else None,
            "space": {name: part._asdict() for name, part in self.space.items()},
            "fixed": self.fixed,
            "seed": self.options.seed,
        }

    def job(self, number: int, params: dict[str, Value], *, composed: bool = True) -> Job:
        """The job of a trial; without `composed` its config is empty."""
        name = f"{number:03d},{job_name({key: _short(value) for key, value in params.items()})}"
        texts = [*self.fixed, *(f"{key}={value}" for key, value in params.items())]
        if self.options.sweep.prune:
            texts.append(_pruning(self))
        if not composed:
            return Job(name, texts, self.folder / name, OmegaConf.create())
        config = compose("train", [*texts, assign("run_dir", self.folder / name)])
        return Job(name, texts, self.folder / name, freeze_config(config))


def is_search(overrides: list[str]) -> bool:
    """Whether the command line of a sweep asks for a search."""
    return read_typed(overrides).options.sweep.search is not None


def read_search(overrides: list[str]) -> Search:
    """Read the command line of a search; `Search.probes` reports mistakes in its values.

    Raises:
        UserError: an unknown option, range or goal, or nothing to search.
    """
    typed = read_typed(overrides)
    sweep = typed.options.sweep
    latest: dict[str, Override] = {}
    for text in typed.overrides:
        override = _parsed(text)
        if override.is_delete():
            raise UserError(
                f"'{text}' removes an option, which is not possible in a search: set it to null"
            )
        latest.pop(override.key_or_group, None)
        latest[override.key_or_group] = override
    space, fixed = _divided(latest)
    masks = _all_have_masks(fixed, space)
    goals = read_goals([default_metric(masks)] if sweep.goals is None else sweep.goals)
    for goal in goals:
        if not masks and goal.name.startswith(OF_MASKS):
            raise UserError(
                f"sweep.goals has {goal}, but a model of the search has no masks "
                "(model.mask_head=null): give val/box_ap:max in its place"
            )
    _check(space, goals, sweep)
    described = (fixed, space, goals, sweep.search, sweep.prune, typed.options.sweep_scale)
    search = Search(
        typed.folder(described), typed.options.question, typed.options, fixed, space, goals
    )
    seeds = [text.partition("=")[2] for text in fixed if text.startswith("seed=")]
    if seeds and seeds[-1].isdigit():
        search.options.seed = int(seeds[-1])
    return search


def _all_have_masks(fixed: Sequence[str], space: Space) -> bool:
    """Whether every model of a search makes masks. Ranges of numbers do not decide on that."""
    lists = {name: part.values for name, part in space.items() if isinstance(part, Choices)}
    first = {name: values[0] for name, values in lists.items()}
    decisive = [name for name in lists if name.startswith(("model", "experiment"))]
    choices = [{}, *({name: value} for name in decisive for value in lists[name])]
    return all(
        has_masks(compose("train", [*fixed, *(f"{k}={v}" for k, v in (first | choice).items())]))
        for choice in choices
    )


def _divided(latest: dict[str, Override]) -> tuple[Space, list[str]]:
    """The searched options, and the overrides of the others."""
    space: Space = {}
    fixed = []
    for name, override in latest.items():
        if (part := _part(override)) is None:
            fixed.append(str(override.input_line))
        elif isinstance(part, Choices) and len(part.values) == 1:
            fixed.append(f"{override.get_key_element()}={part.values[0]}")
        else:
            space[override.get_key_element()] = part
            if name == "seed":
                raise UserError(
                    "seed has several values, but a search tries each setting once: give one "
                    "seed, and train the best settings again with others"
                )
    return space, fixed


def _part(override: Override) -> Choices | Range | None:
    """The values of an override, None for a single one."""
    if not override.is_sweep_override():
        return None
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise UserError(f"'{override.input_line}' is empty: its first number must be lower")
        if "log" in value.tags and low <= 0:
            raise UserError(f"'{override.input_line}' must begin above 0, since it is logarithmic")
        return Range(low, high, "log" in value.tags, isinstance(low, int))
    if isinstance(value, RangeSweep) and value.step == 1 and isinstance(value.start, int):
        return Range(value.start, int(value.stop or 0) - 1, False, True)
    return Choices(tuple(dict.fromkeys(override.sweep_string_iterator())))


def _parsed(text: str) -> Override:
    """One override; the ranges of a search are written in Hydra's grammar."""
    name, _, value = text.partition("=")
    called = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", value)
    if called is None:
        return parse_any(as_path(text) if is_one_value(text) else text)
    function, inside = called[1], called[2].split(",")
    if function in RANGES and len(inside) == 2 and all(map(_is_number, inside)):
        low, high = (word.strip() for word in inside)
        return parse_any(f"{name}={RANGES[function].format(low=low, high=high)}")
    if function in RANGES and not inside[0].strip().startswith(_OF_HYDRA):
        raise UserError(f"'{text}' needs two numbers: {name}={function}(low,high)")
    if function not in (*_OF_HYDRA, "int", "float", "str", "bool", "json_str"):
        raise UserError(
            f"'{text}' has the unknown range {function}(...){suggest(function, RANGES)}; a search "
            f"has {', '.join(f'{known}(low,high)' for known in RANGES)}, and lists A,B,C"
        )
    return parse_any(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check(space: Space, goals: Sequence[Goal], sweep: DictConfig) -> None:
    if not space:
        raise UserError(
            f"sweep.search={sweep.search} has nothing to search: give an option a range, "
            "'optimizer.lr=log(1e-5,1e-2)', or several values, backbone=resnet18,resnet50"
        )
    for name, part in space.items():
        if sweep.search == "grid" and isinstance(part, Range) and not part.whole:
            raise UserError(
                f"sweep.search=grid cannot try every number from {part.low:g} to {part.high:g}: "
                f"list the values, {name}=A,B,C, or use sweep.search=random"
            )
    if sweep.prune and not any(goal.name.startswith(METRIC) for goal in goals):
        raise UserError(
            f"sweep.prune=true needs a metric of the validation among the goals, but sweep.goals "
            f"has only {', '.join(goal.name for goal in goals)}: add val/mask_ap:max, or "
            "val/box_ap:max without masks"
        )


def _ends(part: Choices | Range) -> list[Value]:
    if isinstance(part, Choices):
        return list(part.values)
    return [part.low, part.high]


def _pruning(search: Search) -> str:
    """The override that makes a job compare itself with the others."""
    sweep = search.options.sweep
    goals = ",".join(f'"{goal}"' for goal in search.goals)
    return (
        "+callbacks.prune={_target_: maskrcnn_lit.callbacks.prune.SuccessiveHalving, "
        f"goals: [{goals}], first: {sweep.prune_first}, keep: {sweep.prune_keep}}}"
    )


def _short(value: Value) -> str:
    """A value in a name."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shown_part(part: Choices | Range) -> str:
    """Values of an option in words."""
    if isinstance(part, Choices):
        return ", ".join(part.values)
    kind = "whole numbers " if part.whole else ""
    return f"{kind}{part.low:g} to {part.high:g}{', logarithmic' if part.log else ''}"
