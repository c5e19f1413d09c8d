"""The experiments reach what their yaml promises. Minutes each, so they are asked for: pytest -m
slow.
"""

import csv
import json
from pathlib import Path

import pytest
from tiny_commands import run_command

pytestmark = pytest.mark.slow


def metrics(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "result.json").read_text())["metrics"]


def test_demo(tmp_path: Path):
    run_command("train", "experiment=demo", f"data.root={tmp_path}/data", f"run_dir={tmp_path}/run")
    assert metrics(tmp_path / "run")["val/mask_ap50"] >= 0.75


def test_overfit_memorises_four_real_images(test_data: Path, tmp_path: Path):
    run_command(
        "train", "experiment=overfit", f"data.root={test_data}/coco_mini", f"run_dir={tmp_path}/run"
    )
    assert metrics(tmp_path / "run")["val/mask_ap50"] >= 0.9


def test_nuclei_improve_from_epoch_to_epoch(test_data: Path, tmp_path: Path):
    run_command(
        "train", "experiment=nuclei", f"data.root={test_data}/nuclei", f"run_dir={tmp_path}/run"
    )
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        reached = [float(row["val/mask_ap"]) for row in csv.DictReader(file) if row["val/mask_ap"]]
    assert len(reached) == 5
    assert reached == sorted(reached)
