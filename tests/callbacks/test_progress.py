import io
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from screen import Screen
from tiny_run import LOSSES, Score, TinyData, tiny_module, tiny_trainer

from maskrcnn_lit.callbacks import progress
from maskrcnn_lit.callbacks.progress import ProgressLine
from maskrcnn_lit.terminal.progress import StatusLines

LINE = re.compile(
    r"epoch (\d)/2  step (\d+)/14  \d:\d\d:\d\d left  [\d.]+ images/s  (\d+)% waiting for data  "
    r"loss ([\d.]+): rpn objectness ([\d.]+), rpn box ([\d.]+), class ([\d.]+), box ([\d.]+), mask "
    r"([\d.]+)$"
)


class Chatty(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.print("scored 14 of 14 images")


def shown(tmp_path: Path, out: io.StringIO, seconds: float = 0.0, **trainer: Any) -> str:
    line = ProgressLine(seconds_between_lines=seconds, out=out)
    tiny_trainer(tmp_path, [Score(), Chatty(), line], epochs=2, **trainer).fit(
        tiny_module(), datamodule=TinyData()
    )
    return out.getvalue()


def test_a_file_gets_whole_lines(tmp_path: Path):
    lines = shown(tmp_path, io.StringIO()).splitlines()
    found = [match for match in map(LINE.match, lines) if match]
    assert [(int(m[1]), int(m[2])) for m in found] == [(1 + (s > 7), s) for s in range(1, 15)]
    for match in found:
        assert float(match[4]) == pytest.approx(
            sum(float(match[5 + i]) for i in range(len(LOSSES))), abs=4e-3
        )
        assert 0 <= int(match[3]) <= 100
    assert "scored 14 of 14 images" in lines  # pl_module.print goes through the line
    assert "epoch 1/2  validation: batch 4 of 4" in lines
    ends = [line for line in lines if "validation: loss" in line]
    assert re.fullmatch(r"epoch 1/2  step 7  validation: loss [\d.]+, mask AP 0.200", ends[0])
    assert len(ends) == 2
    assert "\r" not in "".join(lines)
    assert "\x1b" not in "".join(lines)


def test_a_line_comes_only_so_often(tmp_path: Path):
    text = shown(tmp_path, io.StringIO(), seconds=1000.0)
    assert text.count("waiting for data") == 1  # at once, so that one sees that it runs
    assert text.count("validation: loss") == 2


def test_losses_are_smoothed(tmp_path: Path):
    record: list[float] = []

    class Record(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            record.append(float(outputs["losses"]["mask"]))

    out = io.StringIO()
    line = ProgressLine(seconds_between_lines=0.0, out=out)
    tiny_trainer(tmp_path, [line, Record()], steps=3).fit(tiny_module(), datamodule=TinyData())
    masks = [float(value) for value in re.findall(r"mask ([\d.]+)$", out.getvalue(), re.MULTILINE)]
    first = record[0]
    second = 0.9 * first + 0.1 * record[1]
    assert masks[:3] == pytest.approx([first, second, 0.9 * second + 0.1 * record[2]], abs=1e-3)


def test_a_terminal_has_lines_that_fit_and_are_written_over(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(ProgressLine, "_due", lambda self: True)
    out, passing = Screen(), list[list[str]]()
    show = StatusLines.show

    def look(self: StatusLines, text: str) -> None:
        show(self, text)
        passing.append(out.lines())

    monkeypatch.setattr(StatusLines, "show", look)
    shown(tmp_path, out)
    assert max(len(line) for lines in passing for line in lines) == 60
    training = [lines for lines in passing if " left " in lines[-2 % len(lines)]]
    assert len(training) == 14
    assert all(lines[-1].startswith("loss ") for lines in training)
    assert sum(" left " in line for line in passing[-1]) <= 1  # the lines before are erased
    # what stays: two validations, and what was printed in each
    assert [line.partition(":")[0] for line in out.lines()] == [
        "scored 14 of 14 images",
        "epoch 1/2  step 7  validation",
        "scored 14 of 14 images",
        "epoch 2/2  step 14  validation",
    ]


class Logging(Callback):
    """Logs after the second step, when the line is in the middle of the screen."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            logging.getLogger("maskrcnn_lit.data").warning("one image is skipped")


@pytest.fixture
def logged_to() -> Iterator[io.StringIO]:
    """A terminal to which a handler of the package's logger writes, warnings alone."""
    out = Screen()
    handler, logger = logging.StreamHandler(out), logging.getLogger("maskrcnn_lit")
    level = logger.level  # commands of tests before have set it
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield out
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_in_a_terminal_log_lines_stay_above_the_line(
    tmp_path: Path, monkeypatch: Any, logged_to: io.StringIO
):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(ProgressLine, "_due", lambda self: True)
    line, show, passing = ProgressLine(out=logged_to), StatusLines.show, list[list[str]]()

    def look(self: StatusLines, text: str) -> None:
        show(self, text)
        passing.append(logged_to.lines())

    monkeypatch.setattr(StatusLines, "show", look)
    tiny_trainer(tmp_path, [line, Logging()], steps=3).fit(tiny_module(), datamodule=TinyData())
    # the two rows of step 2 are erased, then comes the log line, and below it those of step 3
    after = next(lines for lines in passing if any("step 3/3" in line for line in lines))
    assert after[0] == "one image is skipped"
    assert "step 3/3" in after[1]
    assert len(after) == 3
    handlers = logging.getLogger("maskrcnn_lit").handlers  # commands of tests before have some, too
    assert line._make_room not in [entry for handler in handlers for entry in handler.filters]


def test_in_80_columns_all_losses_are_seen(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(ProgressLine, "_due", lambda self: True)
    losses = re.findall(r"loss [\d.]+: ([^\x1b\n\r]*)", shown(tmp_path, Screen()))
    assert len(losses) >= 14
    assert all(len(line.split(", ")) == 5 and "mask" in line for line in losses)


def test_a_disabled_line_is_silent(tmp_path: Path):
    out = io.StringIO()
    line = ProgressLine(seconds_between_lines=0.0, out=out)
    line.disable()
    tiny_trainer(tmp_path, [line], steps=2).fit(tiny_module(), datamodule=TinyData())
    assert not out.getvalue()


def test_time_left_counts_steps_and_validations(monkeypatch: Any):
    class Run:
        global_step, num_training_batches, accumulate_grad_batches, check_val_every_n_epoch = (
            30,
            40,
            2,
            1,
        )
        train_dataloader = ()

    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = progress._Pace()
    pace.start(10)  # resumed there
    now = 20.0
    pace.pause()
    now = 27.0
    pace.resume()
    now = 47.0  # 40 s for 20 steps
    # 70 steps of 2 s, and 4 validations of 7 s: epochs have 20 steps, 3.5 of them are left
    assert pace.left(Run(), total=100) == pytest.approx(70 * 2.0 + 4 * 7.0)  # type: ignore[arg-type]
    assert progress._clock(3 * 3600 + 62.4) == "3:01:02"
