"""Validation images with ground truth and prediction, for TensorBoard and other trackers."""

from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from maskrcnn_lit.callbacks.boards import boards, validation_step
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.report.panels import draw_panel, with_pixels
from maskrcnn_lit.report.pictures import choose

# TensorBoard drops pixels, and with them thin lines, when it shows a picture smaller
IN_TENSORBOARD = 700


class Panels(Callback):
    """Draw ground truth | prediction at every validation, for the same `images` validation images
    (sampled with `seed`).

    The predictions come from the validation pass; scores below `score_threshold` are not drawn.
    With several processes, only images of rank zero appear. Needs
    `trainer.datamodule.validation_subset` and a module with `categories`.
    """

    def __init__(self, *, images: int, seed: int, score_threshold: float) -> None:
        self.images, self.seed, self.score_threshold = images, seed, score_threshold
        self._chosen: set[int] = set()
        self._panels: dict[int, np.ndarray] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if boards(trainer):
            ids = trainer.datamodule.validation_subset.image_ids  # type: ignore[attr-defined]
            self._chosen = choose(ids, self.images, self.seed)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        *args: Any,
    ) -> None:
        if not self._chosen or outputs.detections is None:
            return
        names = [category.name for category in pl_module.categories]
        for i, image_id in enumerate(batch["image_ids"].tolist()):
            if image_id in self._chosen:
                shown = batch
                if not batch["images"].shape[1]:  # data.feature_cache
                    shown = with_pixels(batch, i, trainer.datamodule)  # type: ignore[attr-defined]
                panel = draw_panel(
                    shown, outputs, i, names, self.score_threshold, longest_side=IN_TENSORBOARD
                )
                self._panels[image_id] = panel

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        step = validation_step(trainer)
        for board in boards(trainer):
            for image_id, panel in sorted(self._panels.items()):
                board.picture(f"val_images/{image_id}", panel, step)
        self._panels.clear()
