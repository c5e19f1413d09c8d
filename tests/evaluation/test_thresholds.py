"""thresholds.json: written by an evaluation, read by predict."""

import json
from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.thresholds import (
    FILE,
    has_thresholds,
    read_thresholds,
    write_thresholds,
)

ANALYSIS = {
    "kind": "mask",
    "confusion": {"iou": 0.5},
    "per_class": [{"name": "ant", "threshold": 0.625}, {"name": "bee", "threshold": None}],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert not has_thresholds(tmp_path)
    assert write_thresholds(tmp_path, ANALYSIS) == tmp_path / FILE
    content = json.loads((tmp_path / FILE).read_text())
    assert len(content.pop("sha256")) == 64
    assert content == {
        "boxes_or_masks": "mask",
        "iou": 0.5,
        "thresholds": {"ant": 0.625},
        "weights": None,
    }
    assert has_thresholds(tmp_path)
    assert not has_thresholds("torchvision_v2")
    assert read_thresholds(tmp_path, ["cat", "ant", "bee"]) == [0.5, 0.625, 0.5]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_where_there_are_none_the_next_step_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=f"needs {tmp_path}/{FILE}, .* run `maskrcnn-lit evaluate run={tmp_path}` first",
    ):
        read_thresholds(tmp_path, ["ant"])
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.touch()
    with pytest.raises(UserError, match="on the run's own validation images"):
        read_thresholds(checkpoint, ["ant"])
    assert not has_thresholds(checkpoint)


def test_they_are_of_the_best_weights_alone(tmp_path: Path) -> None:
    write_thresholds(tmp_path, ANALYSIS)
    assert has_thresholds(tmp_path, "best")
    assert not has_thresholds(tmp_path, "last")
    assert read_thresholds(tmp_path, ["ant"], "best") == [0.625]
    with pytest.raises(
        UserError,
        match="for the best weights, not for checkpoint=last: leave that out, or",
    ):
        read_thresholds(tmp_path, ["ant"], "last")


def test_they_are_of_the_weights_that_were_evaluated(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.write_bytes(b"weights")
    write_thresholds(tmp_path, ANALYSIS)
    assert read_thresholds(tmp_path, ["ant"]) == [0.625]
    best.write_bytes(b"others, after more epochs")
    with pytest.raises(UserError, match=r"belongs to other weights than the run has now.*evaluate"):
        read_thresholds(tmp_path, ["ant"])


def test_another_suppression_has_thresholds_of_its_own(tmp_path: Path) -> None:
    changed = {"nms": "matrix", "agnostic_nms": False, "exclusive": True}
    write_thresholds(tmp_path, ANALYSIS)
    assert not has_thresholds(tmp_path, changed=changed)
    command = (
        "evaluate run=.* model.nms=matrix model.agnostic_nms=false model.exclusive=true` first"
    )
    with pytest.raises(UserError, match=f"thresholds_matrix_exclusive.json, which .* {command}"):
        read_thresholds(tmp_path, ["ant"], changed=changed)
    other = ANALYSIS | {"per_class": [{"name": "ant", "threshold": 0.25}]}
    write_thresholds(tmp_path, other, changed)
    assert read_thresholds(tmp_path, ["ant"], changed=changed) == [0.25]
    assert read_thresholds(tmp_path, ["ant"]) == [0.625]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"thresholds": {"ant": "high"}}', '{"thresholds": 3}']
)
def test_a_broken_file_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(
        UserError, match=r"has no thresholds .* write it again with `maskrcnn-lit evaluate run="
    ):
        read_thresholds(tmp_path, ["ant"])
