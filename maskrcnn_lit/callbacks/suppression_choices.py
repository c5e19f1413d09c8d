"""Collects the detections of every kind of suppression from one validation (`evaluate nms=all`)."""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer

from maskrcnn_lit.data.batch import BLANK_ID, Batch
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.scores import DetectionCollector, to_coco_results
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original, without_overlap
from maskrcnn_lit.model.suppression import BOX_NMS, KINDS, Suppression


def every_choice(classes: int) -> list[Suppression]:
    """All kinds, within classes and over them (which differ from two classes on), not exclusive."""
    return [Suppression(kind, over) for over in (False, True)[: min(classes, 2)] for kind in KINDS]


class SuppressionChoices(Callback):
    """Needs a `validation_step` that returns an `Output` with `each`, of one process. own: that of
    the model.
    """

    def __init__(self, own: Suppression = BOX_NMS) -> None:
        self.own = own
        self._collectors: dict[Suppression, DetectionCollector] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collectors = {}

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
        if output.each is None:
            raise ValueError("the model gives one kind of suppression: set its `choices`")
        readable = batch["readable"].tolist()
        for choice, detections in output.each.items():
            collector = self._collectors.setdefault(choice, DetectionCollector())
            for entry, is_readable in zip(to_original(detections, batch), readable, strict=True):
                if entry["image_id"] != BLANK_ID:
                    collector.add([entry], [is_readable])

    def results(
        self, categories: Sequence[Category]
    ) -> Iterator[tuple[Suppression, list[dict[str, Any]]]]:
        """Every choice, exclusive ones too, and its COCO results in the order of the image ids."""
        for choice, collector in self._collectors.items():
            for exclusive in (False, True):
                images = (
                    pickle.loads(collector.by_image[image]) for image in sorted(collector.by_image)
                )
                entries = map(without_overlap, images) if exclusive else images
                yield choice._replace(exclusive=exclusive), to_coco_results(entries, categories)
