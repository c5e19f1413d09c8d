"""Ends runs of a search early: asynchronous successive halving (Li et al., "A System for Massively
Parallel Hyperparameter Tuning", 2020), decided by each run itself at its validations.

A run compares itself with the runs beside it that have been validated as often. It reads their
files, so the decision needs neither the driver of the search nor a server, and a run that is killed
and resumed decides the same again.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from maskrcnn_lit.errors import check_whole
from maskrcnn_lit.evaluation.goals import COST, METRIC, dominates, goal_values, read_goals
from maskrcnn_lit.measure.cost import count_parameters
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json
from maskrcnn_lit.training.monitor import monitored

RUNGS = "rungs.json"  # in a run folder: the goals at each validation so far

_log = logging.getLogger(__name__)


class SuccessiveHalving(Callback):
    """Ends the run after a validation that is not among the best of its search.

    The runs are compared after `first` validations, after `keep` times as many, and so on, but not
    at the last validation. At each of these rungs one of `keep` runs goes on: one than which fewer
    than n / `keep` of the n runs are better. Better is as good in every goal and better in one.
    Fewer than `keep` runs all go on.

    Args:
        goals: as in sweep.goals. Costs of training (cost/seconds) are not known early and do not
            count here.
        first: number of validations before the first comparison.
        keep: one of how many runs goes on.
    """

    def __init__(self, *, goals: Sequence[str], first: int = 1, keep: int = 3) -> None:
        check_whole(1, sweep__prune_first=first)
        check_whole(2, sweep__prune_keep=keep)
        self.goals = [goal for goal in read_goals(goals) if goal.early]
        self.first, self.keep = first, keep
        self.measure: Callable[[], dict[str, Any]] | None = None  # `inference_cost` of the model
        self.validations: list[list[float]] = []  # of the goals
        self.cost: dict[str, float] = {}
        self.pruned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.pruned  # resumed after the end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        names = [goal.name for goal in self.goals if goal.name.startswith(METRIC)]
        metrics = {name: monitored(trainer, name) for name in names}
        if not self.cost and trainer.is_global_zero:
            self.cost = self._measured(pl_module)
        self.validations.append(goal_values(self.goals, metrics, self.cost))
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        run_dir = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            self.pruned = not last and self._is_beaten(run_dir)
            content = {"goals": [str(goal) for goal in self.goals], "values": self.validations}
            write_json(run_dir / RUNGS, content)
        self.pruned = bool(trainer.strategy.broadcast(self.pruned))
        trainer.should_stop = trainer.should_stop or self.pruned

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics among the goals, at the last validation."""
        values = zip(self.goals, self.validations[-1], strict=True)
        return {goal.name: value for goal, value in values if goal.name.startswith(METRIC)}

    def _measured(self, module: LightningModule) -> dict[str, float]:
        """The costs among the goals."""
        names = [goal.name.removeprefix(COST) for goal in self.goals if goal.name.startswith(COST)]
        known: dict[str, Any] = dict(count_parameters(module.model))  # type: ignore[arg-type]
        if set(names) - known.keys() and self.measure is not None:
            known |= self.measure()  # Lightning restores the mode of training afterwards
        return {name: float(known.get(name, math.nan)) for name in names}

    def _is_beaten(self, run_dir: Path) -> bool:
        count = len(self.validations)
        if not is_rung(count, self.first, self.keep):
            return False
        others = [values[count - 1] for values in read_others(run_dir) if len(values) >= count]
        others = [values for values in others if len(values) == len(self.goals)]
        own = self.validations[-1]
        better = sum(dominates(values, own, self.goals) for values in others)
        runs = len(others) + 1
        beaten = runs >= self.keep and better >= max(1, runs // self.keep)
        if beaten:
            shown = ", ".join(
                f"{goal.name} {value:.4g}" for goal, value in zip(self.goals, own, strict=True)
            )
            _log.info(
                f"pruned after validation {count}: {better} of {runs} runs are better ({shown})"
            )
        return beaten

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations, "cost": self.cost, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = [list(values) for values in state_dict["validations"]]
        self.cost, self.pruned = dict(state_dict["cost"]), state_dict["pruned"]


def halving(trainer: Trainer) -> SuccessiveHalving | None:
    """The SuccessiveHalving of `trainer`, or None."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    return next((one for one in callbacks if isinstance(one, SuccessiveHalving)), None)


def is_rung(count: int, first: int, keep: int) -> bool:
    """Whether runs are compared after `count` validations."""
    rung = first
    while rung < count:
        rung *= keep
    return rung == count


def read_others(run_dir: Path) -> list[list[list[float]]]:
    """The goals at each validation of the other runs of the search of `run_dir`; none outside of a
    search.
    """
    try:
        jobs = read_sealed_json(run_dir.parent / "sweep.json")["jobs"]
        names = [str(job["name"]) for job in jobs]
    except (OSError, DamagedFileError, KeyError, TypeError):
        return []
    if run_dir.name not in names:
        return []
    return [read_rungs(run_dir.parent / name) for name in names if name != run_dir.name]


def read_rungs(run_dir: Path) -> list[list[float]]:
    """The goals at each validation of a run; none if it has no file, or a damaged one."""
    try:
        content: Mapping[str, Any] = json.loads((run_dir / RUNGS).read_text(encoding="utf-8"))
        return [
            [math.nan if value is None else float(value) for value in values]
            for values in content["values"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
