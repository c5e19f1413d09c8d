"""What a sweep's terminal shows of its jobs, from their log files."""

import io
import os
import time
from pathlib import Path

import pytest
from screen import Screen

from maskrcnn_lit.launch.sweep_progress import Progress, SweepProgress, read_progress

LINE = (
    "epoch {}  step {}/12  0:01:{:02} left  2.6 images/s  2% waiting for data  loss 3.349: "
    "mask "
    "0.6\n"
)


def test_progress_is_the_last_line_of_a_log(tmp_path: Path):
    log = tmp_path / "a.txt"
    assert read_progress(log) is None
    log.write_text("train: 8 images\n")
    assert read_progress(log) is None
    log.write_text(
        "x" * 50_000 + "\n" + LINE.format("1/3", 2, 30) + LINE.format("2/3", 5, 10) + "done\n"
    )
    assert read_progress(log) == Progress("2/3", 5, 12, 70.0)


def shown(tmp_path: Path, seconds: dict[str, float]) -> SweepProgress:
    return SweepProgress(
        ["a", "b", "c"], lambda name: tmp_path / f"{name}.txt", seconds, out=io.StringIO()
    )


def test_the_running_job_and_the_rest_are_told(tmp_path: Path):
    (tmp_path / "c.txt").write_text(LINE.format("1/3", 2, 30))
    os.utime(tmp_path / "c.txt", (1, 1))  # of an earlier try
    progress = shown(tmp_path, {"a": 300.0, "b": 300.0, "c": 600.0})
    assert progress.text() == ""
    progress.ended("a")
    (tmp_path / "b.txt").write_text(LINE.format("2/3", 5, 0))
    told = "[2/3] b: epoch 2/3, step 5/12, 60 s left; about 11 min left of the sweep"
    assert progress.text() == told


def test_without_a_trial_the_rest_is_not_guessed(tmp_path: Path):
    progress = shown(tmp_path, {"a": 300.0})
    (tmp_path / "a.txt").write_text(LINE.format("2/3", 5, 0))
    assert progress.text() == "[1/3] a: epoch 2/3, step 5/12, 60 s left"


@pytest.mark.long
def test_a_terminal_has_lines_that_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = Screen()
    with SweepProgress(["a"], lambda name: tmp_path / "a.txt", {}, out=out) as progress:
        (tmp_path / "a.txt").write_text(LINE.format("2/3", 5, 0))
        deadline = time.monotonic() + 30
        while "epoch 2/3" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert out.lines() == [
            "[1/1] a: epoch 2/3, step 5/12, 60 s left",
            "about 60 s left of the sweep",
        ]
        progress.ended("a")
        assert out.lines() == []
