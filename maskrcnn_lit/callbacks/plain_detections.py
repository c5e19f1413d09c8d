"""Collects the detections of images as they are from a validation in several views or in tiles
(`evaluate tta=flip`, `evaluate tile=1024`).
"""

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer

from maskrcnn_lit.data.batch import BLANK_ID, Batch
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.scores import DetectionCollector
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original


class PlainDetections(Callback):
    """Needs a `validation_step` that returns an `Output` with `plain`, of one process."""

    def __init__(self) -> None:
        self._collector = DetectionCollector()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collector = DetectionCollector()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        output: Output = outputs
        if output.plain is None:
            raise ValueError(
                "the model gives no plain detections: wrap it in WithViews or WithTiles"
            )
        readable = batch["readable"].tolist()
        for entry, is_readable in zip(to_original(output.plain, batch), readable, strict=True):
            if entry["image_id"] != BLANK_ID:
                self._collector.add([entry], [is_readable])

    def results(self, categories: Sequence[Category]) -> list[dict[str, Any]]:
        """COCO results in the order of the image ids."""
        return self._collector.results(categories)
