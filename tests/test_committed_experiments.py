"""What experiments/ shows: the page says what the csv does, and neither knows the machine."""

import csv
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from repository import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
FOLDERS = sorted(path.parent for path in EXPERIMENTS.glob("*/README.md"))
PLACE = re.compile(r"=/|cache_dir|(?<![\w.])/(tmp|work|home|root)/")


def named(folder: Path) -> str:
    return folder.name


REPORTS = sorted(EXPERIMENTS.glob("*/results*.csv"))


def page(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def report(results: Path) -> str:
    """The part of the page that has the tables of these results: results_NAME.csv, compare NAME."""
    name = results.stem.removeprefix("results").replace("_", " ", 1)
    start = f"<!-- compare{name} -->"
    return page(results.parent).partition(start)[2].partition("<!-- /compare -->")[0]


def test_the_three_of_the_study_are_there():
    assert {folder.name[:2] for folder in FOLDERS} >= {"01", "02", "03"}
    index = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    assert all(f"({folder.name}/README.md)" in index for folder in FOLDERS)


@pytest.mark.parametrize("results", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_job_has_the_scores_of_the_csv(results: Path):
    with open(results, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    tables = report(results)
    assert len(rows) >= 4
    for row in rows:
        lines = [line for line in tables.splitlines() if line.startswith(f"| {row['job']} | ")]
        masks = [] if row.get("model") == "tiny_faster_rcnn" else ["mask_ap", "mask_ap50"]
        wanted = [f"{float(row[score]):.3f}" for score in ("box_ap", *masks)]
        assert any(all(number in line for number in wanted) for line in lines), row["name"]


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_it_was_read_by_hand_and_its_plots_are_there(folder: Path):
    by_hand, _, generated = page(folder).partition("<!-- compare")
    assert "## Reading" in by_hand
    assert "```bash" in by_hand
    plots = re.findall(r"!\[\w+\]\((plots/\w+\.png)\)", generated)
    assert plots
    assert {folder / plot for plot in plots} == set((folder / "plots").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_nothing_names_the_machine(folder: Path):
    texts: Any = [folder / "README.md", *folder.glob("results*.csv")]
    assert len(texts) > 1
    assert not [
        match.group()
        for path in texts
        for match in PLACE.finditer(path.read_text(encoding="utf-8"))
    ]


def test_an_experiment_of_several_reports_has_each_under_its_name(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "plots").mkdir(parents=True)
        (tmp_path / name / "plots/scores.png").write_text(name)
        (tmp_path / name / "plots/scores.svg").write_text(name)
        (tmp_path / name / "results.csv").write_text(name)
        about = "## About\n\nthe rest"
        tables = f"## {name}\n\n![scores](plots/scores.png)\n\n`data.root=/mnt/{name} seed=1`"
        (tmp_path / name / "report.md").write_text(f"# Report\n\n{tables}\n\n{about}\n")
    folder = tmp_path / "experiment"
    folder.mkdir()
    marks = "<!-- compare -->\nold\n<!-- /compare -->\n\n<!-- compare b -->\n<!-- /compare -->\n"
    (folder / "README.md").write_text(f"By hand\n\n{marks}")
    write = runpy.run_path(str(EXPERIMENTS / "write.py"))["write"]
    for report, *name in (("a",), ("b", "b"), ("a",)):
        write(tmp_path / report, folder, *name)
    assert (folder / "README.md").read_text() == (
        "By hand\n\n<!-- compare -->\n## a\n\n![scores](plots/scores.png)\n\n"
        "`data.root=DIR seed=1`\n<!-- /compare -->\n\n<!-- compare b -->\n"
        "## b\n\n![scores](plots/b_scores.png)\n\n"
        "`data.root=DIR seed=1`\n<!-- /compare -->\n"
    )
    assert {path.name: path.read_text() for path in folder.glob("*.csv")} == {
        "results.csv": "a",
        "results_b.csv": "b",
    }
    assert {path.name: path.read_text() for path in (folder / "plots").iterdir()} == {
        "scores.png": "a",
        "b_scores.png": "b",
    }
    with pytest.raises(SystemExit, match="no line <!-- compare c -->"):
        write(tmp_path / "b", folder, "c")
