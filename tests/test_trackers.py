"""Runs with logger=wandb and logger=mlflow, off line. What is said without these packages:
training/test_loggers.py.
"""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_commands import MODEL, coco_data, metric_rows, result, run_script

pytest_plugins = ("tiny_commands",)
pytestmark = pytest.mark.process

QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
STEPS = 2


def trained_with(logger: str, data: Path, folder: Path, *options: str) -> Path:
    """The folder of a short run, seed=1 in `folder`."""
    run_dir = folder / "seed=1"
    short = (f"trainer.steps={STEPS}", "trainer.log_every_n_steps=1", "callbacks.panels=null")
    arguments = (
        *coco_data(data),
        *MODEL,
        *short,
        f"logger={logger}",
        *options,
        f"run_dir='{run_dir}'",
    )
    done = run_script("train", *arguments, cwd=folder, **QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(run_dir / "checkpoints")
    return run_dir


def records(file: Path) -> Iterator[Any]:
    """What an offline run of Weights & Biases holds: LevelDB's log format behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = file.read_bytes(), 7, b""
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # no room for the head of another piece in this block
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole one, or the last piece
            yield Record.FromString(whole)
            whole = b""


def test_weights_and_biases(strange: Path, tmp_path: Path):
    pytest.importorskip("wandb")
    run_dir = trained_with("wandb", strange, tmp_path)
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    told = list(records(file))
    (run,) = [record.run for record in told if record.HasField("run")]
    assert (run.project, run.display_name) == ("maskrcnn_lit", "seed=1")
    assert run.run_id == (run_dir / "wandb_id").read_text()
    config = {
        item.key: json.loads(item.value_json)
        for record in told
        for item in record.config.update
        if item.key
    }
    config |= {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 1 and config["optimizer"]["lr"] > 0
    rows: list[dict[str, Any]] = []
    for record in told:
        if record.HasField("history"):
            items = record.history.item
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
    losses = {row["trainer/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    expected = {
        int(row["step"]): float(row["train/loss"])
        for row in metric_rows(run_dir)
        if row["train/loss"]
    }
    assert losses == expected and len(losses) == STEPS, "as in metrics.csv"
    (scores,) = [row for row in rows if "val/mask_ap" in row]
    final = result(run_dir)["metrics"]
    assert (
        scores["val/loss"] == pytest.approx(final["val/loss"])
        and scores["val/mask_ap"] == final["val/mask_ap"]
    )
    assert list(run_dir.glob("events.out.tfevents.*")), "besides"


def test_mlflow_of_two_processes(strange: Path, tmp_path: Path):
    mlflow = pytest.importorskip("mlflow")
    run_dir = trained_with("mlflow", strange, tmp_path, "trainer.devices=2")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("maskrcnn_lit").experiment_id])
    assert (run.info.run_name, run.info.status) == ("seed=1", "FINISHED")
    assert run.data.params["seed"] == "1"
    assert run.data.params["backbone/name"] == "resnet18"
    final = result(run_dir)["metrics"]
    for name in ("val/loss", "val/mask_ap", "val/box_ap", "val/roi_accuracy"):
        assert run.data.metrics[name] == pytest.approx(final[name])
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(STEPS))
    assert list(run_dir.glob("events.out.tfevents.*")), "besides"
