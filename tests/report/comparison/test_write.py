"""The report over run folders: its numbers are those of the runs; it says what is chance and what
cannot be read.
"""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_sample import draw, make_run, write_sweep
from PIL import Image
from report_sample import Page

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison import write as comparison
from maskrcnn_lit.report.comparison.write import write_comparison
from maskrcnn_lit.runs.result import file_digests, read_result, write_result

pytest_plugins = ("plain_plots",)
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("plain_plots")]

RUNS = {  # overrides -> share of the objects found; and which of them, if not by the seed
    ("backbone=resnet18", "data.train_images=100", "seed=1"): (0.5, 13),
    ("backbone=resnet18", "data.train_images=100", "seed=2"): (0.52, 13),
    ("backbone=resnet18", "data.train_images=400", "seed=1"): (0.95, 11),
    ("backbone=resnet18", "data.train_images=400", "seed=2"): (0.93, 11),
    ("backbone=mobilenet_v3_large", "data.train_images=100", "seed=1"): (0.15, 13),
    ("backbone=mobilenet_v3_large", "data.train_images=100", "seed=2"): (0.17, 13),
    ("backbone=mobilenet_v3_large", "data.train_images=400", "seed=1"): (
        0.95,
        11,
    ),  # what resnet18 found
    ("backbone=mobilenet_v3_large", "data.train_images=400", "seed=2"): (0.93, 11),
}
PARAMETERS = {"backbone=resnet18": 12_000_000, "backbone=mobilenet_v3_large": 4_000_000}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of two backbones, two data sizes and two seeds, one job that failed, and one
    that never ran.
    """
    home = tmp_path_factory.mktemp("comparison")
    truth = draw(home / "data")
    for overrides, (share, drawn) in RUNS.items():
        cost = {"parameters": PARAMETERS[overrides[0]]}
        make_run(
            home / "sweep" / ",".join(overrides),
            home / "data",
            truth,
            *overrides,
            share=share,
            drawn=drawn,
            cost=cost,
        )
    broken = ("backbone=resnet50", "data.train_images=100", "seed=1")
    error = "UserError: the loss is nan: take a smaller optimizer.lr"
    make_run(
        home / "sweep" / ",".join(broken),
        home / "data",
        truth,
        *broken,
        status="failed",
        error=error,
        cost={},
    )
    never = ("backbone=resnet50", "data.train_images=400", "seed=1")
    write_sweep(
        home / "sweep",
        [(",".join(typed), typed) for typed in (*RUNS, broken, never)],
        "Which learns most?",
    )
    return home / "sweep"


@pytest.fixture(scope="module")
def out(sweep: Path) -> Path:
    page = write_comparison([sweep], sweep.parent / "out")
    assert page == sweep.parent / "out/report.html"
    return page.parent


def results(sweep: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in sweep.glob("*/result.json")}


def rows(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_every_number_of_the_csv_is_that_of_the_run(sweep: Path, out: Path):
    table = rows(out)
    assert list(table) == [*(",".join(typed) for typed in RUNS), *list(table)[-2:]]
    for name, result in results(sweep).items():
        for key in ("mask_ap", "mask_ap50", "box_ap", "roi_accuracy"):
            told, value = table[name][key], result["metrics"].get(f"val/{key}")
            assert told == "" if value is None else float(told) == value
        for key in (
            "parameters",
            "flops",
            "seconds",
            "latency_seconds",
            "peak_memory_bytes",
            "energy_joules",
        ):
            told, value = table[name][key], result["cost"].get(key)
            assert told == "" if value is None else float(told) == value
        interval = result["intervals"].get("val/mask_ap") or ["", ""]
        assert [table[name]["mask_ap_images_low"], table[name]["mask_ap_images_high"]] == list(
            map(str, interval)
        )


def test_the_numbers_of_the_page_and_of_the_markdown_are_those_of_the_runs(sweep: Path, out: Path):
    page = Page((out / "report.html").read_text())
    text = (out / "report.md").read_text()
    head, *jobs = page.tables["Every scored job"]
    numbers = {int(row["job"]): name for name, row in rows(out).items()}
    assert len(jobs) == len(RUNS)
    for row in jobs:
        metrics, interval = (
            results(sweep)[numbers[int(row[0])]][key] for key in ("metrics", "intervals")
        )
        for kind in ("mask", "box"):
            low, high = interval[f"val/{kind}_ap"]
            told = f"{metrics[f'val/{kind}_ap']:.3f} ({low:.3f} to {high:.3f})"
            assert row[head.index(f"{kind} AP (95 % over images)")] == told
        assert row[head.index("roi_accuracy")] == f"{metrics['val/roi_accuracy']:.3f}"
        assert "| " + " | ".join(row) + " |" in text
    head, *costs = page.tables["Cost of each job"]
    for row in costs:
        cost = results(sweep)[numbers[int(row[0])]]["cost"]
        assert row[head.index("parameters, M")] == f"{cost['parameters'] / 1e6:.2f}"
        assert row[head.index("latency, ms")] == f"{cost['latency_seconds'] * 1e3:.1f}"
        assert "| " + " | ".join(row) + " |" in text


def test_means_over_seeds_have_their_interval(sweep: Path, out: Path):
    _, *settings = Page((out / "report.html").read_text()).tables[
        "Settings by AP: means over seeds"
    ]
    told = {(row[1], row[2]): row[4] for row in settings}
    aps = [results(sweep)[",".join(typed)]["metrics"]["val/mask_ap"] for typed in list(RUNS)[:2]]
    mean, half = sum(aps) / 2, 12.7062047 * abs(aps[0] - aps[1]) / 2
    assert told["resnet18", "100"] == f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"
    table = rows(out)[",".join(next(iter(RUNS)))]
    assert math.isclose(float(table["mask_ap_seeds"]), mean)
    assert math.isclose(float(table["mask_ap_seeds_low"]), mean - half)


def test_a_failed_job_is_a_row_with_its_reason_and_one_that_never_ran_as_well(out: Path):
    _, *missing = Page((out / "report.html").read_text()).tables["Jobs that have not finished"]
    assert [row[2] for row in missing] == ["failed", "not run"]
    assert missing[0][3] == "UserError: the loss is nan: take a smaller optimizer.lr"
    failed = rows(out)["backbone=resnet50,data.train_images=100,seed=1"]
    assert (failed["status"], failed["error"], failed["mask_ap"]) == ("failed", missing[0][3], "")
    text = (out / "report.md").read_text()
    assert missing[0][3] in text
    assert "10 jobs: 8 finished, 1 failed, 1 not run." in text


def test_equal_runs_are_no_difference_and_a_clear_one_is_told(out: Path):
    text = Page((out / "report.html").read_text()).text
    assert (
        "The difference between resnet18, train_images=400 and mobilenet_v3_large, "
        "train_images=400, 0.000 mask AP, is "
        "not significant (over images 95 % interval +0.000 to +0.000, p = 1.000; over seeds"
    ) in text
    assert (
        "resnet18, train_images=400 is better than mobilenet_v3_large, train_images=100 by" in text
    )
    assert "3 comparisons with the best setting." in text
    assert "at 0.05 for all comparisons together" in text


def test_the_pareto_front_is_told_and_the_plots_are_there(out: Path):
    text = Page((out / "report.html").read_text()).text
    assert (
        "mobilenet_v3_large, train_images=400 has the best mask AP and the fewest parameters."
        in text
    )
    names = {path.stem for path in (out / "plots").iterdir()}
    assert {
        "scores",
        "curve_train_loss",
        "curve_val_mask_ap",
        "curve_val_roi_accuracy",
        "cost_parameters",
    } <= names
    assert "data_size" in names
    assert not {"epochs", "learning_rate", "epochs_learning_rate", "cost_flops"} & names
    for name in names:
        assert Image.open(out / "plots" / f"{name}.png").format == "PNG"
        assert (out / "plots" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<text" not in (out / "plots" / f"{name}.svg").read_text()  # letters are outlines


def test_each_backbone_is_drawn_beside_the_truth_on_the_same_images(out: Path):
    page = Page((out / "report.html").read_text())
    assert page.text.count("ground truth: ") == comparison.IMAGES
    assert page.text.count("resnet18, train_images=400: ") == comparison.IMAGES
    assert page.text.count("mobilenet_v3_large, train_images=400: ") == comparison.IMAGES
    assert (
        sum(image.startswith("data:image/jpeg") for image in page.images) == 3 * comparison.IMAGES
    )


def test_the_page_needs_no_network(out: Path):
    text = (out / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "file:" not in text
    assert "<script" not in text
    assert all(link.startswith(("data:image/", "#")) for link in Page(text).loads)


def copied(sweep: Path, to: Path, *chosen: int) -> list[Path]:
    names = [",".join(typed) for typed in RUNS]
    return [Path(shutil.copytree(sweep / names[i], to / names[i])) for i in chosen]


def test_detections_that_are_not_those_of_the_result_are_not_tested(sweep: Path, tmp_path: Path):
    first, second = copied(sweep, tmp_path, 0, 4)
    shutil.copy(sweep / ",".join(list(RUNS)[2]) / "detections.json", first)
    text = Page(write_comparison([first, second], tmp_path / "out").read_text()).text
    ap = results(sweep)[first.name]["metrics"]["val/mask_ap"]
    assert f"and {ap:.6f} by its result.json, so they are not of the same weights" in text
    assert "the difference was not tested" in text
    assert "ground truth: " in text
    (second / "detections.json").unlink()
    assert "the results file" in write_comparison([first, second], tmp_path / "out").read_text()


def test_detections_that_are_not_those_of_the_run_are_told(sweep: Path, tmp_path: Path):
    first, second = copied(sweep, tmp_path, 0, 1)
    result = read_result(second / "result.json")
    write_result(second / "result.json", replace(result, files=file_digests(second)))
    file = second / "detections.json"
    file.write_text(file.read_text() + " ")
    page = write_comparison([first, second], tmp_path / "out").read_text()
    assert "detections.json does not match its checksum" in page


def test_validation_images_that_are_gone_are_told(sweep: Path, tmp_path: Path):
    folders = copied(sweep, tmp_path, 0, 1)
    for folder in folders:
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(
            config.replace("annotations/instances_val.json", "none.json")
        )
    page = write_comparison(folders, tmp_path / "out").read_text()
    assert "and similar jobs are neither drawn nor used for tests: " in page
    assert "none.json" in page
    assert page.count("are neither drawn nor used for tests") == 1
    assert "ground truth: " not in page


def test_runs_on_other_images_are_ranked_apart(sweep: Path, tmp_path: Path):
    truth = draw(tmp_path / "data")
    for entry in truth["annotations"]:
        entry["bbox"][2] += 1  # the same ids, other objects
    (tmp_path / "data/annotations/instances_val.json").write_text(json.dumps(truth))
    other = make_run(tmp_path / "other", tmp_path / "data", truth, share=0.9)
    page = Page(
        write_comparison([*copied(sweep, tmp_path, 0, 4), other], tmp_path / "out").read_text()
    )
    assert "They are 2 rankings: APs of different rankings are not comparable." in page.text
    assert {"settings", "settings-2"} <= set(page.ids)
    assert (tmp_path / "out/plots/scores.png").is_file()
    assert [row["images"] for row in rows(tmp_path / "out").values()] == ["1", "1", "2"]


def test_one_run_alone_has_a_report(sweep: Path, tmp_path: Path):
    page = Page(write_comparison(copied(sweep, tmp_path, 2), tmp_path / "out").read_text())
    assert "The mask AP on the 16 validation images of shapes is" in page.text
    assert "scores" not in page.ids


def test_two_sweeps_of_one_question_ask_it_once(sweep: Path, tmp_path: Path):
    shutil.copytree(sweep, tmp_path / "again")
    asked = json.loads((sweep / "sweep.json").read_text())["question"]
    write_comparison([sweep, tmp_path / "again"], tmp_path / "out")
    assert asked
    assert (tmp_path / "out/report.md").read_text().count(asked) == 1


def test_only_failures_have_a_report_too(sweep: Path, tmp_path: Path):
    broken = Path(
        shutil.copytree(
            sweep / "backbone=resnet50,data.train_images=100,seed=1", tmp_path / "broken"
        )
    )
    page = Page(write_comparison([broken], tmp_path / "out").read_text())
    assert "1 job: 1 failed." in page.text
    assert len(rows(tmp_path / "out")) == 1


def test_the_detections_of_runs_that_are_not_compared_are_not_read(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[Path] = []
    original = comparison.read_results

    def counting(file: Path) -> list:
        read.append(file)
        return original(file)

    monkeypatch.setattr(comparison, "read_results", counting)
    monkeypatch.setattr("maskrcnn_lit.report.comparison.significance.MOST", 1)
    monkeypatch.setattr(comparison, "COLUMNS", 1)
    write_comparison([sweep], tmp_path / "out")
    assert len(read) == len(set(read)) == 4  # two settings of two seeds, of four


def test_a_run_names_the_baseline(sweep: Path, tmp_path: Path):
    first = ",".join(next(iter(RUNS)))
    page = Page(write_comparison([sweep], tmp_path, baselines=[sweep / first]).read_text())
    name = "resnet18, train_images=100"
    assert f"Differences from {name}" in page.text
    told = (tmp_path / "report.md").read_text()
    assert f"Significantly worse than {name}: mobilenet_v3_large, train_images=100." in told
    assert f"- resnet18, train_images=400 is better than {name} by 0.525 mask AP (over" in told
    assert f"- mobilenet_v3_large, train_images=100 is worse than {name} by 0.231 mask AP" in told
    assert f"- 3 comparisons with {name}. Tested over" in told


def test_a_baseline_is_one_setting_of_the_runs(sweep: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"baseline=.*none is none of the finished runs"):
        write_comparison([sweep], tmp_path / "out", baselines=[sweep / "none"])
    first, *_, last = RUNS
    two = [sweep / ",".join(typed) for typed in (first, last)]
    with pytest.raises(UserError, match="baseline= names runs of several settings"):
        write_comparison([sweep], tmp_path / "out", baselines=two)


def without_masks(run: Path) -> Path:
    """The run as one of a model without masks."""
    file = run / "detections.json"
    boxes = [
        {key: value for key, value in entry.items() if key != "segmentation"}
        for entry in json.loads(file.read_text())
    ]
    file.write_text(json.dumps(boxes))
    result = read_result(run / "result.json")
    result.metrics = {k: v for k, v in result.metrics.items() if not k.startswith("val/mask")}
    result.intervals.pop("val/mask_ap")
    write_result(run / "result.json", result)
    return run


def test_a_run_without_masks_is_drawn_and_compared_by_box_ap(sweep: Path, tmp_path: Path):
    masks, boxes = copied(sweep, tmp_path, 0, 6)
    page = Page(
        write_comparison(
            [masks, without_masks(boxes)], tmp_path / "a", baselines=[boxes]
        ).read_text()
    )
    text = (tmp_path / "a/report.md").read_text()
    assert "Significantly worse than mobilenet_v3_large, train_images=400: resnet18" in text
    assert "box AP" in text
    assert "are not of the same weights" not in page.text
    page = Page(write_comparison([masks, boxes], tmp_path / "b", "val/mask_ap").read_text())
    assert "are not of the same weights" not in page.text
    assert page.text.count("mobilenet_v3_large, train_images=400: ") == comparison.IMAGES


def test_a_baseline_has_the_ap_of_the_ranking(sweep: Path, tmp_path: Path):
    masks, boxes = copied(sweep, tmp_path, 0, 6)
    without_masks(boxes)
    with pytest.raises(
        UserError, match=r"baseline=.*seed=1 has no mask AP, by which .* use metric=box_ap"
    ):
        write_comparison([masks, boxes], tmp_path / "out", "val/mask_ap", baselines=[boxes])
