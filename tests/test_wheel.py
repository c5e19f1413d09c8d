"""The built wheel, installed far from the checkout, trains: its conf folder travels inside it."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
from built_wheel import run
from omegaconf import OmegaConf
from repository import REPOSITORY

from maskrcnn_lit import __version__

pytest_plugins = ("built_wheel",)
pytestmark = pytest.mark.process


def test_the_wheel_holds_the_package_its_conf_and_its_licence_only(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    code = [
        path
        for path in (REPOSITORY / "maskrcnn_lit").rglob("*")
        if path.suffix in (".py", ".css", ".html", ".js", ".json", ".bib")
        or path.name == "py.typed"
    ]
    python = {path.relative_to(REPOSITORY).as_posix() for path in code}
    yaml = {
        f"maskrcnn_lit/{path.relative_to(REPOSITORY).as_posix()}"
        for path in (REPOSITORY / "conf").rglob("*.yaml")
    }
    assert len(python) > 20
    assert len(yaml) > 15
    assert "maskrcnn_lit/py.typed" in names
    about = {
        f"{info}/{file}"
        for file in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert names == python | yaml | about


def test_the_licence_is_apaches_and_the_citation_says_the_same(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(
        next(name for name in archive.namelist() if name.endswith("/METADATA"))
    ).decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    citation = OmegaConf.load(REPOSITORY / "CITATION.cff")
    assert citation.version == __version__
    assert citation.license == "Apache-2.0"
    # of https://www.apache.org/licenses/LICENSE-2.0.txt
    expected = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((REPOSITORY / "LICENSE").read_bytes()).hexdigest() == expected


def test_an_installed_wheel_trains(wheel: Path, tmp_path: Path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
        cwd=work,
    )
    found = run(
        sys.executable,
        "-c",
        "import maskrcnn_lit.config.compose as c; print(c.__file__, c.conf_dir())",
        cwd=work,
        path=site,
    )
    assert found.split() == [
        str(site / "maskrcnn_lit" / "config" / "compose.py"),
        str(site / "maskrcnn_lit" / "conf"),
    ]
    tiny = ("data.train_images=8", "data.val_images=4", "data.workers=0", "trainer.steps=3")
    run(
        site / "bin" / "maskrcnn-lit",
        "train",
        "experiment=demo",
        *tiny,
        "run_dir=run",
        cwd=work,
        path=site,
    )
    result = json.loads((work / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert 0 <= result["metrics"]["val/mask_ap"] <= 1
