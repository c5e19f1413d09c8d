"""Write the pages of the docs that are made from the code: python docs/generate.py [DOCS]

DOCS (default: this folder) gets reference/commands.md and reference/options.md, from the commands
and the schema of the options, and contributing.md and changelog.md, from the files at the root.
`make docs` runs it before it builds the site; git ignores what it writes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from maskrcnn_lit.cli.main import COMMANDS
from maskrcnn_lit.config import compose, schema
from maskrcnn_lit.config.overrides import flat

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    docs = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    pages = {
        "reference/commands.md": "\n".join(commands()),
        "reference/options.md": "\n".join(options()),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for name, text in pages.items():
        page = docs / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text.rstrip() + "\n", encoding="utf-8")


def commands() -> Iterator[str]:
    """A section a command: what it does, examples, the options that `--help` shows."""
    yield "# Commands"
    yield ""
    yield "`maskrcnn-lit COMMAND --help` prints the same in a terminal."
    for name, command in COMMANDS.items():
        yield f"\n## {name}\n"
        yield f"{command.summary[0].upper()}{command.summary[1:]}."
        yield "\n```bash"
        yield from command.examples
        yield "```\n"
        yield from table(
            ("option", "default", "value"),
            (
                (code(option.name), code(shown(option.value)), described(option))
                for option in compose.describe(name).options
            ),
        )


def described(option: compose.Option) -> str:
    """What an option may be, and the comment beside it in its yaml."""
    return ". ".join(part for part in (option.expects, option.comment) if part)


def options() -> Iterator[str]:
    """A row for each option of `train`, those of several dots included."""
    yield "# Options of train"
    yield ""
    yield (
        "With the defaults of `maskrcnn-lit train`; other choices of a group bring others. "
        "`maskrcnn-lit train --cfg` prints the config of a command."
    )
    config = OmegaConf.to_container(compose.show("train"))
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for name, value in flat(config):
        rule = schema.applies(name, config) if isinstance(config, dict) else None
        if rule is None or any(part.startswith("_") for part in name.split(".")):
            continue
        group = name.split(".")[0] if "." in name else "of the command"
        groups.setdefault(group, []).append((code(name), code(shown(value)), schema.expects(rule)))
    for group, rows in sorted(groups.items(), key=lambda item: (item[0] != "of the command", item)):
        yield f"\n## {group}\n"
        yield from table(("option", "default", "value"), rows)


def table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def code(text: str) -> str:
    return f"`{text}`"


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
