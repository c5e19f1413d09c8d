"""The table for a paper: values, order, what is bold, and what is refused."""

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from comparison_sample import job

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.pivot import (
    Pivot,
    Request,
    csv_of,
    data_digest,
    pivot,
    table_of,
    text_of,
    title_of,
)
from maskrcnn_lit.report.comparison.settings import Job
from maskrcnn_lit.report.format import csv_rows
from maskrcnn_lit.report.latex import latex_table

GRID = {  # backbone, images -> AP of seeds 1, 2, 3
    ("resnet50", 20000): (0.30, 0.31, 0.32),
    ("resnet50", 1000): (0.10, 0.11, 0.12),
    ("resnet18", 20000): (0.20, 0.21, 0.22),
    ("resnet18", 1000): (0.09, 0.11, 0.13),
}


def run(backbone: str, images: int, ap: float | None, seed: int, **more) -> Job:
    config = {"backbone": {"name": backbone}, "data": {"train_images": images}}
    return job(f"{backbone}_{images}_{seed}", ap=ap, seed=seed, config=config, **more)


def grid() -> list[Job]:
    return [
        run(backbone, images, ap, seed)
        for (backbone, images), aps in GRID.items()
        for seed, ap in enumerate(aps, start=1)
    ]


ASKED = Request(("backbone",), ("data.train_images",), ("val/mask_ap",))


def asked(**more) -> Request:
    return Request(**{"rows": ("backbone",), "columns": ("data.train_images",), **more})


def cells(table: Pivot) -> list[list[str]]:
    return table_of(table)[1]


def test_means_and_deviations_with_numbers_in_their_order():
    table = pivot(grid(), ASKED)
    assert table_of(table)[0] == ["backbone", "train_images=1000", "train_images=20000"]
    assert cells(table) == [
        ["resnet50", "0.110 ± 0.010", "0.310 ± 0.010"],
        ["resnet18", "0.110 ± 0.020", "0.210 ± 0.010"],
    ]


def test_without_a_metric_the_cells_have_the_ap_that_all_runs_have():
    boxes = job(
        "boxes", config={"backbone": {"name": "none"}}, metrics={"val/box_ap": 0.5, "val/images": 1}
    )
    by_rows = Request(("backbone",))
    jobs = [run("resnet50", 1000, 0.3, 1), boxes]
    assert cells(pivot(jobs, by_rows)) == [["resnet50", "0.310"], ["none", "0.500"]]
    assert cells(pivot(jobs[:1], by_rows)) == [["resnet50", "0.300"]]


@pytest.mark.parametrize(
    ("seeds", "shown"),
    [("mean", "0.110"), ("n", "3"), ("mean±ci", "0.110 ± 0.025"), ("mean±std", "0.110 ± 0.010")],
)
def test_what_a_cell_shows(seeds: str, shown: str):
    assert cells(pivot(grid(), asked(seeds=seeds)))[0][1] == shown  # 4.303 * 0.01 / sqrt(3)


def test_only_a_significantly_best_value_is_bold():
    table = pivot(grid(), ASKED)
    assert table.best == {("val/mask_ap", ("resnet50",), ("20000",))}
    assert table_of(table)[2] == {(0, 2)}
    assert "Bold: significantly better than every other value of its column" in table.caption


def test_without_a_significant_difference_the_caption_says_so():
    alike = [one for one in grid() if one.config["data"]["train_images"] == 1000]
    table = pivot(alike, ASKED)
    assert not table.best
    assert "No value is bold" in table.caption


def test_a_single_seed_is_neither_bold_nor_has_a_deviation():
    table = pivot([run("a", 1, 0.5, 1), run("b", 1, 0.1, 1)], ASKED)
    assert cells(table) == [["a", "0.500"], ["b", "0.100"]]
    assert not table.best
    assert "A value without ± has one seed." in table.caption


def test_a_missing_cell_is_a_dash():
    table = pivot([run("a", 1, 0.5, 1), run("b", 2, 0.1, 1)], ASKED)
    assert cells(table) == [["a", "0.500", "-"], ["b", "-", "0.100"]]
    assert len(csv_of(table)) == 2


def test_runs_that_failed_or_have_nan_do_not_count():
    runs = [run("a", 1, 0.5, 1), run("a", 1, 0.1, 2, status="failed"), run("a", 1, math.nan, 3)]
    assert cells(pivot(runs, asked(seeds="n"))) == [["a", "1"]]


def test_several_metrics_and_costs():
    runs = [run("a", 1, 0.5, 1, cost={"latency_seconds": 0.02})]
    runs.append(run("b", 1, 0.4, 1, cost={"latency_seconds": 0.01}))
    request = Request(("backbone",), (), ("mask_ap", "latency_seconds"), "mean")
    table = pivot(runs, request)
    assert table_of(table)[0] == ["backbone", "mask AP", "latency, ms"]
    assert cells(table) == [["a", "0.500", "20.0"], ["b", "0.400", "10.0"]]


def test_of_a_cost_the_lowest_is_best():
    costs = {"a": (0.010, 0.011, 0.012), "b": (0.020, 0.021, 0.022)}
    runs = [
        run(name, 1, 0.5, seed, cost={"latency_seconds": value})
        for name, values in costs.items()
        for seed, value in enumerate(values)
    ]
    table = pivot(runs, Request(("backbone",), (), ("latency_seconds",)))
    assert table.best == {("latency_seconds", ("a",), ())}


def test_a_metric_of_the_user_has_its_own_name():
    runs = [run("a", 1, 0.5, 1, metrics={"val/dice": 0.7})]
    assert cells(pivot(runs, asked(metrics=("dice",)))) == [["a", "0.700"]]
    assert title_of("val/dice") == "val/dice"
    assert title_of("val/mask_ap50") == "mask AP50"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (asked(rows=("bakbone",)), "no run has the option 'bakbone'; did you mean backbone?"),
        (asked(columns=("train_image",)), "did you mean data.train_images?"),
        (asked(metrics=("mask_app",)), "metric=mask_app: no finished run has it; did you mean"),
    ],
)
def test_an_unknown_name_is_refused(request_: Request, said: str):
    with pytest.raises(UserError, match=said.replace("?", "[?]")):
        pivot(grid(), request_)


def test_runs_that_differ_in_more_than_the_seed_have_no_common_mean():
    with pytest.raises(
        UserError, match=r"backbone=resnet50 differ in data.train_images, .*: add data.train_images"
    ):
        pivot(grid(), Request(("backbone",)))


@pytest.mark.parametrize(("data_seeds", "alike"), [((1, 1), True), ((1, 2), True), ((1, 3), False)])
def test_a_seed_of_the_data_is_fixed_or_follows_that_of_the_run(
    data_seeds: tuple[int, int], alike: bool
):
    runs = [run("a", 1, seed / 10, seed) for seed in (1, 2)]
    for one, data_seed in zip(runs, data_seeds, strict=True):
        one.config["data"]["seed"] = data_seed
    if alike:
        assert cells(pivot(runs, asked(seeds="mean"))) == [["a", "0.150"]]
    else:
        with pytest.raises(UserError, match=r"differ in data\.seed, so they have no common mean"):
            pivot(runs, asked())


def commit(name: str, dirty: bool = False) -> dict:
    return {"commit": {"hash": name * 40, "dirty": dirty}}


def two_sweeps(**second) -> list[Job]:
    return [
        *(run("a", 1, 0.5 + seed / 100, seed, **commit("1")) for seed in (1, 2)),
        *(run("a", 1, 0.6 + seed / 100, seed, **commit("2"), **second) for seed in (1, 2)),
    ]


def test_two_commits_side_by_side():
    table = pivot(two_sweeps(), Request(("backbone",), ("commit",), (), "mean"))
    assert table_of(table)[0] == ["backbone", "1" * 12, "2" * 12]
    assert cells(table) == [["a", "0.515", "0.615"]]
    assert not table.warnings
    assert f"commit {'1' * 12}, {'2' * 12}." in table.caption


def test_two_commits_in_one_cell_are_refused():
    with pytest.raises(UserError, match=r"differ in commit, .*: add commit to rows or columns"):
        pivot(two_sweeps(), Request(("backbone",)))


def test_other_validation_data_are_a_warning_and_never_bold():
    other = {"data": {"val": {"images": 50, "ids_sha256": "z"}}}
    runs = two_sweeps(**other)
    table = pivot(runs, Request(("backbone",), ("commit",)))
    (warning,) = table.warnings
    assert warning.startswith("The validation data differ, so numbers of different data are not")
    assert data_digest(runs[0]) in warning
    assert data_digest(runs[-1]) in warning
    assert warning in table.caption
    assert not pivot(runs, Request(("commit",))).best


def test_a_seed_that_was_trained_twice_counts_once():
    table = pivot([run("a", 1, 0.5, 1), run("a", 1, 0.7, 1)], asked(seeds="mean"))
    assert cells(table) == [["a", "0.700"]]
    assert table.warnings == ("a, 1 was trained more than once with seed 1: the last counts.",)


def test_the_csv_has_full_precision():
    text = csv_rows(csv_of(pivot(grid(), ASKED)))
    first = next(csv.DictReader(io.StringIO(text)))
    assert (first["backbone"], first["data.train_images"], first["n"]) == ("resnet50", "1000", "3")
    assert float(first["mean"]) == pytest.approx(0.11, abs=1e-15)
    assert float(first["std"]) == pytest.approx(0.01, abs=1e-15)
    assert first["values"] == "0.1 0.11 0.12"
    assert first["seeds"] == "1 2 3"


def test_no_cell_without_runs():
    assert text_of(None, "val/mask_ap", "mean±std") == "-"


@pytest.mark.tex
@pytest.mark.process
def test_latex_compiles_the_table(tmp_path: Path):
    assert shutil.which("pdflatex"), "install texlive-latex-recommended"
    table = pivot(grid(), ASKED)
    head, rows, bold = table_of(table)
    text = latex_table(table.caption + r" 100 % a_b \\ {x} #1 ~", head, rows, bold=bold)
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}"
    (tmp_path / "t.tex").write_text(document + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")
