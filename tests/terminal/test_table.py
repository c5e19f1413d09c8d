import io

import pytest
from screen import Screen

from maskrcnn_lit.terminal.table import columns, text_table

HEAD = ["class", "mask AP", "objects"]
ROWS = [["ant", "0.5", "10"], ["a long [bold]name[/bold] :bee:", "0.125", "12345"]]


def test_text_is_aligned_to_the_left_and_numbers_to_the_right():
    assert text_table(HEAD, ROWS) == [
        "class                           mask AP  objects",
        "ant                                 0.5       10",
        "a long [bold]name[/bold] :bee:    0.125    12345",
    ]


def test_indent_gap_and_short_rows():
    lines = text_table(["", "a\n0.5", "b\n0.75"], [["x", "1"]], gap=3, indent=2)
    assert lines == ["        a      b", "      0.5   0.75", "  x     1"]


def test_without_a_head_there_is_no_line_for_it():
    assert text_table([], [["a", "1"], ["bb", "22"]]) == ["a    1", "bb  22"]
    assert text_table([], []) == []


def test_a_table_in_a_file_is_as_wide_as_it_needs_to_be():
    name = "n" * 300
    lines = text_table(["name", "number"], [[name, "1"]], width=None)
    assert lines[1] == f"{name}       1"


@pytest.mark.parametrize("environment", [{"COLUMNS": "20"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}])
def test_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
):
    expected = text_table(HEAD, ROWS)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert text_table(HEAD, ROWS) == expected


@pytest.mark.parametrize("width", [20, 33, 40])
def test_a_narrow_terminal_breaks_text_and_no_number(width: int):
    lines = text_table(HEAD, ROWS, width=width)
    printed = "\n".join(lines)
    assert max(map(len, lines)) <= max(width, 12 + 2 + 7 + 2 + 7)
    assert all(cell in printed.split() for _, *cells in ROWS for cell in cells)
    assert "".join(line[:12].rstrip() for line in lines).count("long") == 1


def test_columns_are_those_of_the_terminal(monkeypatch: pytest.MonkeyPatch):
    assert columns(io.StringIO()) is None
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns(Screen()) == 80
    monkeypatch.setenv("COLUMNS", "61")
    assert columns(Screen()) == 61


def test_the_names_of_rows_are_not_broken_where_another_text_can_be():
    rows = [["efficientnet_b0", "1.0", "24, 40, 112, 1280", "IMAGENET1K_V1, IMAGENET1K_V2"]]
    lines = text_table(["backbone", "M", "channels", "weights"], rows, text=(0, 2, 3), width=50)
    assert max(map(len, lines)) <= 50
    assert lines[1].startswith("efficientnet_b0  1.0  ")
    assert len(lines) > 2
