import io

import pytest
from screen import Screen

from maskrcnn_lit.terminal import progress
from maskrcnn_lit.terminal.progress import Counter, StatusLines

LONG = "word " * 30


@pytest.fixture(autouse=True)
def sixty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")


def test_a_text_replaces_the_last_one():
    out = Screen()
    lines = StatusLines(out)
    lines.show("epoch 1\nloss 3")
    assert out.lines() == ["epoch 1", "loss 3"]
    lines.show("epoch 2")
    assert out.lines() == ["epoch 2"]
    lines.clear()
    assert out.lines() == []


def test_what_is_printed_stays_above():
    out = Screen()
    lines = StatusLines(out)
    lines.show("epoch 1\nloss 3")
    lines.print("validation: AP 0.2")
    lines.show("epoch 2\nloss 2")
    assert out.lines() == ["validation: AP 0.2", "epoch 2", "loss 2"]
    lines.clear()
    out.write("somebody else\n")
    lines.show("epoch 3")
    assert out.lines() == ["validation: AP 0.2", "somebody else", "epoch 3"]


def test_a_terminal_cuts_what_passes_and_breaks_what_stays():
    out = Screen()
    lines = StatusLines(out)
    lines.show(LONG)
    assert [len(line) for line in out.lines()] == [59]
    lines.print(LONG)
    assert [len(line) for line in out.lines()] == [59, 59, 29]


def test_the_cursor_stays_visible():
    out = Screen()
    StatusLines(out).show("epoch 1")
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_file_has_whole_lines_and_no_codes(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "1")
    out = io.StringIO()
    lines = StatusLines(out)
    lines.show(LONG)
    lines.clear()
    lines.print(f"[bold]{LONG}:smile:")
    assert out.getvalue() == f"{LONG}\n[bold]{LONG}:smile:\n"


@pytest.mark.parametrize(("out", "seconds"), [(Screen(), 2.0), (io.StringIO(), 60.0)])
def test_a_text_is_due_after_the_interval(
    monkeypatch: pytest.MonkeyPatch, out: io.StringIO, seconds: float
):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = StatusLines(out, in_terminal=2.0, in_file=60.0)
    assert lines.due()
    lines.show("x")
    now += seconds - 0.1
    assert not lines.due()
    now += 0.2
    assert lines.due()
    lines.start()
    assert not lines.due()


def test_a_counter_in_a_file_has_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch):
    now, out = 100.0, io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Counter("fetching", 50, unit="images", out=out) as counter:
        for _ in range(50):
            now += 0.5
            counter.advance()
    assert out.getvalue().splitlines() == [
        "fetching: 40% (20 of 50 images, 2.0 images/s)",
        "fetching: 80% (40 of 50 images, 2.0 images/s)",
        "fetching: 100% (50 of 50 images, 2.0 images/s)",
    ]


def test_bytes_are_shown_as_megabytes_and_those_of_before_have_no_rate(
    monkeypatch: pytest.MonkeyPatch,
):
    now, out = 100.0, io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Counter("a.zip", unit="B", out=out) as counter:
        counter.restart(3_000_000, 12_000_000)
        now += 2
        counter.advance(6_000_000)
    assert out.getvalue() == "a.zip: 75% (9.0 of 12.0 MB, 3.0 MB/s)\n"


def test_a_counter_without_a_total_has_no_share():
    counter = Counter("a", unit="images")
    counter.note = "slow"
    assert counter.numbers().startswith("0 images, 0.0 images/s, slow")


def test_a_counter_in_a_terminal_is_one_line():
    out = Screen()
    with Counter("[a]", 4, unit="images", out=out) as counter:
        counter.advance(3)
    (line,) = out.lines()
    assert line.startswith("[a] ")
    assert "75% (3 of 4 images" in line
    assert len(line) <= 60
