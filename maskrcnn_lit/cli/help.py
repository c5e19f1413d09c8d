"""The texts of `maskrcnn-lit --help` and `maskrcnn-lit COMMAND --help`, wrapped to the terminal."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError

NARROWEST, WIDEST = 60, 110  # columns of text
# Beside the commands.
MORE = {
    "maskrcnn-lit COMMAND --help": "its options, their defaults and choices",
    "maskrcnn-lit COMMAND --help "
    "model.rpn": "the options under a name, or with a word in their name",
    "  --config-dir DIR": "your own yaml files, searched before ours",
    "maskrcnn-lit completion bash": "a script for Tab completion in bash, zsh or fish",
    "maskrcnn-lit --version": "the version",
}
COMMON = "the command"  # the heading of options that are in no group


class Command(NamedTuple):
    """A summary of a command, and example command lines."""

    summary: str
    examples: tuple[str, ...]


def columns() -> int:
    """The width of help texts: that of the terminal (or COLUMNS), 80 without a terminal."""
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))


def overview(commands: Mapping[str, Command]) -> str:
    """Every command with its first example."""
    width = max(map(len, commands)) + 4
    lines = _wrapped("maskrcnn-lit COMMAND [NAME=VALUE ...]: train and evaluate Mask R-CNN", 2)
    lines.append("")
    for name, command in commands.items():
        lines += _wrapped(f"  {name:{width - 4}}  {command.summary}", width)
        lines += [*_command_line(command.examples[0], f"{'':{width}}$ "), ""]
    for topic, about in MORE.items():
        lines += _wrapped(f"{topic:35}  {about}", 37)
    return "\n".join(lines)


def command_help(name: str, command: Command, description: Any, more: Iterable[Any]) -> str:
    """Examples, groups and options of a command.

    Args:
        description: the result of `maskrcnn_lit.config.compose.describe`; more: options that lie
            deeper in the config, which are only counted.
    """
    lines = _wrapped(f"maskrcnn-lit {name} [NAME=VALUE ...]: {command.summary}", 2)
    lines += ["", "Examples"]
    for example in command.examples:
        lines += _command_line(example, "  ")
    if description.groups:
        lines += ["", "Groups, GROUP=CHOICE (* marks the default)"]
        width = max(map(len, description.groups)) + 4
        for group, (choices, chosen) in description.groups.items():
            marked = " ".join(f"{choice}*" if choice == chosen else choice for choice in choices)
            lines += _wrapped(f"  {group:{width - 4}}  {marked}", width)
    title = "Options, NAME = default [allowed values]; ??? is required"
    lines += ["", *_wrapped(title, 2)]
    lines += _sections(description.options, _deeper(name, more, description.options))
    hint = f"maskrcnn-lit {name} --cfg [NAME=VALUE ...] prints the full config."
    lines += ["", *_wrapped(hint, 2)]
    return "\n".join(lines)


def topic_help(name: str, topics: Iterable[str], options: Iterable[Any]) -> str:
    """The options whose names begin with one of `topics`, or else contain it.

    Raises:
        UserError: no option matches.
    """
    lines, known = [], list(options)
    for topic in topics:
        chosen = [o for o in known if f"{o.name}.".startswith(f"{topic.rstrip('.')}.")]
        chosen = chosen or [option for option in known if topic in option.name]
        if not chosen:
            raise UserError(
                f"{name} has no option with '{topic}' in its name: `maskrcnn-lit {name} --help` "
                "lists its groups and options"
            )
        lines += _sections(chosen, {})
    return "\n".join(lines).lstrip("\n")


def _sections(options: Iterable[Any], deeper: Mapping[str, list[str]]) -> list[str]:
    """A heading for each group, and its options below."""
    lines: list[str] = []
    for group, members in groupby(sorted(options, key=_group), key=_group):
        lines += ["", group or COMMON]
        for option in members:
            lines += _wrapped(f"  {option.name} = {shown(option.value)}", 6)
            expects = f"[{option.expects}]" if option.expects else ""
            about = " ".join(part for part in (option.comment, expects) if part)
            lines += _wrapped(f"      {about}", 6) if about else []
        lines += deeper.get(group, [])
    return lines


def _deeper(command: str, more: Iterable[Any], listed: Iterable[Any]) -> dict[str, list[str]]:
    """Group -> lines on how to list its remaining options."""
    known = {option.name for option in listed}
    names = [option.name for option in more if option.name not in known]
    lines: dict[str, list[str]] = {}
    for under in dict.fromkeys(".".join(name.split(".")[:2]) for name in names):
        count = sum(name.startswith(f"{under}.") for name in names)
        text = f"  {under}.*  {count} more: maskrcnn-lit {command} --help {under}"
        lines.setdefault(under.split(".")[0], []).extend(_wrapped(text, 6))
    return lines


def _group(option: Any) -> str:
    """The first part of a dotted name; "" without one. Options without a group come first."""
    return str(option.name.partition(".")[0]) if "." in option.name else ""


def _wrapped(line: str, indent: int) -> list[str]:
    return textwrap.wrap(
        line,
        columns(),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _command_line(line: str, indent: str) -> list[str]:
    """A command line to copy, wrapped with backslashes."""
    more = " " * (len(indent) + 4)
    parts = textwrap.wrap(
        indent + line,
        columns() - 2,
        subsequent_indent=more,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{part} \\" for part in parts[:-1]] + parts[-1:]


def shown(value: Any) -> str:
    """A value as a user types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else str(value)
