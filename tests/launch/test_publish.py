"""A published run: a folder that anybody can load, and the same on a hub on 127.0.0.1."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_hub import fake_hub
from safetensors import safe_open
from tiny_commands import coco_data, refused, run_command

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.publish import without_place, without_places
from maskrcnn_lit.predictor import load_model
from maskrcnn_lit.runs.shared import CARD, CONFIG, FACTS, WEIGHTS
from maskrcnn_lit.runs.trained_model import read

pytest_plugins = ("tiny_commands",)
pytestmark = [pytest.mark.long, pytest.mark.process]  # evaluate starts loaders


@pytest.fixture(scope="module")
def shared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "model"
    run_command("publish", f"run={trained}", f"to={folder}", "license=cc-by-4.0", "pictures=true")
    return folder


def same_detections(source: Any, trained: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    ours, theirs = (
        load_model(where, score_threshold=0.0, accelerator="cpu").predict(image)[0]
        for where in (trained, source)
    )
    assert len(ours.boxes) > 0
    assert ours.names == theirs.names
    assert np.array_equal(ours.boxes, theirs.boxes)
    assert np.array_equal(ours.scores, theirs.scores)


def test_the_folder_is_the_model(shared: Path, trained: Path):
    assert {WEIGHTS, FACTS, CARD, CONFIG, "scores.png", "predictions.png"} <= set(
        os.listdir(shared)
    )
    with safe_open(shared / WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == set(read(trained).state)
    same_detections(shared, trained)


def test_it_names_no_place_of_this_machine(shared: Path, trained: Path):
    for name in (FACTS, CARD, CONFIG):
        text = (shared / name).read_text()
        assert str(trained.parent) not in text, name
        assert "/tmp" not in text, name
    assert yaml.safe_load((shared / CONFIG).read_text())["data"]["root"] == "DIR"


def test_the_card_has_the_form_of_the_hub(shared: Path, trained: Path):
    text = (shared / CARD).read_text()
    _, header, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    facts = yaml.safe_load(header)
    assert facts["license"] == "cc-by-4.0"
    assert facts["library_name"] == "maskrcnn_lit"
    (result,) = facts["model-index"][0]["results"]
    scores = {row["name"]: row["value"] for row in result["metrics"]}
    metrics = json.loads((shared / FACTS).read_text())["metrics"]
    assert scores["val/mask_ap"] == round(metrics["val/mask_ap"], 4)
    assert result["dataset"]["name"]
    assert "maskrcnn-lit train " in body
    for file in re.findall(r"!\[[^]]*\]\((\S+)\)", body):
        assert (shared / file).is_file()


def test_other_commands_take_it(shared: Path, strange: Path, tmp_path: Path):
    out = tmp_path / "evaluation"
    run_command("evaluate", f"run={shared}", *coco_data(strange), "report=false", f"run_dir={out}")
    assert (out / "evaluation.json").is_file()


def test_on_the_hub(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with fake_hub(tmp_path / "cache", monkeypatch) as hub:
        run_command("publish", f"run={trained}", "to=hf:mylab/nuclei", "private=true")
        assert hub.private == {"mylab/nuclei": True}
        assert {WEIGHTS, FACTS, CARD, CONFIG} <= set(hub.files["mylab/nuclei"])
        same_detections("hf:mylab/nuclei", trained)
        fetched = [r for r in hub.requests if "/resolve/" in r]
        assert not any(CARD in request or "scores.png" in request for request in fetched)
        with pytest.raises(UserError, match=r"hf:mylab/none cannot be fetched .*check the name"):
            load_model("hf:mylab/none")
    message = refused("publish", f"run={trained}", "to=hf:mylab/nuclei")  # the hub is gone
    assert "to=hf:mylab/nuclei cannot be written (" in message
    assert "`hf auth login`" in message


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / FACTS).write_text("{"), r"maskrcnn_lit.json cannot be read"),
        (
            lambda folder: (folder / FACTS).write_text('{"version": 9, "categories": []}'),
            r"is of version 9, and this maskrcnn_lit reads version 1",
        ),
        (
            lambda folder: (folder / WEIGHTS).write_bytes(b"\0" * 100),
            r"model.safetensors cannot be loaded",
        ),
        (
            lambda folder: (folder / CONFIG).write_text("model: {_target_: os.system}"),
            r"os.system",
        ),
    ],
    ids=["cut", "version", "weights", "code"],
)
def test_a_damaged_or_foreign_folder(shared: Path, tmp_path: Path, spoil: Any, message: str):
    folder = tmp_path / "copy"
    shutil.copytree(shared, folder)
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_what_cannot_be_published(trained: Path, tmp_path: Path, capsys: Any):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for options, message in {
        (f"run={tmp_path}/none", "to=new"): "is not a folder: give the folder of a finished run",
        (f"run={trained}", f"to={tmp_path}/full"): "is not empty",
        (f"run={trained}", "to=hf:alone"): "to=hf:alone must be hf:USER/NAME",
    }.items():
        run_command("publish", *options, code=2)
        assert message in capsys.readouterr().err


def test_places_are_left_out():
    assert without_place("data.root=/home/me/coco") == "data.root=DIR"
    assert without_place("run_dir='~/runs/a'") == "run_dir=DIR"
    assert without_place("optimizer.lr=1e-3") == "optimizer.lr=1e-3"
    assert without_place("data.root=data/coco") == "data.root=data/coco"
    given = {"data": {"root": "C:\\data", "ids": [1, "/a"]}, "seed": 1}
    assert without_places(given) == {"data": {"root": "DIR", "ids": [1, "DIR"]}, "seed": 1}
