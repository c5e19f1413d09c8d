"""The docs site builds without a warning, and has what its pages promise."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import REPOSITORY

import maskrcnn_lit
from maskrcnn_lit.cli.main import COMMANDS
from maskrcnn_lit.config import schema

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, from a copy of the sources; a warning is an error."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    shutil.copy(REPOSITORY / "zensical.toml", folder)
    generate = [sys.executable, str(REPOSITORY / "docs/generate.py"), str(folder / "docs")]
    subprocess.run(generate, check=True)
    build = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "No issues found" in said
    assert not re.findall(r"griffe: .*", said), said
    return folder / "site"


def page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_every_public_name_is_documented(site: Path):
    python = page(site, "reference/python")
    assert not [name for name in maskrcnn_lit.__all__ if f">{name}<" not in python]


def test_every_command_has_a_section(site: Path):
    commands = page(site, "reference/commands")
    assert not [name for name in COMMANDS if f'id="{name.replace(" ", "-")}"' not in commands]


def test_options_have_their_range(site: Path):
    options = page(site, "reference/options")
    assert schema.expects(schema.OPTIONS["augment.flip"]) in options


def test_it_is_searchable(site: Path):
    index = json.loads((site / "search.json").read_text(encoding="utf-8"))
    assert "subset_ids.json" in json.dumps(index)


def test_a_page_asks_no_other_server_for_anything(site: Path):
    """Scripts, styles, fonts and pictures are the site's own."""
    loaded = re.compile(r'<(?:script|link|img)[^>]*(?:src|href)="?(https?://[^"\s>]+)')
    pages = site.rglob("*.html")
    assert not {url for path in pages for url in loaded.findall(path.read_text(encoding="utf-8"))}


def test_a_broken_link_fails_the_build(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A page\n\n[a link](nowhere.md)\n")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "one page"\n')
    build = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    assert subprocess.run(build, cwd=tmp_path, capture_output=True).returncode != 0
