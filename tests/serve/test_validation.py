"""The losses, detections and inside of a trained run's validation images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.serve.validation import Validation

pytest_plugins = ("tiny_commands",)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since a file is written to it. Its detections.json has those of last.ckpt."""
    copy = tmp_path_factory.mktemp("looked_at") / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("best.ckpt", "events*"))
    return copy


@pytest.fixture(scope="module")
def validation(run: Path) -> Validation:
    return Validation(run, "last", [], "cpu")


def test_the_detections_are_those_of_the_run(run: Path, validation: Validation):
    def rows(entries: list[dict[str, Any]]) -> np.ndarray:
        return np.array(
            sorted([entry["image_id"], -entry["score"], *entry["bbox"]] for entry in entries)
        )

    stored = json.loads((run / "detections.json").read_text())
    assert len(validation.results) == len(stored) > 50
    np.testing.assert_allclose(rows(validation.results), rows(stored), rtol=0, atol=2e-3)


def test_the_losses_are_those_of_a_batch_of_one(validation: Validation):
    assert len(validation.losses) == len(validation)
    with torch.inference_mode():
        losses = validation.model(validation.batch(2)).losses
    assert validation.losses[2] == pytest.approx({k: float(v) for k, v in losses.items()})


def test_they_are_computed_once(run: Path, validation: Validation, monkeypatch: Any):
    monkeypatch.setattr(Validation, "_pass", lambda self: pytest.fail("computed again"))
    again = Validation(run, "last", [], "cpu")
    assert again.losses == validation.losses
    assert again.results == validation.results


def test_other_weights_are_looked_at_again(run: Path, validation: Validation, monkeypatch: Any):
    other = run.with_name("other")
    shutil.copytree(run, other)
    last = other / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes() + b" ")  # another file with the same weights
    monkeypatch.setattr(Validation, "_pass", lambda self: ([None] * len(self), []))
    assert Validation(other, "last", [], "cpu").results == []


def test_annotations_have_their_masks(validation: Validation):
    found = validation.annotations_of(0)
    assert found
    for n, annotation in found.items():
        assert annotation["id"] == validation.truth["annotations"][n]["id"]
        assert annotation["image_id"] == validation.ids[0]
        area = float(coco_mask.area(annotation["segmentation"]))
        assert area == pytest.approx(annotation["area"], abs=0.05 * annotation["area"] + 2)


def test_a_slot_has_the_annotation_of_its_box(validation: Validation):
    batch = validation.batch(1)
    slots = validation.slots(1, batch)
    boxes = {one["id"]: one["bbox"] for one in validation.annotations_of(1).values()}
    assert set(slots.values()) == set(boxes)
    scale = batch["scales"][0].flip(0).repeat(2)
    for slot, number in slots.items():
        x, y, w, h = boxes[number]
        expected = np.array([x, y, x + w, y + h])
        found = (batch["boxes"][0, slot] / scale).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1)


def test_the_inside_is_of_the_same_detections(validation: Validation):
    inside, _ = validation.inside(2)
    own = [entry for entry in validation.results if entry["image_id"] == validation.ids[2]]
    assert len(own) == len(inside.detections["scores"]) > 0
    scores = [entry["score"] for entry in sorted(own, key=lambda entry: entry["slot"])]
    np.testing.assert_allclose(inside.detections["scores"].numpy(), scores, rtol=0, atol=1e-4)


def test_what_is_not_a_run_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"run=.* is not a run folder"):
        Validation(tmp_path, "last", [], "cpu")
