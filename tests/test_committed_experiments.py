"""What experiments/ shows: the page says what the csv does, and neither knows the machine."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from repository import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
FOLDERS = sorted(path.parent for path in EXPERIMENTS.glob("*/README.md"))
PLACE = re.compile(r"=/|cache_dir|(?<![\w.])/(tmp|work|home|root)/")


def named(folder: Path) -> str:
    return folder.name


def read(folder: Path) -> tuple[str, list[dict[str, str]]]:
    """The page, and the rows of finished jobs."""
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    return (folder / "README.md").read_text(encoding="utf-8"), rows


def test_the_three_of_the_study_are_there():
    assert {folder.name[:2] for folder in FOLDERS} >= {"01", "02", "03"}
    index = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    assert all(f"({folder.name}/README.md)" in index for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_each_job_has_the_scores_of_the_csv(folder: Path):
    page, rows = read(folder)
    assert len(rows) >= 4
    for row in rows:
        lines = [line for line in page.splitlines() if line.startswith(f"| {row['job']} | ")]
        masks = [] if row.get("model") == "tiny_faster_rcnn" else ["mask_ap", "mask_ap50"]
        wanted = [f"{float(row[score]):.3f}" for score in ("box_ap", *masks)]
        assert any(all(number in line for number in wanted) for line in lines), row["name"]


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_it_was_read_by_hand_and_its_plots_are_there(folder: Path):
    page, _ = read(folder)
    by_hand, _, generated = page.partition("<!-- compare -->")
    assert "## Reading" in by_hand
    assert "```bash" in by_hand
    plots = re.findall(r"!\[\w+\]\((plots/\w+\.png)\)", generated)
    assert plots
    assert {folder / plot for plot in plots} == set((folder / "plots").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_nothing_names_the_machine(folder: Path):
    texts: Any = [folder / "README.md", folder / "results.csv"]
    assert not [
        match.group()
        for path in texts
        for match in PLACE.finditer(path.read_text(encoding="utf-8"))
    ]
