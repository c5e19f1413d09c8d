"""Expands the command line of a sweep into jobs with names and folders."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import compose, show
from maskrcnn_lit.config.overrides import as_path, assign, is_sweep, parse, parse_any
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.folder import freeze_config

LONGEST_NAME = 120  # characters


class Job(NamedTuple):
    """name: the varied options, `backbone=resnet50,seed=1`; overrides: the command line of the job;
    config: the run's config, except for the classes of the data.
    """

    name: str
    overrides: list[str]
    run_dir: Path
    config: DictConfig


class Sweep(NamedTuple):
    """folder: contains the runs, the log files and sweep.json; question: of the experiment;
    options: the sweep entries of the config.
    """

    folder: Path
    question: str | None
    jobs: list[Job]
    options: DictConfig


def read_sweep(overrides: list[str]) -> Sweep:
    """Expand `overrides` into jobs: all combinations of options with several values, as in Hydra's
    basic sweeper.

    An experiment adds its grid; the user's overrides win. All jobs are composed here, so mistakes
    are reported before the first job starts.
    """
    typed = read_typed(overrides)
    options, several = typed.options, typed.several
    combinations = _combinations(typed.overrides)
    varied = [key for key in combinations[0] if len({c[key] for c in combinations}) > 1]
    folder = typed.folder((combinations, options.sweep_scale))
    jobs = []
    for combination in combinations:
        title = job_name({key: combination[key] for key in varied})
        texts = [f"{key}={value}" for key, value in combination.items()]
        run_dir = folder / title
        config = compose("train", [*texts, assign("run_dir", run_dir)])
        if several and config.sweep.grid:
            raise UserError(
                f"{combination['experiment']} has its own grid: sweep one such experiment at a time"
            )
        jobs.append(Job(title, texts, run_dir, freeze_config(config)))
    return Sweep(folder, options.question, jobs, options)


class Typed(NamedTuple):
    """The parts of a command line. options: the sweep entries of the config; overrides: those of
    the jobs, the experiment and its grid first; experiment: its override, in a list, or [];
    several: whether that has several values.
    """

    options: DictConfig
    overrides: list[str]
    experiment: list[str]
    several: bool

    def folder(self, content: Any) -> Path:
        """The folder of the sweep: the same for the same command, of which `content` is all that
        decides on its jobs.
        """
        named = self.experiment and not self.several
        name = str(parse(self.experiment[0]).value()) if named else "sweep"
        digest = hashlib.sha256(repr(content).encode()).hexdigest()[:8]
        return Path(self.options.sweep_dir or f"outputs/sweeps/{name}-{digest}")


def read_typed(overrides: list[str]) -> Typed:
    """Divide the command line of a sweep; UserError for options that a sweep cannot have."""
    own = [text for text in overrides if is_sweep([text])]
    others = [text for text in overrides if not is_sweep([text])]
    for name in ("run_dir", "resume"):
        if any(text.startswith(f"{name}=") for text in others):
            raise UserError(
                f"{name} sets the folder of one run, but a sweep has many: use "
                f"sweep_dir={name.upper()} instead"
            )
    experiment = [text for text in others if text.startswith("experiment=")][-1:]
    several = bool(experiment) and parse_any(experiment[0]).is_sweep_override()
    options = show("train", [*([] if several else experiment), *own])  # the jobs need more
    return Typed(options, [*experiment, *of_experiment(options), *others], experiment, several)


def of_experiment(options: DictConfig) -> list[str]:
    """The grid of the experiment, as overrides."""
    sweep: Any = OmegaConf.to_container(options.sweep)
    grid, fixed = sweep["grid"], {}
    if options.sweep_scale == "demo":
        grid, fixed = grid | sweep["demo"]["grid"], sweep["demo"]["options"]
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep.grid.{name} is {values!r}; expected a list of values")
    return [
        *(f"{name}={_text(value)}" for name, value in fixed.items()),
        *(f"{name}={','.join(map(_text, values))}" for name, values in grid.items()),
    ]


def _combinations(texts: list[str]) -> list[dict[str, str]]:
    """Option -> value, for each job; the later of two overrides of one option counts."""
    latest: dict[str, Override] = {}
    for text in texts:
        # a comma separates values, unless the text is an existing path
        override = parse_any(as_path(text) if is_one_value(text) else text)
        if override.is_delete():
            raise UserError(
                f"'{text}' removes an option, which is not possible in a sweep: set it to null"
            )
        latest.pop(override.key_or_group, None)
        latest[override.key_or_group] = override
    try:
        jobs = BasicSweeper.split_arguments(list(latest.values()), None)[0]
    except HydraException as error:
        raise UserError(f"{error}: list the values, NAME=A,B,C") from error
    return [dict(text.split("=", 1) for text in job) for job in dict.fromkeys(map(tuple, jobs))]


def is_one_value(text: str) -> bool:
    """Whether the commas in an override do not separate values: it is an existing path."""
    return "," not in text or os.path.exists(os.path.expanduser(text.partition("=")[2]))


def job_name(values: dict[str, str]) -> str:
    """The folder name of a job. Options are shortened to their last part if that is unique."""
    last = [key.rsplit(".", 1)[-1] for key in values]
    parts = [
        f"{short if last.count(short) == 1 else key}={value}"
        for key, short, value in zip(values, last, values.values(), strict=True)
    ]
    full_name = ",".join(parts) or "run"
    plain = re.sub(r"[^\w.,=+-]", "-", full_name, flags=re.ASCII)
    if plain == full_name and len(plain) <= LONGEST_NAME:
        return plain
    return f"{plain[:LONGEST_NAME]}-{hashlib.sha256(full_name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    """A yaml value in Hydra's override grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str):
        return str(value)
    plain = re.fullmatch(r"[\w./+-]+", value, re.ASCII) and parse(f"x={value}").value() == value
    return value if plain else "'" + value.replace("'", "\\'") + "'"
