"""The progress of a sweep's jobs, read from their log files."""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TextIO

from maskrcnn_lit.config.durations import duration
from maskrcnn_lit.terminal.progress import StatusLines

_LINE = re.compile(r"^epoch (\S+)  step (\d+)/(\d+)  (\d+):(\d\d):(\d\d) left", re.MULTILINE)
_TAIL = 16_384  # bytes of a log file


class Progress(NamedTuple):
    """The progress of a job: epoch as "3/12", step, steps, remaining seconds."""

    epoch: str
    step: int
    steps: int
    left: float


def job_log(folder: Path, name: str) -> Path:
    """The log file of a job of the sweep in `folder`."""
    return folder / "logs" / f"{name}.txt"


def read_progress(log: Path) -> Progress | None:
    """The last progress in the job's log, or None."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    matches = _LINE.findall(text)
    if not matches:
        return None
    epoch, step, steps, hours, minutes, seconds = matches[-1]
    left = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
    return Progress(epoch, int(step), int(steps), float(left))


class SweepProgress:
    """Prints the progress of the running jobs and the remaining time of the sweep, while the block
    runs.

    In a terminal a line for each running job is updated every two seconds, elsewhere a line is
    written every minute.

    Args:
        names: of the jobs, in order. log: job name -> log file. seconds: job name -> estimated
            seconds of the job, if known.
        total: number of jobs, if more will be added to `names`.
    """

    def __init__(
        self,
        names: Sequence[str],
        log: Callable[[str], Path],
        seconds: Mapping[str, float],
        *,
        total: int | None = None,
        out: TextIO | None = None,
    ) -> None:
        self.names, self.log, self.seconds = list(names), log, seconds
        self.total = total
        self._lines = StatusLines(out, in_terminal=2.0, in_file=60.0)
        self._done: set[str] = set()
        self._began = time.time()
        self._shown = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "SweepProgress":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.clear()

    def ended(self, name: str) -> None:
        """Mark the job `name` as ended and clear the line, so that another can be printed."""
        self._done.add(name)
        self.clear()

    def clear(self) -> None:
        self._lines.clear()
        self._shown = ""

    def text(self) -> str:
        """The line on the running jobs; "" without progress yet."""
        waiting = [name for name in self.names if name not in self._done]
        running = {name: read_progress(self.log(name)) for name in waiting if self._runs(name)}
        parts = []
        for name, at in running.items():
            if at is not None:
                number = self.names.index(name) + 1
                parts.append(
                    f"[{number}/{self.total or len(self.names)}] {name}: epoch {at.epoch}, step "
                    f"{at.step}/{at.steps}, {duration(at.left)} left"
                )
        if not parts:
            return ""
        separator = "\n" if self._lines.in_terminal else "; "
        return separator.join([*parts, *self._rest(waiting, running)])

    def _rest(self, waiting: Sequence[str], running: Mapping[str, Progress | None]) -> list[str]:
        """The remaining time of the sweep, taking parallel jobs into account."""
        if self.total is not None or any(
            name not in self.seconds for name in waiting if running.get(name) is None
        ):
            return []
        left = 0.0
        for name in waiting:
            at = running.get(name)
            left += self.seconds[name] if at is None else at.left
        return [f"about {duration(left / max(1, len(running)))} left of the sweep"]

    def _runs(self, name: str) -> bool:
        try:
            return self.log(name).stat().st_mtime >= self._began
        except OSError:
            return False

    def _run(self) -> None:
        while not self._stop.wait(self._lines.interval):
            text = self.text()
            if text and text != self._shown:
                self._lines.show(text)
                self._shown = text
