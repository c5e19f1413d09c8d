"""The texts of --help: how wide they are, and how values are written."""

from typing import Any

import pytest

from maskrcnn_lit.cli.help import Command, columns, command_help, overview, shown, topic_help
from maskrcnn_lit.config.compose import Description, Option
from maskrcnn_lit.errors import UserError

COMMAND = Command("does a thing " * 12, (f"maskrcnn-lit do {'name=value ' * 12}".strip(),))
OPTIONS = [
    Option("seed", 1, "a whole number", "of all"),
    Option("model.std", [0.5, 1.0], "", ""),
    Option("data.root", None, "a path, or null", "where " * 30),
]
DEEP = Option("model.rpn.depth", 1, "a whole number", "")


@pytest.mark.parametrize(("given", "used"), [("20", 60), ("80", 80), ("400", 110)])
def test_text_is_as_wide_as_the_terminal(given: str, used: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", given)
    assert columns() == used


@pytest.mark.parametrize("width", [60, 80, 110])
def test_no_line_is_wider(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    described = Description({"data": (["a", "b"] * 40, "a")}, OPTIONS)
    for text in (
        overview({"do": COMMAND}),
        command_help("do", COMMAND, described, [*OPTIONS, DEEP]),
    ):
        assert max(map(len, text.splitlines())) <= width


def test_a_broken_command_line_can_be_copied(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = command_help("do", COMMAND, Description({}, OPTIONS), [])
    lines = text[text.index("Examples\n") + 9 :].split("\n\n")[0]
    assert lines.replace("\\\n", "").split() == COMMAND.examples[0].split()
    assert "\\\n" in lines


def test_options_stand_under_the_heading_of_their_group():
    lines = command_help("do", COMMAND, Description({}, OPTIONS), [*OPTIONS, DEEP]).splitlines()
    places = [lines.index(text) for text in ("the command", "  seed = 1", "data", "model")]
    assert places == sorted(places)
    assert lines[lines.index("  seed = 1") + 1] == "      of all [a whole number]"
    assert "  model.rpn.*  1 more: maskrcnn-lit do --help model.rpn" in lines


def test_a_topic_is_a_name_or_a_part_of_one():
    assert topic_help("do", ["model.rpn"], [*OPTIONS, DEEP]).splitlines()[:2] == [
        "model",
        "  model.rpn.depth = 1",
    ]
    assert "  seed = 1" in topic_help("do", ["ee"], OPTIONS)
    with pytest.raises(UserError, match="do has no option with 'lr' in its name"):
        topic_help("do", ["lr"], OPTIONS)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ([1, None, "a"], "[1,null,a]"), (0.5, "0.5"), ("x", "x")],
)
def test_values_are_shown_as_they_are_typed(value: Any, text: str):
    assert shown(value) == text
