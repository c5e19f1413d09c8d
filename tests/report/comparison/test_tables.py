"""Rows: the numbers of result.json, in the csv in full and in the tables as people read them."""

import csv
import io
import math

from comparison_sample import COST, job

from maskrcnn_lit.report.comparison.settings import Job, rankings
from maskrcnn_lit.report.comparison.tables import (
    command,
    cost_rows,
    csv_text,
    failure_rows,
    hidden_rows,
    markdown,
    score_rows,
    setting_rows,
)
from maskrcnn_lit.runs.result import RunResult

RARE = {"val/mask_ap_rare": 0.125, "val/mask_ap_common": 0.25, "val/mask_ap_frequent": 0.375}


def test_ap_by_frequency_stands_where_the_data_have_it():
    """LVIS's rare, common and frequent classes: in the csv and in the table of jobs."""
    lvis = job("a", "backbone=a", "seed=1", ap=0.2, seed=1, metrics=RARE)
    coco = job("b", "backbone=a", "seed=1", ap=0.2, seed=1)
    for one in (lvis, coco):
        one.config["backbone"] = {"name": one.name}
    (ranking,) = rankings([lvis])
    head, rows = score_rows(ranking, {"a": 1})
    of = dict(zip(head, rows[0], strict=True))
    assert [of[f"mask {k}"] for k in ("rare", "common", "frequent")] == ["0.125", "0.250", "0.375"]
    (line,) = csv.DictReader(io.StringIO(csv_text([lvis], [ranking])))
    assert float(line["mask_ap_rare"]) == 0.125
    assert "box_ap_rare" not in line
    assert "mask_ap_rare" not in csv_text([coco], rankings([coco]))


def test_hidden_objects_stand_where_a_job_has_their_metrics():
    metrics = {"val/recall_hidden_0": 0.875, "val/recall_separated": 0.5, "val/merged": 3.0}
    with_them = job("a", "backbone=a", "seed=1", ap=0.2, seed=1, metrics=metrics)
    without = job("b", "backbone=a", "seed=1", ap=0.2, seed=1)
    for one in (with_them, without):
        one.config["backbone"] = {"name": one.name}
    (ranking,) = rankings([with_them])
    head, rows = hidden_rows(ranking, {"a": 1})
    assert head[2:] == ["recall, hidden 0 to 0.1", "recall, separated", "merged"]
    assert [row[2:] for row in rows] == [["0.875", "0.500", "3.000"]]
    (line,) = csv.DictReader(io.StringIO(csv_text([with_them], [ranking])))
    assert float(line["recall_separated"]) == 0.5
    assert "split" not in line
    (ranking,) = rankings([without])
    assert hidden_rows(ranking, {"b": 1})[1] == []


def jobs() -> list[Job]:
    intervals = {"val/mask_ap": [0.1, 0.3], "val/box_ap": None}
    made = [
        job(
            "a1",
            "backbone=a",
            "seed=1",
            "run_dir=x",
            ap=0.2,
            seed=1,
            intervals=intervals,
            metrics={"val/mask_ap50": 0.4},
        ),
        job(
            "a2",
            "backbone=a",
            "seed=2",
            "run_dir=y",
            ap=0.3,
            seed=2,
            cost={"flops": None, "energy_joules": 5000.0},
        ),
        job(
            "b1",
            "backbone=b",
            "seed=1",
            "note=it's",
            ap=0.5,
            seed=1,
            metrics={"val/roi_accuracy": 0.75},
        ),
        job("c1", "backbone=c", "seed=1", status="failed", error="UserError: no\nmemory | sorry"),
        Job("d1", None, ("backbone=d", "seed=1"), {}, RunResult(status="failed")),
    ]
    for one in made[:-1]:
        one.config["backbone"] = {"name": one.name[0]}
    return made


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_csv_has_a_row_for_each_job_with_every_number_in_full():
    rows = rows_of(csv_text(jobs(), rankings(jobs())))
    assert [row["name"] for row in rows] == ["a1", "a2", "b1", "c1", "d1"]
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["failed", "not run"]
    first = rows[0]
    assert float(first["mask_ap"]) == 0.2
    assert float(first["box_ap"]) == 0.2 + 0.01
    assert float(first["mask_ap50"]) == 0.4
    assert (
        first["mask_ap_images_low"],
        first["mask_ap_images_high"],
        first["box_ap_images_low"],
    ) == ("0.1", "0.3", "")
    assert float(first["mask_ap_seeds"]) == 0.25
    assert first["setting"] == rows[1]["setting"] == "B"
    half = 12.7062047 * 0.05
    assert math.isclose(float(first["mask_ap_seeds_high"]), 0.25 + half, abs_tol=1e-6)
    assert rows[2]["mask_ap_seeds_low"] == ""
    assert rows[2]["roi_accuracy"] == "0.75"
    for name, value in COST.items():
        assert first[name] == ("" if value is None else str(value))
    assert (rows[1]["flops"], rows[1]["energy_joules"]) == ("", "5000.0")
    assert rows[3]["error"] == "UserError: no\nmemory | sorry"
    assert rows[3]["mask_ap"] == rows[4]["parameters"] == ""


def test_settings_show_means_over_seeds_and_jobs_their_own_numbers():
    (ranking,) = rankings(jobs())
    head, rows = setting_rows(ranking)
    assert head == [
        "",
        "backbone",
        "note",
        "seeds",
        "mask AP (95 % over seeds)",
        "box AP (95 % over seeds)",
        "roi_accuracy",
    ]
    assert rows[0][:5] == ["A", "b", "it's", "1", "0.500"]
    assert rows[1][:5] == ["B", "a", "default", "2", "0.250 (-0.385 to 0.885)"]
    assert rows[1][-1] == "-"
    head, rows = score_rows(ranking, {"a1": 1, "a2": 2, "b1": 3})
    assert head[-4:] == ["box AP50", "roi_accuracy", "backbone", "note"]
    assert rows[0][:4] == ["3", "A", "1", "0.500"]
    assert rows[0][-3:] == ["0.750", "b", "it's"]
    assert rows[1][:5] == ["1", "B", "1", "0.200 (0.100 to 0.300)", "0.400"]


def test_a_model_without_masks_has_its_seeds_too():
    """Beside others that have mask AP, by which they are ranked."""
    with_masks = job("a", "backbone=a", "seed=1", ap=0.2, seed=1)
    boxes = [
        job(
            f"b{i}",
            "backbone=b",
            f"seed={i}",
            seed=i,
            metrics={"val/box_ap": 0.3, "val/images": 50.0},
        )
        for i in (1, 2)
    ]
    for one in (with_masks, *boxes):
        one.config["backbone"] = {"name": one.name[0]}
    (ranking,) = rankings([with_masks, *boxes])
    head, rows = setting_rows(ranking)
    seeds = {row[head.index("backbone")]: row[head.index("seeds")] for row in rows}
    assert seeds == {"a": "1", "b": "2"}


def test_costs_are_in_readable_units_and_unknown_ones_have_no_column():
    head, rows = cost_rows(jobs())
    assert head[4:] == [
        *(
            "parameters, M",
            "GFLOP",
            "images/s in training",
            "images/s in inference",
            "latency, ms",
            "peak memory, GB",
        ),
        *("training, s", "energy, kJ"),
    ]
    assert rows[0][4:] == ["4.00", "2.50", "12.5", "40.1", "31.2", "1.25", "120", "-"]
    assert rows[1][5] == "-"
    assert rows[1][-1] == "5.0"
    assert "energy, kJ" not in cost_rows(jobs()[2:])[0]


def test_what_has_not_finished_says_why():
    killed = job("k", status="running")
    _, rows = failure_rows([*jobs(), killed])
    assert rows[0] == ["4", "c1", "failed", "UserError: no\nmemory | sorry"]
    assert rows[1] == ["5", "d1", "not run", "not started: the sweep was stopped before"]
    assert rows[2][2] == "running"
    assert "killed" in rows[2][3]


def test_a_command_trains_the_job_again_elsewhere():
    assert command(jobs()[0]) == "maskrcnn-lit train backbone=a seed=1"
    assert command(jobs()[2]) == "maskrcnn-lit train backbone=b seed=1 'note=it'\"'\"'s'"


def test_a_command_goes_on_from_the_parent_again():
    longer = job("a", "backbone=a", "trainer.epochs=24", "run_dir=b")
    longer.result.parent = {"run": "runs/first one", "step": 8}
    assert command(longer) == "maskrcnn-lit train 'resume=\"runs/first one\"' trainer.epochs=24"
    (row,) = csv.DictReader(csv_text([longer], []).splitlines())
    assert row["parent"] == "runs/first one"


def test_the_two_kinds_of_roi_accuracy_are_two_columns():
    made = jobs()
    made[0].config["metrics"] = {"roi_accuracy": {"boxes": "study"}}
    made[0].result.metrics["val/roi_accuracy"] = 0.46
    rows = rows_of(csv_text(made, rankings(made)))
    assert (rows[0]["roi_accuracy"], rows[0]["roi_accuracy_study"]) == ("", "0.46")
    assert (rows[2]["roi_accuracy"], rows[2]["roi_accuracy_study"]) == ("0.75", "")


def test_a_cell_of_markdown_holds_no_bar_and_no_line_break():
    text = markdown(*failure_rows(jobs()))
    assert text.splitlines()[2] == "| 4 | c1 | failed | UserError: no memory \\| sorry |"


def test_an_official_ap_has_columns_where_a_run_has_it():
    scores = {"val/cityscapes_ap": 0.306, "val/cityscapes_ap50": 0.512}
    several = [job("a", ap=0.4, seed=1, metrics=scores), job("b", ap=0.3, seed=1)]
    (row, other) = csv.DictReader(io.StringIO(csv_text(several, rankings(several))))
    assert (row["cityscapes_ap"], row["cityscapes_ap50"]) == ("0.306", "0.512")
    assert other["cityscapes_ap"] == ""
    (ranking,) = rankings(several[:1])
    head, line = setting_rows(ranking)[0], setting_rows(ranking)[1][0]
    assert line[head.index("Cityscapes AP (95 % over seeds)")].startswith("0.306")
    head, lines = score_rows(ranking, {"a": 1})
    assert lines[0][head.index("Cityscapes AP50")] == "0.512"
    plain = several[1:]
    assert "cityscapes_ap" not in csv_text(plain, rankings(plain))
    assert not any("Cityscapes" in title for title in setting_rows(rankings(plain)[0])[0])
