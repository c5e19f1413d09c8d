"""The stored choice of suppression."""

from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.best_suppression import FILE, read_suppression, write_suppression

CHOICE = {"nms": "mask", "agnostic_nms": True, "exclusive": False}


def test_a_choice_is_read_as_it_was_written(tmp_path: Path):
    assert write_suppression(tmp_path, CHOICE, "val/mask_ap", 0.5) == tmp_path / FILE
    assert read_suppression(tmp_path) == CHOICE


def test_a_choice_belongs_to_the_weights_that_were_evaluated(tmp_path: Path):
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.write_bytes(b"weights")
    write_suppression(tmp_path, CHOICE, "val/mask_ap", 0.5)
    assert read_suppression(tmp_path) == CHOICE
    best.write_bytes(b"others, after more epochs")
    with pytest.raises(UserError, match=r"belongs to other weights than the run has now.*nms=all"):
        read_suppression(tmp_path)


def test_what_cannot_be_read_is_said_with_the_next_step(tmp_path: Path):
    with pytest.raises(UserError, match=r"does not exist: run `maskrcnn-lit evaluate .* nms=all`"):
        read_suppression(tmp_path)
    with pytest.raises(UserError, match="only available for the best weights"):
        read_suppression(tmp_path, "last")
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(UserError, match="has no choice of suppression"):
        read_suppression(tmp_path)
