"""The jobs of a sweep as its files show them: state, progress, best score so far, time left.

It reads what the driver of the sweep and the runs write (sweep.json, result.json, config.yaml,
metrics.csv, logs, locks), and writes nothing. The jobs may run in other processes or on other
machines. It does without torch, which takes seconds to load.
"""

import csv
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from maskrcnn_lit.config.durations import duration
from maskrcnn_lit.config.stored import read_run_config
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.evaluation.titles import TITLES
from maskrcnn_lit.launch.sweep_progress import Progress, job_log, read_progress
from maskrcnn_lit.runs.result import DONE, LOCK, read_result
from maskrcnn_lit.storage.files import is_locked
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json
from maskrcnn_lit.terminal.progress import StatusLines
from maskrcnn_lit.terminal.table import text_table
from maskrcnn_lit.training.monitor import default_metric, has_masks, is_better

SWEEP = "sweep.json"

METRIC = "val/"  # begins the names of metrics

# In the order of the table. A killed job has recorded that it runs, and no process has its lock.
STATES = ("running", "killed", "failed", "interrupted", "finished", "pruned", "waiting")

REASON = 200  # characters of why a job failed

T = TypeVar("T")


class Score(NamedTuple):
    """Of the metric, at a validation; epoch: from 1, if known."""

    value: float
    epoch: int | None


class Job(NamedTuple):
    """state: one of STATES; epoch: as "3/12"; best, last: None before the first validation; left:
    seconds; note: why it failed.
    """

    name: str
    state: str
    epoch: str = ""
    step: int | None = None
    steps: int | None = None
    best: Score | None = None
    last: Score | None = None
    left: float | None = None
    seconds: float | None = None
    note: str = ""


class View(NamedTuple):
    """driven: whether the sweep's own process runs, None: unknown or not a sweep; limit: of the
    jobs of a search, which are not all known yet; command: of the sweep.
    """

    folder: Path
    metric: str
    jobs: list[Job]
    driven: bool | None
    limit: int | None
    command: list[str]

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        going = any(job.state in ("running", "waiting") for job in self.jobs)
        return not going and not self.driven


class Sweep:
    """Reads the folder of a sweep, or any folder with runs in it, again and again; files that have
    not changed are read once.

    Args:
        metric: of the validation; None: the first goal of a search, else the `trainer.monitor` of a
            run, else mask AP, or box AP if a run has no masks.

    Raises: UserError: the folder does not exist, or has no runs.
    """

    def __init__(self, folder: Path, metric: str | None = None) -> None:
        self.folder = folder
        self.metric = f"{METRIC}{metric}" if metric in TITLES else metric
        self._files: dict[tuple[Path, str], tuple[Any, Any]] = {}
        if not folder.is_dir():
            raise UserError(f"sweep_dir={folder} is not a folder: give the folder of a sweep")

    def read(self) -> View:
        described = self._described()
        names = _job_names(described) if described else _run_names(self.folder)
        if not names and not described:
            raise UserError(
                f"sweep_dir={self.folder} has no {SWEEP} and no run: give the folder of a sweep"
            )
        metric = self.metric or self._metric(described, names)
        jobs = [self._job(name, metric) for name in names]
        search = described.get("search")
        limit = search.get("limit") if isinstance(search, Mapping) else None
        driven = is_locked(self.folder / LOCK) if described else None
        command = [str(word) for word in described.get("command") or []]
        return View(self.folder, metric, jobs, driven, limit, command)

    def _described(self) -> dict[str, Any]:
        """sweep.json; empty without one."""
        try:
            content: dict[str, Any] = read_sealed_json(self.folder / SWEEP)
            _job_names(content)
            return content
        except FileNotFoundError:
            return {}
        except (OSError, DamagedFileError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.folder / SWEEP} cannot be read ({error}): run the sweep again, or remove "
                "the file"
            ) from None

    def _metric(self, described: Mapping[str, Any], names: Iterable[str]) -> str:
        goals = (described.get("search") or {}).get("goals") or []
        goal = str(goals[0]).partition(":")[0] if goals else ""
        if goal.startswith(METRIC):
            return goal
        configs = [config for name in names if (config := self._config(self.folder / name))]
        monitors = [(config.get("trainer") or {}).get("monitor") for config in configs]
        named = next((monitor for monitor in monitors if monitor), None)
        return str(named or default_metric(all(map(has_masks, configs))))

    def _config(self, run_dir: Path) -> dict[str, Any]:
        """Of a run; empty if it cannot be read."""
        try:
            return self._once(run_dir / "config.yaml", "", lambda _: read_run_config(run_dir), {})
        except UserError:
            return {}

    def _job(self, name: str, metric: str) -> Job:
        run_dir = self.folder / name
        state, note, seconds = self._state(run_dir)
        file = run_dir / "metrics.csv"
        empty: tuple[dict[str, float], list[Score]] = {}, []
        row, scores = self._once(file, metric, lambda path: read_scores(path, metric), empty)
        counted = self._counted(run_dir, row)
        progress = read_progress(job_log(self.folder, name)) or counted
        if state in DONE and progress and counted:  # the last line in the log was a step before
            progress = counted._replace(steps=progress.steps)
        best = None
        for score in scores:
            if is_better(score.value, best.value if best else None, metric):
                best = score
        return Job(
            name=name if name != "." else self.folder.resolve().name,
            state=state,
            epoch=progress.epoch if progress else "",
            step=progress.step if progress else None,
            steps=(progress.steps or None) if progress else None,
            best=best,
            last=scores[-1] if scores else None,
            left=progress.left if progress and state == "running" else None,
            seconds=seconds,
            note=note,
        )

    def _state(self, run_dir: Path) -> tuple[str, str, float | None]:
        """One of STATES, the reason of a failure, and how long an ended run took."""
        try:
            result = read_result(run_dir / "result.json")
        except UserError as error:
            if (run_dir / "result.json").is_file():
                return "failed", str(error), None
            return ("running" if is_locked(run_dir / LOCK) else "waiting"), "", None
        reason = " ".join((result.error or "").split())[:REASON]
        if result.status in DONE:
            return result.status, "", result.cost.get("seconds")
        alive = is_locked(run_dir / LOCK)
        if alive:
            return "running", "", None
        if result.status == "running":
            # no locks on this file system: as it was recorded
            return ("running", "", None) if alive is None else ("killed", reason, None)
        return result.status, reason, None

    def _counted(self, run_dir: Path, row: Mapping[str, float]) -> Progress | None:
        """The progress of a run by the last row of its metrics.csv and its config, which do not
        know how long it takes: left is NaN, and steps 0 if the config has epochs alone.
        """
        if "step" not in row:
            return None
        trainer = self._config(run_dir).get("trainer") or {}
        epochs, steps = trainer.get("epochs"), trainer.get("steps")
        epoch = f"{int(row['epoch']) + 1}{f'/{epochs}' if epochs else ''}" if "epoch" in row else ""
        return Progress(epoch, int(row["step"]) + 1, int(steps or 0), left=math.nan)

    def _once(self, file: Path, key: str, read: Callable[[Path], T], missing: T) -> T:
        """What `read` makes of the file, again if that has changed; `missing` if it cannot be
        read.
        """
        try:
            stat = file.stat()
            stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
            known = self._files.get((file, key))
            if known is None or known[0] != stamp:
                known = stamp, read(file)
                self._files[file, key] = known
            value: T = known[1]
            return value
        except (OSError, ValueError, csv.Error):
            return missing


def _job_names(described: Mapping[str, Any]) -> list[str]:
    return [str(job["name"]) for job in described["jobs"]]


def _run_names(folder: Path) -> list[str]:
    """The run folders in or below `folder`, as paths from there; "." is the folder itself."""
    names = []
    for path, inside, files in os.walk(folder):
        if "result.json" in files:
            inside.clear()
            names.append(os.path.relpath(path, folder))
        inside.sort()
    return names


def read_scores(file: Path, metric: str) -> tuple[dict[str, float], list[Score]]:
    """Step and epoch of the last row of a metrics.csv, and the values of a metric in order, without
    an incomplete last line. The epoch of a validation is that of the training before it.

    Raises: OSError, ValueError, csv.Error: the file is missing or damaged.
    """
    last: dict[str, float] = {}
    scores = []
    with open(file, encoding="utf-8", newline="") as opened:
        rows = csv.DictReader(line for line in opened if line.endswith("\n"))
        for row in rows:
            last |= {name: float(row[name]) for name in ("step", "epoch") if row.get(name)}
            if row.get(metric):
                epoch = int(last["epoch"]) + 1 if "epoch" in last else None
                scores.append(Score(float(row[metric]), epoch))
    return last, [score for score in scores if not math.isnan(score.value)]


def remaining(jobs: Sequence[Job]) -> float | None:
    """Estimated seconds until all jobs have ended. The waiting ones count as the mean of those
    that have finished and of what the running ones will have taken, and as many run at a time as
    now. None: nothing runs, or a running job does not say.
    """
    running = [job for job in jobs if job.state == "running"]
    left = [job.left for job in running if job.left is not None and not math.isnan(job.left)]
    if not running or len(left) < len(running):
        return None
    lengths = [job.seconds for job in jobs if job.state == "finished" and job.seconds is not None]
    for job in running:
        if job.step and job.steps and job.left and job.step < job.steps:
            lengths.append(job.left * job.steps / (job.steps - job.step))
    waiting = sum(job.state == "waiting" for job in jobs)
    if waiting and not lengths:
        return None
    rest = waiting * sum(lengths) / len(lengths) if waiting else 0.0
    return max(max(left), (sum(left) + rest) / len(running))


def text(view: View, *, height: int | None = None) -> str:
    """Lines on a sweep and a table of its jobs; with `height` so many at most, and the jobs that do
    not fit are counted.
    """
    head = _head(view)
    title = TITLES.get(view.metric.removeprefix(METRIC), view.metric.removeprefix(METRIC))
    names = ["state", "epoch", "step", f"best {title}", "last", "left", "job"]
    jobs = sorted(view.jobs, key=lambda job: _order(job, view.metric))
    room = len(jobs) if height is None else max(1, height - len(head) - 2)
    shown = jobs if len(jobs) <= room else jobs[: max(1, room - 1)]
    lines = text_table(names, [_cells(job) for job in shown], text=(0, 6))
    if len(shown) < len(jobs):
        lines.append(f"and {len(jobs) - len(shown)} more: {_counts(jobs[len(shown) :])}")
    return "\n".join([*head, "", *lines][: height or None])


def _head(view: View) -> list[str]:
    total = max(len(view.jobs), view.limit or 0)
    lines = [str(view.folder), f"{plural(total, 'job')}: {_counts(view.jobs)}"]
    if total > len(view.jobs):
        lines[-1] += f", {total - len(view.jobs)} not yet chosen"
    leader = _leader(view)
    if leader is not None and leader.best is not None:
        epoch = "" if leader.best.epoch is None else f" in epoch {leader.best.epoch}"
        lines.append(f"best so far: {view.metric} {_shown(leader.best)}{epoch}, {leader.name}")
    left = remaining(view.jobs)
    if left is not None:
        more = " for the jobs so far" if total > len(view.jobs) else ""
        lines.append(f"about {duration(left)} left{more}")
    undone = [job for job in view.jobs if job.state not in (*DONE, "running")]
    if view.driven is False and (undone or total > len(view.jobs)) and view.command:
        lines.append(f"its own process has ended; to go on: {shlex.join(view.command)}")
    return lines


def _leader(view: View) -> Job | None:
    best: Job | None = None
    for job in view.jobs:
        before = best.best.value if best and best.best else None
        if job.best and is_better(job.best.value, before, view.metric):
            best = job
    return best


def _counts(jobs: Sequence[Job]) -> str:
    counts = Counter(job.state for job in jobs)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _order(job: Job, metric: str) -> tuple[int, float]:
    """By state, the best first."""
    if job.best is None:
        return STATES.index(job.state), math.inf
    rises = is_better(1.0, 0.0, metric)
    return STATES.index(job.state), -job.best.value if rises else job.best.value


def _cells(job: Job) -> list[str]:
    step = "" if job.step is None else f"{job.step}{f'/{job.steps}' if job.steps else ''}"
    left = "" if job.left is None or math.isnan(job.left) else duration(job.left)
    name = f"{job.name}: {job.note}" if job.note else job.name
    return [job.state, job.epoch, step, _shown(job.best), _shown(job.last), left, name]


def _shown(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.3f}"


def watch(
    folder: Path,
    *,
    metric: str | None = None,
    seconds: float = 2.0,
    once: bool = False,
    out: TextIO | None = None,
) -> None:
    """Show the jobs of a sweep in a terminal, again every `seconds`, until they have ended or
    Ctrl-C; with `once`, or in a file or a pipe, print them one time.

    Raises: UserError: see `Sweep`.
    """
    out = out or sys.stdout
    sweep = Sweep(folder, metric)
    view = sweep.read()
    lines = StatusLines(out, in_terminal=seconds)
    try:
        while lines.in_terminal and not once and not view.ended:
            lines.show(text(view, height=_height(out)))
            time.sleep(seconds)
            view = sweep.read()
    except KeyboardInterrupt:
        pass
    lines.print(text(view))


def _height(out: TextIO) -> int:
    """Lines of the terminal, without one for the cursor."""
    try:
        return max(2, os.get_terminal_size(out.fileno()).lines - 1)
    except (OSError, ValueError):
        return 23
