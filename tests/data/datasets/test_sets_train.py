"""Trainings on the real small sets in the forms of VOC and Cityscapes, each with its evaluation."""

import csv
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
from tiny_commands import MODEL, run_command

from maskrcnn_lit.runs.result import read_result

pytest_plugins = ("tiny_commands", "plain_plots")

pytestmark = [pytest.mark.data, pytest.mark.long, pytest.mark.usefixtures("plain_plots")]

RUN = ("trainer.epochs=2", "data.train_images=6", "data.val_images=2")


def trained(tmp_path: Path, *options: str) -> Path:
    cache = f"data.cache_dir={tmp_path}/cache"
    run_command("train", *MODEL, *RUN, *options, cache, f"run_dir={tmp_path}/run")
    return tmp_path / "run"


def test_voc_mini_trains_and_is_scored_without_its_void_pixels(
    test_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        run = trained(tmp_path, "data=voc2012", f"data.root={test_data}/voc_mini")
    assert "train: 6 of 6 images have void pixels" in caplog.text
    result = read_result(run / "result.json")
    assert result.status == "finished"
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [float(row["train/loss_mask"]) for row in rows if row.get("train/loss_mask")]
    assert all(0 < loss < 2 for loss in losses)
    run_command("evaluate", f"run={run}", f"run_dir={tmp_path}/eval")
    record = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert record["metrics"]["val/mask_ap"] == pytest.approx(result.metrics["val/mask_ap"])
    assert not any(name.startswith("val/cityscapes") for name in record["metrics"])


def test_cityscapes_mini_has_both_ap_everywhere(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = trained(tmp_path, "data=cityscapes", f"data.root={test_data}/cityscapes_mini")
    metrics = read_result(run / "result.json").metrics
    capsys.readouterr()
    run_command("evaluate", f"run={run}", f"run_dir={tmp_path}/eval")
    printed = capsys.readouterr()
    assert "Cityscapes AP 0.000, AP50 0.000: of masks" in printed.out + printed.err
    record = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    for name in ("val/mask_ap", "val/cityscapes_ap", "val/cityscapes_ap50"):
        assert math.isfinite(metrics[name])
        assert record["metrics"][name] == pytest.approx(metrics[name])
    assert "cityscapes_ap" in record["per_class"]["car"]
    assert "Cityscapes AP" in (tmp_path / "eval" / "report.html").read_text()
    shutil.copytree(run, tmp_path / "again")
    run_command("compare", f"runs=[{run},{tmp_path}/again]", f"out={tmp_path}/compared")
    assert "Cityscapes AP" in (tmp_path / "compared" / "report.html").read_text()
    assert "cityscapes_ap50" in (tmp_path / "compared" / "results.csv").read_text()
