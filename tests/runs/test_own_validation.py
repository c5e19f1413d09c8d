"""Data that `data.val_share` divides, after their files changed."""

import json
import logging
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco

from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.own_validation import (
    check_own_validation,
    same_validation_images,
    warn_of_other_division,
)
from maskrcnn_lit.runs.provenance import describe_datamodule
from maskrcnn_lit.runs.result import RunResult, write_result


def data_of(folder: Path, val_share: float = 0.3) -> CocoDataModule:
    data = CocoDataModule(
        name="own",
        annotations=folder / "instances.json",
        images=folder / "images",
        val_share=val_share,
        cache_dir=folder / "cache",
    )
    data.setup("validate")
    return data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the record of its validation images, of 9 images."""
    write_coco(tmp_path, coco_dict(9))
    described = describe_datamodule(data_of(tmp_path))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write_result(tmp_path / "run" / "result.json", RunResult(status="finished", data=described))
    return tmp_path / "run"


def without_image(folder: Path, position: int) -> None:
    content = json.loads((folder / "instances.json").read_text())
    number = content["images"].pop(position)["id"]
    entries = content["annotations"]
    content["annotations"] = [entry for entry in entries if entry["image_id"] != number]
    (folder / "instances.json").write_text(json.dumps(content))


def test_the_same_images_are_accepted(run: Path, caplog: pytest.LogCaptureFixture):
    data = data_of(run.parent)
    assert data.val_index is not None
    checkpoint = run / "checkpoints" / "best.ckpt"
    for place in (run, checkpoint, run / "model.onnx"):
        assert same_validation_images(place, data.val_index) is True
        with caplog.at_level(logging.INFO):
            caplog.clear()
            check_own_validation(place, data, "")
            warn_of_other_division(place, data)
        assert caplog.text == ""


def test_another_division_is_refused(run: Path, caplog: pytest.LogCaptureFixture):
    recorded = set(data_of(run.parent).subset_ids()["val"])
    without_image(run.parent, 0)
    data = data_of(run.parent)
    assert set(data.subset_ids()["val"]) - recorded  # images that were trained on
    with pytest.raises(UserError, match=r"instances\.json, as data\.val_share .* or go home"):
        check_own_validation(run / "checkpoints" / "best.ckpt", data, ", or go home")
    with caplog.at_level(logging.INFO):
        warn_of_other_division(run, data)
    assert "warning: " in caplog.text
    assert "these 3 images" in caplog.text


@pytest.mark.parametrize("record", ["none", "older"])
def test_a_run_without_a_record_is_a_warning(
    run: Path, record: str, caplog: pytest.LogCaptureFixture
):
    (run / "result.json").unlink()
    if record == "older":
        write_result(run / "result.json", RunResult(status="finished"))
    data = data_of(run.parent)
    with caplog.at_level(logging.INFO):
        check_own_validation(run, data, "")
    assert "it may have trained on some of them" in caplog.text


def test_data_with_two_parts_are_never_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    annotations, images = write_coco(tmp_path, coco_dict(3))
    part = {"annotations": annotations, "images": images}
    data = CocoDataModule(name="two", train=part, val=part, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.INFO):
        check_own_validation(tmp_path / "no_run", data, "")
        warn_of_other_division(tmp_path / "no_run", data)
    assert caplog.text == ""
