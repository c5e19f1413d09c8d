"""Runs with logger=wandb, logger=mlflow and logger=trackio, off line. What is said without these
packages: training/test_loggers.py.
"""

import json
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_commands import BACKBONE, TINY, coco_data, metric_rows, result, run_script

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
    short = (f"trainer.steps={STEPS}", "trainer.log_every_n_steps=1", "callbacks.panels.images=1")
    arguments = (
        *coco_data(data),
        *TINY,
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


PICTURES = {"val_plots/class_ap", "val_plots/precision_recall", "val_plots/confusion"}
TABLES = {
    "val_tables/classes",
    "about/command",
    "about/commit",
    "about/changed options",
    "about/data",
}


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
    assert config["seed"] == 1
    assert config["optimizer"]["lr"] > 0
    rows: list[dict[str, Any]] = []
    media: dict[str, dict[str, Any]] = {}
    for record in told:
        if record.HasField("history"):
            items = record.history.item
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
            for item in items:
                if len(item.nested_key) == 2:  # of a picture or a table
                    name, key = item.nested_key
                    media.setdefault(name, {})[key] = json.loads(item.value_json)
    kinds = {name: value["_type"] for name, value in media.items()}
    (panel,) = (name for name in kinds if name.startswith("val_images/"))
    assert {name for name, kind in kinds.items() if kind == "image-file"} == PICTURES | {panel}
    assert {name for name, kind in kinds.items() if kind == "table-file"} == TABLES
    (files,) = run_dir.glob("wandb/offline-run-*/files")
    assert all((files / value["path"]).is_file() for value in media.values())
    table = json.loads((files / media["val_tables/classes"]["path"]).read_text())
    assert table["columns"] == ["class", "objects", "mask AP", "box AP", "roi_accuracy"]
    losses = {row["trainer/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    expected = {
        int(row["step"]): float(row["train/loss"])
        for row in metric_rows(run_dir)
        if row["train/loss"]
    }
    assert losses == expected
    assert len(losses) == STEPS, "as in metrics.csv"
    (scores,) = [row for row in rows if "val/mask_ap" in row]
    final = result(run_dir)["metrics"]
    assert scores["val/loss"] == pytest.approx(final["val/loss"])
    assert scores["val/mask_ap"] == final["val/mask_ap"]
    assert list(run_dir.glob("events.out.tfevents.*")), "besides"


def test_mlflow_of_two_processes(strange: Path, tmp_path: Path):
    mlflow = pytest.importorskip("mlflow")
    options = ("trainer.devices=2", "callbacks.panels.images=3")  # one of them is rank zero's
    run_dir = trained_with("mlflow", strange, tmp_path, *options)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("maskrcnn_lit").experiment_id])
    assert (run.info.run_name, run.info.status) == ("seed=1", "FINISHED")
    assert run.data.params["seed"] == "1"
    assert run.data.params["backbone/name"] == BACKBONE
    final = result(run_dir)["metrics"]
    for name in ("val/loss", "val/mask_ap", "val/box_ap", "val/roi_accuracy"):
        assert run.data.metrics[name] == pytest.approx(final[name])
    images = {
        path.path.partition("+")[0] for path in client.list_artifacts(run.info.run_id, "images")
    }
    assert {f"images/{name.replace('/', '~')}" for name in PICTURES} < images
    assert any(name.startswith("images/val_images~") for name in images)
    listed = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert {entry["path"] for entry in listed} == {f"tables/{name}.json" for name in TABLES}
    file = client.download_artifacts(run.info.run_id, "tables/about/data.json", str(tmp_path))
    assert [row[:2] for row in json.loads(Path(file).read_text())["data"]] == [
        ["coco_json train", 8],
        ["coco_json val", 3],
    ]
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(STEPS))
    assert list(run_dir.glob("events.out.tfevents.*")), "besides"


@pytest.mark.trackio
def test_trackio(strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run_dir = trained_with("trackio", strange, tmp_path)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        found = base.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in found} == {(run_dir / "trackio_name").read_text()}
    values: dict[str, dict[int, Any]] = {}
    for _, step, content in found:
        for name, value in json.loads(content).items():
            values.setdefault(name, {})[step] = value
    assert list(values["train/loss"]) == list(range(STEPS))
    assert list(values["val/mask_ap"].values()) == [result(run_dir)["metrics"]["val/mask_ap"]]
    kinds = {
        name: entry.get("_type")
        for name, steps in values.items()
        if isinstance(entry := next(iter(steps.values())), dict)
    }
    (panel,) = (name for name in kinds if name.startswith("val_images/"))
    assert {n for n, kind in kinds.items() if kind == "trackio.image"} == PICTURES | {panel}
    assert {n for n, kind in kinds.items() if kind == "trackio.table"} == TABLES
