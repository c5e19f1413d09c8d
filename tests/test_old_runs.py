"""A run folder that version 0.1.0 wrote still resumes, evaluates, predicts and compares.

tests/fixtures/run_v0.1.0.tar.xz: 48 synthetic images of 64 pixels, a MobileNetV3 with frozen
weights of +-1 (they compress), interrupted at step 460 of 480. unbroken_result.json is the
result.json of the same run without the interruption. shapes_v0.1.0.tar.xz: its data, as that
version drew them.
"""

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from repository import REPOSITORY
from tiny_commands import refused, run_command

from maskrcnn_lit import load_model
from maskrcnn_lit.runs.result import read_result

pytestmark = [pytest.mark.long, pytest.mark.process]


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(REPOSITORY / "tests/fixtures" / f"{name}_v0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return unpacked("run", tmp_path) / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data of the run, in another place."""
    return unpacked("shapes", tmp_path) / "data"


def test_it_resumes_to_the_result_of_the_unbroken_run(run_dir: Path, data: Path):
    run_command("train", f"resume={run_dir}", f"data.root={data}")
    now, unbroken = (
        read_result(run_dir / name) for name in ("result.json", "unbroken_result.json")
    )
    assert now.status == "finished"
    for name in ("val/mask_ap50", "val/box_ap", "val/loss", "val/roi_accuracy"):
        assert now.metrics[name] == pytest.approx(unbroken.metrics[name], abs=5e-3)
    assert unbroken.metrics["val/mask_ap50"] > 0.05


def test_it_is_evaluated_predicted_with_and_compared(run_dir: Path, data: Path, tmp_path: Path):
    part = "data.val.images=val", "data.val.annotations=annotations/instances_val.json"
    here = ("data=coco_json", f"data.root={data}", *part)
    run_command("evaluate", f"run={run_dir}", *here, "report=false")
    (file,) = run_dir.glob("evaluations/*/evaluation.json")
    assert json.loads(file.read_text())["metrics"]["val/box_ap"] > 0.005

    image = next((data / "val").glob("*.png"))
    run_command(
        "predict", f"run={run_dir}", f"source={image}", f"run_dir={tmp_path / 'predictions'}"
    )
    assert (tmp_path / "predictions" / "detections.json").is_file()
    assert len(list(load_model(run_dir).predict(Image.open(image).filename))) == 1

    run_command("compare", f"runs={run_dir}", f"out={tmp_path / 'report'}")
    assert "interrupted" in (tmp_path / "report" / "report.md").read_text()


def test_data_that_are_not_there_or_differ_leave_the_run_as_it_was(run_dir: Path, data: Path):
    before = (run_dir / "result.json").read_bytes()
    nowhere = data.parent / "nowhere"
    assert str(nowhere) in refused("train", f"resume={run_dir}", f"data.root={nowhere}")
    assert (run_dir / "result.json").read_bytes() == before
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1 - content["annotations"][0]["iscrowd"]
    file.write_text(json.dumps(content))
    message = refused("train", f"resume={run_dir}", f"data.root={data}")
    assert "train.annotations_sha256" in message
    assert "data.root" in message
    assert (run_dir / "result.json").read_bytes() == before
