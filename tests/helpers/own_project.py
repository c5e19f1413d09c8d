"""The project that the pages of docs/extend describe: mylab/ and my_conf/."""

import re
from pathlib import Path

from repository import REPOSITORY

DOCS = REPOSITORY / "docs" / "extend"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(path of the file, its content) of the python and yaml of a page."""
    found = re.findall(
        r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return [(name, content) for name, content in found]


def write_project(folder: Path) -> None:
    """All files of the pages, each of which one page writes."""
    for page in PAGES:
        for name, content in blocks(page):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            assert not file.exists(), f"{page.name} writes {name} again"
            file.write_text(content)
