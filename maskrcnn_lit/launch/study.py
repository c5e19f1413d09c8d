"""The memory of a search: an Optuna study in one file of its folder.

Only the driver of the search writes the file, and each step of a trial is one line: a trial appears
with all its values, and ends with its result. So a driver killed at any moment leaves no trial
without values, and no lock that another would wait for. `optuna.study.Study.ask` would write a line
for the trial and one for each value.
"""

import datetime
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_lit.evaluation.goals import Goal
from maskrcnn_lit.launch.space import Choices, Range, Space, Value
from maskrcnn_lit.storage.files import drop_incomplete_line
from maskrcnn_lit.storage.packages import import_package

JOURNAL = "search.journal"  # the file, in the folder of the search

DIGITS = 4  # significant digits of a value from a range

MOST_TRIES = 20  # suggestions for a trial that is not like an earlier one


FEWEST = 4  # trials of which importance is computed

NAME, RETRY = "name", "retry_of"  # what a trial is stored with


class Trial(NamedTuple):
    """number: from 0; state: running, complete, pruned or failed; values: of the goals, if
    complete; validations: of the first goal, at each validation of a pruned trial; retry_of: the
    number of the failed trial with the same values that it repeats. started, ended: ISO 8601.
    """

    number: int
    name: str
    state: str
    params: dict[str, Value]
    values: list[float] | None
    validations: list[float]
    retry_of: int | None
    started: str | None
    ended: str | None


class Study:
    """The trials of a search.

    Args:
        folder: of the search; it must be locked by this process.
        method: tpe, random or grid.
        seed: with the number of a trial, it decides on the values of that trial: for one job at a
            time they are the same however often the driver was killed.

    Raises: UserError: optuna is not installed.
    """

    def __init__(
        self, folder: Path, space: Space, goals: Sequence[Goal], method: str, seed: int
    ) -> None:
        self.optuna = _optuna()
        self.space, self.goals, self.method, self.seed = space, goals, method, seed
        file = folder / JOURNAL
        drop_incomplete_line(file)
        journal = self.optuna.storages.journal
        backend = journal.JournalFileBackend(str(file), lock_obj=_no_lock(journal))
        with _quiet():
            self._study = self.optuna.create_study(
                storage=self.optuna.storages.JournalStorage(backend),
                study_name="search",
                directions=self._directions(),
                load_if_exists=True,
            )
        self._distributions = {name: self._distribution(part) for name, part in space.items()}

    def trials(self) -> list[Trial]:
        """All trials, in the order of their numbers."""
        return [_trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def suggest(self) -> dict[str, Value] | None:
        """The values of the next trial; None if all have been tried."""
        tried = [trial.params for trial in self.trials()]
        if self.method == "grid":
            return next((params for params in self._grid() if params not in tried), None)
        if self._count() <= len({str(sorted(params.items())) for params in tried}):
            return None
        for attempt in range(MOST_TRIES):
            params = self._sampled(len(tried), attempt)
            if params not in tried:
                break
        return params

    def add(self, name: str, params: Mapping[str, Value], retry_of: int | None = None) -> Trial:
        """Start a trial."""
        attributes = {NAME: name} | ({} if retry_of is None else {RETRY: retry_of})
        self._study.add_trial(
            self.optuna.trial.FrozenTrial(
                number=-1,
                trial_id=-1,
                state=self.optuna.trial.TrialState.RUNNING,
                value=None,
                datetime_start=datetime.datetime.now(),
                datetime_complete=None,
                params=dict(params),
                distributions=self._distributions,
                user_attrs=attributes,
                system_attrs={},
                intermediate_values={},
            )
        )
        return self.trials()[-1]

    def end(
        self,
        trial: Trial,
        state: str,
        values: Sequence[float] = (),
        validations: Sequence[float] = (),
    ) -> None:
        """End a running trial as "complete" with `values`, as "pruned" with its `validations` so
        far, or as "failed".
        """
        number = self._study.get_trials(deepcopy=False)[trial.number]._trial_id
        storage = self._study._storage
        for step, value in enumerate(validations):
            if not math.isnan(value):
                storage.set_trial_intermediate_value(number, step, value)
        states = self.optuna.trial.TrialState
        named = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        storage.set_trial_state_values(number, named[state], list(values) or None)

    def importance(self) -> dict[str, dict[str, float]]:
        """Goal -> option -> the share of the goal's variance that the option explains (fANOVA,
        Hutter et al. 2014), over complete and pruned trials; a pruned one counts with its last
        validation. Goals with too few trials or only one value are missing.
        """
        shares: dict[str, dict[str, float]] = {}
        for i, goal in enumerate(self.goals):
            scored = [(trial, _value(trial, i)) for trial in self.trials()]
            known = [(trial, value) for trial, value in scored if value is not None]
            if len(known) < FEWEST or len({value for _, value in known}) == 1:
                continue
            memory = self.optuna.create_study(direction="maximize" if goal.rises else "minimize")
            for trial, value in known:
                memory.add_trial(
                    self.optuna.trial.create_trial(
                        params=trial.params, distributions=self._distributions, value=value
                    )
                )
            evaluator = self.optuna.importance.FanovaImportanceEvaluator(seed=self.seed)
            with _quiet():
                found = self.optuna.importance.get_param_importances(memory, evaluator=evaluator)
            shares[goal.name] = {name: float(share) for name, share in found.items()}
        return shares

    def _directions(self) -> list[str]:
        return ["maximize" if goal.rises else "minimize" for goal in self.goals]

    def _distribution(self, part: Choices | Range) -> Any:
        kinds = self.optuna.distributions
        if isinstance(part, Choices):
            return kinds.CategoricalDistribution(part.values)
        if part.whole:
            return kinds.IntDistribution(int(part.low), int(part.high), log=part.log)
        return kinds.FloatDistribution(part.low, part.high, log=part.log)

    def _sampled(self, number: int, attempt: int) -> dict[str, Value]:
        """Values that the sampler suggests, in a copy of the study: this writes nothing."""
        state = np.random.SeedSequence([self.seed, number, attempt]).generate_state(1)
        seed = int(state[0]) % 2**31
        with _quiet():
            samplers = self.optuna.samplers
            sampler = (
                samplers.RandomSampler(seed=seed)
                if self.method == "random"
                else samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            )
            memory = self.optuna.create_study(sampler=sampler, directions=self._directions())
            memory.add_trials(self._for_sampler())
            params = memory.ask(self._distributions).params
        return {name: _rounded(value, self.space[name]) for name, value in params.items()}

    def _for_sampler(self) -> list[Any]:
        """The trials; with several goals the pruned ones without their validations, which TPE
        refuses there.
        """
        trials = self._study.get_trials(deepcopy=True)
        for trial in trials if len(self.goals) > 1 else ():
            trial.intermediate_values = {}
        return list(trials)

    def _grid(self) -> Iterator[dict[str, Value]]:
        """All combinations, the last option varies fastest."""
        for values in itertools.product(*map(_listed, self.space.values())):
            yield dict(zip(self.space, values, strict=True))

    def _count(self) -> float:
        """The number of combinations."""
        finite = all(isinstance(part, Choices) or part.whole for part in self.space.values())
        return math.prod(map(_size, self.space.values())) if finite else math.inf


def _listed(part: Choices | Range) -> Sequence[Value]:
    return part.values if isinstance(part, Choices) else range(int(part.low), int(part.high) + 1)


def _size(part: Choices | Range) -> int:
    return len(part.values) if isinstance(part, Choices) else int(part.high) - int(part.low) + 1


def _rounded(value: Any, part: Choices | Range) -> Value:
    """A value of a trial, with few digits, in its range."""
    if isinstance(part, Choices):
        return str(value)
    if part.whole:
        return int(value)
    return float(min(max(float(f"{value:.{DIGITS}g}"), part.low), part.high))


def _value(trial: Trial, goal: int) -> float | None:
    """The value of a goal; of the first one also for a pruned trial."""
    if trial.values is not None:
        return trial.values[goal]
    return trial.validations[-1] if trial.validations and goal == 0 else None


def _trial(frozen: Any) -> Trial:
    states = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    steps = sorted(frozen.intermediate_values)
    times = frozen.datetime_start, frozen.datetime_complete
    started, ended = (time.isoformat(timespec="seconds") if time else None for time in times)
    return Trial(
        frozen.number,
        frozen.user_attrs[NAME],
        states[frozen.state.name],
        dict(frozen.params),
        None if frozen.values is None else list(frozen.values),
        [frozen.intermediate_values[step] for step in steps],
        frozen.user_attrs.get(RETRY),
        started,
        ended,
    )


def _optuna() -> Any:
    optuna = import_package("optuna", "search", "sweep.search")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _no_lock(journal: Any) -> Any:
    """A lock that is always free: the folder of the search is locked, and a file of a lock would
    outlive a killed process.
    """

    class Free(journal._file.BaseJournalFileLock):
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            """Do nothing."""

    return Free()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings on experimental parts and few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
