"""A training step, all of it, on the CPU in the form that a GPU runs: nothing of it may make the
host wait.
"""

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scenes import Scenes, real_module, scene
from shapes_from_data import ShapesFromData
from tiny_run import tiny_trainer
from torch.utils.data import DataLoader

from maskrcnn_lit.callbacks.progress import ProgressLine
from maskrcnn_lit.training.nonfinite import FiniteGuard

pytestmark = pytest.mark.long


class Guarded(Callback):
    """The guard from the end of the first step to the end of step `last`: loader, hooks and
    callbacks between included. It comes after all other callbacks, and so is on when theirs begin.
    """

    def __init__(self, last: int) -> None:
        self.last, self.guard, self.on = last, ShapesFromData(), False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            self.guard.__enter__()
            self.on = True
        elif trainer.global_step == self.last:
            self.guard.__exit__(None, None, None)
            self.on = False


class Few(Scenes):
    """Batches of two; the second of them has no object."""

    batch_size = 2
    train_index = range(8)

    def train_dataloader(self) -> DataLoader:
        scenes = [scene(i) for i in range(8)]
        for empty in scenes[2:4]:
            for key in ("boxes", "labels", "valid", "masks", "mask_boxes"):
                empty[key] = torch.zeros_like(empty[key])
        return DataLoader(scenes, batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        ("model=tiny",),
        ("model=mask_rcnn", "model.box_head.batch_size=32"),
        (
            *("model=tiny", "model.mask_iou=true", "model.mask_refine=points"),
            *("model.box_head.cascade=[0.5,0.6,0.7]", "model.occluder=true"),
        ),
    ],
)
def test_the_host_reads_nothing_in_a_training_step(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    """Forward, backward, clipping, optimizer step, Lightning's loop, TrainMeter and ProgressLine
    between two lines.
    """
    monkeypatch.setattr(
        FiniteGuard, "_first_bad", lambda self: self._steps.clear()
    )  # a GPU's answers come later
    module = real_module(options=options)
    module.model.forward = partial(module.model.forward, static_shapes=True)
    plan = module.optimizer
    module.optimizer = lambda *args, fused, **rest: plan(*args, fused=True, **rest)  # as on a GPU
    watched = Guarded(last=3)
    line = ProgressLine(seconds_between_lines=1e9, out=io.StringIO())
    settings = {
        "epochs": 1,
        "steps": 4,  # the last one is logged, which waits
        "log_every_n_steps": 1000,
        "checkpoint_every_n_steps": None,
    }
    trainer = tiny_trainer(tmp_path, [line, watched], clip_norm=0.5, **settings)
    trainer.limit_val_batches = 0
    line._shown = 1e12  # a line has just been written
    trainer.fit(module, datamodule=Few())
    assert not watched.on
    assert watched.guard.calls > 2000, "two whole steps"
    assert watched.guard.count == {}


def test_the_guard_would_tell(tmp_path: Path):
    """The same loop as the CPU runs it by itself: it reads counts."""
    watched = Guarded(last=2)
    trainer = tiny_trainer(tmp_path, [watched], epochs=1, steps=2, checkpoint_every_n_steps=None)
    trainer.limit_val_batches = 0
    trainer.fit(real_module(), datamodule=Few())
    assert watched.guard.count["_local_scalar_dense"] >= 1
    assert watched.guard.count["nms"] > 1
