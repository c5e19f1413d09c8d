"""How far something is: lines that are written over in a terminal (by rich), plain lines in a file.

`StatusLines` shows any text, `Counter` a number that grows. Both write no escape codes to a file or
a pipe, and break no line there.
"""

import math
import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from maskrcnn_lit.terminal.table import columns

SECONDS_IN_FILE = 10.0  # between two lines, unless the caller says otherwise


class StatusLines:
    """Text at the bottom of a terminal that each `show` replaces; in a file each is a line.

    Args:
        out: default standard output.
        in_terminal, in_file: seconds between two texts; `due` says whether they have passed.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        in_terminal: float = 1.0,
        in_file: float = SECONDS_IN_FILE,
    ) -> None:
        self.out = out or sys.stdout
        self.in_terminal = self.out.isatty()
        self.interval = in_terminal if self.in_terminal else in_file
        self._shown = -math.inf  # when a text was last shown
        self._live: Live | None = None
        self._lock = threading.RLock()

    def start(self) -> None:
        """The first text is due after the interval; without this, at once."""
        self._shown = time.monotonic()

    def due(self) -> bool:
        """Whether the last text was shown long enough ago."""
        return time.monotonic() - self._shown >= self.interval

    def show(self, text: str) -> None:
        """Show `text` in place of the last one, cut to the width of the terminal."""
        with self._lock:
            self._shown = time.monotonic()
            if not self.in_terminal:
                self._write(text)
                return
            if self._live is None:
                self._live = Live(
                    console=_console(self.out),
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
                self._live.console.show_cursor(True)  # a killed process would leave it hidden
            self._live.console.width = columns(self.out) or 80  # the window may have been resized
            self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)

    def print(self, text: str) -> None:
        """Write `text`, which stays; a terminal breaks it between words."""
        with self._lock:
            self._shown = time.monotonic()
            self.clear()
            if self.in_terminal:
                _console(self.out).print(Text(text, overflow="fold"))
            else:
                self._write(text)

    def clear(self) -> None:
        """Erase what `show` wrote, before somebody else writes to the terminal."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _write(self, text: str) -> None:
        self.out.write(f"{text}\n")
        self.out.flush()


class Counter:
    """How many of `total` are done, with the share, the rate and the time left, while a block runs.
    In a terminal a bar; in a file a line every ten seconds and one at the end.

    Args:
        total: None: not known.
        unit: what is counted; "B" shows bytes as MB.
        out: default standard error.
    """

    def __init__(
        self, title: str, total: int | None = None, *, unit: str, out: TextIO | None = None
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self.out = out or sys.stderr
        self.note = ""  # shown behind the numbers
        self._began, self._first, self._shown = time.monotonic(), 0, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        self._began = self._shown = time.monotonic()
        if self.out.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeRemainingColumn(),
                console=_console(self.out),
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.add_task(self.title, total=self.total, numbers=self.numbers())
            self._bar.start()
            self._bar.console.show_cursor(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._refresh()
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-3)

    def restart(self, done: int, total: int | None) -> None:
        """Count from `done` on, which were done before."""
        self.done, self._first, self.total = done, done, total

    def advance(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self._shown >= (SECONDS_IN_FILE if self._bar is None else 0.1):
            self._refresh()

    def numbers(self) -> str:
        """ "40% (12.0 of 30.0 MB, 3.1 MB/s)"."""
        factor, unit, digits = (1e-6, "MB", 1) if self.unit == "B" else (1.0, self.unit, 0)
        done = f"{self.done * factor:,.{digits}f}"
        if self.total is not None:
            done += f" of {self.total * factor:,.{digits}f}"
        rate = (self.done - self._first) * factor / self.seconds
        note = f", {self.note}" if self.note else ""
        inside = f"{done} {unit}, {rate:,.1f} {unit}/s{note}"
        return f"{self.done / self.total:.0%} ({inside})" if self.total else inside

    def _refresh(self) -> None:
        self._shown = time.monotonic()
        if self._bar is None:
            self.out.write(f"{self.title}: {self.numbers()}\n")
            self.out.flush()
        else:
            (task,) = self._bar.task_ids
            self._bar.update(
                task, completed=self.done, total=self.total, numbers=self.numbers(), refresh=True
            )


def _console(out: TextIO) -> Console:
    """Of a terminal, without colours, whatever the environment and a notebook say."""
    return Console(
        file=out,
        width=columns(out) or 80,
        color_system=None,
        force_terminal=True,
        force_jupyter=False,
        force_interactive=True,
        legacy_windows=False,
        emoji=False,
        markup=False,
        highlight=False,
    )
