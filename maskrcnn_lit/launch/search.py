"""`maskrcnn-lit train -m sweep.search=tpe`: a search, whose jobs are chosen one after the other by
what the earlier ones reached.

The trials are in one file (study.py), everything else in the run folders, as in a sweep. The same
command again goes on: a trial that had not ended runs again with its values, and resumes from its
last checkpoint; a failed one is tried once more.
"""

import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from maskrcnn_lit.callbacks.prune import read_rungs
from maskrcnn_lit.config.compose import build
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.evaluation.goals import METRIC, front, goal_values
from maskrcnn_lit.launch.backends import Command
from maskrcnn_lit.launch.grid import Job
from maskrcnn_lit.launch.space import Search, is_search, read_search, shown_part
from maskrcnn_lit.launch.study import Study, Trial
from maskrcnn_lit.launch.sweep import (
    check_devices,
    check_same,
    ending,
    job_command,
    job_result,
    outcome,
    status,
    stopped_as_interrupted,
)
from maskrcnn_lit.launch.sweep_progress import SweepProgress, job_log
from maskrcnn_lit.runs.folder import LOCK
from maskrcnn_lit.runs.result import RunResult, read_result, write_result
from maskrcnn_lit.storage.files import locked
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json, write_sealed_json

__all__ = ["is_search", "run"]

AT_ONCE = 4  # jobs of a search in SLURM's queue, unless launcher.at_once says otherwise

ATTEMPTS = 3  # of a job whose process is killed, before it counts as failed

IN_A_ROW = 5  # failed trials that end the search


def run(overrides: list[str]) -> int:
    """Run the search of the command line `overrides`; return the exit code: 1 if a job or the
    report failed.
    """
    search = read_search(overrides)
    # every choice and both ends of every range, so that mistakes are reported before a job starts
    check_devices(search.probes, search.options)
    launcher = search.options.launcher
    if OmegaConf.select(launcher, "at_once", default=0) is None:
        launcher.at_once = AT_ONCE
    launch = build(launcher)
    search.folder.mkdir(parents=True, exist_ok=True)
    with stopped_as_interrupted(), locked(search.folder / LOCK, wait=False) as free:
        if not free:
            raise UserError(
                f"{search.folder} is in use by another process of this search: wait until it has "
                "ended"
            )
        _check_folder(search)
        if search.options.sweep.plan_only:
            print(_plan(search, []), flush=True)
            return 0
        driver = Driver(search, overrides)
        print(_plan(search, driver.study.trials()), flush=True)
        print(f"logs of the jobs: {search.folder / 'logs'}", flush=True)
        try:
            driver.run(launch)
            driver.write(importance=True)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command to continue") from None
        code = ending(search.folder, driver.counted_jobs())
        print("\n".join(_best(search, driver.study.trials())))
        return code


class Driver:
    """Starts the trials of a search and records how they end."""

    def __init__(self, search: Search, overrides: list[str]) -> None:
        self.search = search
        self.command = ["maskrcnn-lit", "train", "-m", *overrides]
        options = search.options
        self.study = Study(
            search.folder, search.space, search.goals, search.method, int(options.seed)
        )
        self.limit = int(options.sweep.trials)
        self._jobs: dict[int, Job] = {}
        self._attempts: dict[int, int] = {}
        self._failed_in_a_row = 0
        self._again: deque[Trial] = deque()
        for trial in self.study.trials():
            runs = trial.state == "running"
            self._jobs[trial.number] = search.job(trial.number, trial.params, composed=runs)
            if runs:
                check_same(self._jobs[trial.number])
                self._again.append(trial)
        self._retries = deque(self._not_repeated())

    def run(self, launch: Any) -> None:
        """Run trials until there are as many as asked for."""
        log = partial(job_log, self.search.folder)
        with SweepProgress([], log, {}, total=self.limit) as progress:
            ran = True
            while ran:  # a job that was killed while the last ones ran is started again
                ran = False
                for name, code in launch(self._commands(progress)):
                    ran = True
                    progress.ended(name)
                    print(self._ended(name, code), flush=True)

    def counted_jobs(self) -> list[Job]:
        """The jobs of all trials but those that failed and were repeated."""
        trials = self.study.trials()
        repeated = {trial.retry_of for trial in trials}
        return [self._jobs[trial.number] for trial in trials if trial.number not in repeated]

    def write(self, importance: bool = False) -> None:
        """Write sweep.json, the description for the report and for `callbacks/prune.py`."""
        trials = self.study.trials()
        jobs = [self._jobs[trial.number] for trial in trials]
        described = self.search.described | {
            "limit": self.limit,
            "trials": [trial._asdict() for trial in trials],
            "importance": self.study.importance() if importance else {},
        }
        message = {
            "command": self.command,
            "question": self.search.question,
            "jobs": [{"name": job.name, "overrides": job.overrides} for job in jobs],
            "search": described,
        }
        write_sealed_json(self.search.folder / "sweep.json", message)

    def _commands(self, progress: SweepProgress) -> Iterator[Command]:
        """The next jobs, each chosen when it can start."""
        while (trial := self._next()) is not None:
            job = self._jobs[trial.number]
            self.write()
            self._forget_failure(job)
            if job.name not in progress.names:
                progress.names.append(job.name)
            yield job_command(self.search.folder, job)

    def _next(self) -> Trial | None:
        if self._again:
            return self._again.popleft()
        if self._failed_in_a_row >= IN_A_ROW:
            return None
        if len(self.counted_jobs()) < self.limit and (params := self.study.suggest()) is not None:
            return self._add(params)
        if self._retries:  # last, so that they do not change what is suggested
            failed = self._retries.popleft()
            return self._add(failed.params, failed.number)
        return None

    def _add(self, params: dict[str, Any], retry_of: int | None = None) -> Trial:
        number = len(self.study.trials())
        job = self.search.job(number, params)
        self._jobs[number] = job
        return self.study.add(job.name, params, retry_of)

    def _not_repeated(self) -> list[Trial]:
        """The failed trials that are to be tried once more."""
        trials = self.study.trials()
        repeated = {trial.retry_of for trial in trials}
        return [
            trial for trial in trials if trial.state == "failed" and trial.number not in repeated
        ]

    def _forget_failure(self, job: Job) -> None:
        """Remove the outcome of a job that runs again."""
        if status(job.run_dir) in ("failed", "interrupted"):
            result = read_result(job.run_dir / "result.json")
            result.error = None
            write_result(job.run_dir / "result.json", result)

    def _ended(self, name: str, code: int) -> str:
        """Record that a job has ended; a sentence on it."""
        number = next(n for n, job in self._jobs.items() if job.name == name)
        job, trial = self._jobs[number], self.study.trials()[number]
        # as recorded: a process that was killed leaves "running"
        killed = code < 0 or code == 130 or status(job.run_dir) in ("running", "interrupted")
        result = job_result(job, code, job_log(self.search.folder, name))
        self._attempts[number] = self._attempts.get(number, 0) + 1
        text = f"[{number + 1}/{max(self.limit, number + 1)}] {name}: {outcome(result)}"
        if result.status == "pruned":
            self.study.end(trial, "pruned", validations=self._validations(job))
        elif result.status == "finished":
            return f"{text}{self._scored(trial, result)}"
        elif killed and self._attempts[number] < ATTEMPTS:
            self._again.append(trial)
            return f"{text}; it starts again"
        else:
            self._fail(trial)
            return text
        self._failed_in_a_row = 0
        return text

    def _scored(self, trial: Trial, result: RunResult) -> str:
        """Record a finished trial; the values of its goals for a sentence."""
        goals = self.search.goals
        values = goal_values(goals, result.metrics, result.cost)
        missing = [goal.name for goal, value in zip(goals, values, strict=True) if value != value]
        if missing:
            self._fail(trial)
            measured = sorted(name for name in result.metrics if name.startswith(METRIC))
            return f"; it has no {' and no '.join(missing)}, but {', '.join(measured)}"
        self._failed_in_a_row = 0
        self.study.end(trial, "complete", values)
        return "".join(
            f", {goal.name} {value:.4g}"
            for goal, value in zip(goals, values, strict=True)
            if goal.name not in ("val/mask_ap", "val/box_ap")
        )

    def _fail(self, trial: Trial) -> None:
        self.study.end(trial, "failed")
        self._failed_in_a_row += 1

    def _validations(self, job: Job) -> list[float]:
        """The first goal at each validation of a pruned job."""
        return [values[0] for values in read_rungs(job.run_dir) if values]


def _check_folder(search: Search) -> None:
    """Raise UserError if the folder has another sweep or search."""
    file = search.folder / "sweep.json"
    try:
        before = read_sealed_json(file)
    except FileNotFoundError:
        return
    except (OSError, DamagedFileError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): remove it, and run the same command"
        ) from None
    there = before.get("search")
    if there is None:
        raise UserError(
            f"{search.folder} contains a sweep without a search: give another sweep_dir"
        )
    for name, value in _plain(search.described).items():
        if there.get(name) != value:
            raise UserError(
                f"{search.folder} contains a search with another {name} ({there.get(name)}; now "
                f"{value}): give another sweep_dir"
            )


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plan(search: Search, trials: Sequence[Trial]) -> str:
    """What is searched, printed before it starts."""
    sweep = search.options.sweep
    ended = sum(trial.state != "running" for trial in trials)
    lines = [
        f"search {search.folder}: {sweep.search}, {plural(int(sweep.trials), 'trial')}, {ended} "
        f"ended; goals {', '.join(map(str, search.goals))}",
        *(f"  {name}: {shown_part(part)}" for name, part in search.space.items()),
    ]
    if sweep.prune:
        lines.append(
            f"  pruning: 1 of {sweep.prune_keep} goes on after {sweep.prune_first}, "
            f"{sweep.prune_first * sweep.prune_keep}, ... validations"
        )
    return "\n".join(lines)


def _best(search: Search, trials: Sequence[Trial]) -> list[str]:
    """The best trial, or the Pareto front."""
    known = [trial for trial in trials if trial.values is not None]
    if not known:
        return ["no trial has finished"]
    best = front([trial.values or [] for trial in known], search.goals)
    title = "best" if len(search.goals) == 1 else "Pareto front"
    lines = [f"{title} of {plural(len(known), 'finished trial')}:"]
    for i in best:
        pairs = zip(search.goals, known[i].values or [], strict=True)
        values = ", ".join(f"{goal.name} {value:.4g}" for goal, value in pairs)
        folder = shlex.quote(str(search.folder / known[i].name))
        lines.append(f"  {values}: {folder}")
    return lines
