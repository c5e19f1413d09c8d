"""Scores the validation detections: COCO AP of boxes and masks, and roi_accuracy, logged as val/...

The module only returns detections. This callback compresses their masks after each batch, gathers
all detections on rank zero by image id, scores them once, and logs the same numbers on every rank.
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from maskrcnn_lit.callbacks.gather import gather_and_combine, publish_failure, raise_remote_failure
from maskrcnn_lit.data.batch import BLANK_ID, Batch
from maskrcnn_lit.evaluation.analysis.hidden_objects import metrics_and_confusion
from maskrcnn_lit.evaluation.cityscapes import with_official_ap
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.evaluation.coco.results import of_categories, write_results
from maskrcnn_lit.evaluation.coco.scores import (
    MAX_DETECTIONS,
    DetectionCollector,
    check_limits,
    limit_warning,
    match_all,
    of_images,
    score_matches,
)
from maskrcnn_lit.evaluation.roi_accuracy import RoiAccuracy
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.training.monitor import DEFAULT_METRICS

_log = logging.getLogger(__name__)


def coco_evaluation(trainer: Trainer) -> "CocoEvaluation | None":
    """Return the CocoEvaluation callback of `trainer`, or None."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    return next((callback for callback in callbacks if isinstance(callback, CocoEvaluation)), None)


class CocoEvaluation(Callback):
    """Needs `trainer.datamodule.val_index` (and `official_ap`, if there is one), and a
    `validation_step` that returns the model's `Output`.

    run_dir: folder for detections.json, the COCO results of the last evaluation (None: not
    written).
    max_detections: as for `check_limits`; model_limit: the maximum number of detections per image
    that the model returns, if known. A warning names the option to raise if an image has more
    objects;
        raises_model: as for `limit_warning`.
    roi_boxes: the boxes that roi_accuracy counts, "all" or "study": see `RoiAccuracy`.

    After a validation, on every rank, `metrics` maps logged names to values (val/box_ap,
    val/mask_ap50, ..., val/roi_accuracy, val/images, val/evaluation_seconds; NaN without ground
    truth) and `per_class` maps class names to {"box_ap", "mask_ap", "roi_accuracy"}. Only classes
    with annotations count. val/images: the number of scored images; validations during training may
    use a subset. On rank zero, `image_ids` are these images, `matches` the matches behind the
    scores, `confusion` the counts of `confusion_matrix`, and `scored` the ground truth and the
    results, for callbacks after this one; it is dropped when the validation ends.
    """

    def __init__(
        self,
        *,
        run_dir: str | Path | None = None,
        max_detections: Sequence[int] = MAX_DETECTIONS,
        roi_boxes: str = "all",
        model_limit: int | None = None,
        raises_model: bool = False,
    ) -> None:
        self.path = Path(run_dir) / "detections.json" if run_dir is not None else None
        self.max_detections = check_limits(max_detections)
        self.roi_boxes = roi_boxes
        self.model_limit, self.raises_model = model_limit, raises_model
        self.step = -1  # training step of the last validation
        self.scored: tuple[dict[str, Any], list[dict[str, Any]]] | None = (
            None  # COCO ground truth, COCO results
        )
        self.metrics: dict[str, float] = {}
        self.per_class: dict[str, dict[str, float]] = {}
        self.image_ids: list[int] = []
        self.matches: dict[str, Matches] = {}
        self.confusion: np.ndarray | None = None  # rows and columns in the order of `scored`
        self._validations = 0
        self._warned: str | None = None
        self._left_out = False  # whether dropped detections were logged
        self._reset()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batch.update(self._roi_accuracy.prepare(batch))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        raise_remote_failure()
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(
                pl_module.device
            )  # the forward pass is no part of the evaluation's time
        started = time.perf_counter()
        output: Output = outputs
        if output.detections is None:
            raise ValueError(
                "validation_step returned no detections; the model must be in evaluation mode"
            )
        found = output.found  # in tiles, of which there is no batch
        if found is None:
            found = to_original(output.detections, batch)
        entries = zip(found, batch["readable"].tolist(), strict=True)
        for entry, readable in entries:
            if entry["image_id"] != BLANK_ID:
                self._collector.add([entry], [readable])
        if output.box_labels is not None:
            self._roi_accuracy.update(output.box_labels, batch)
        self._seconds += time.perf_counter() - started

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:  # a few batches, through an untrained model
            return
        self._validations += 1
        own = self._collector, self._roi_accuracy
        scored = gather_and_combine(
            f"validation {self._validations}",
            own,
            lambda all_: self._score(trainer, all_),
        )
        self.metrics, self.per_class = scored
        self.step = trainer.global_step
        self.metrics["val/evaluation_seconds"] += self._seconds
        for name, value in self.metrics.items():
            # NaN: the data has no such object. Only the metric that chooses best.ckpt is logged as
            # NaN.
            if not math.isnan(value) or name in (*DEFAULT_METRICS, _chooses_best(trainer)):
                # Equal on all ranks; the maximum of equal values is exact, a mean may not be.
                pl_module.log(name, value, reduce_fx="max", sync_dist=True)
        self._reset()  # the detections are no longer needed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scored = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let no rank wait for one that has failed."""
        if isinstance(exception, Exception):
            raise_remote_failure(exception)
            publish_failure(exception)

    def _reset(self) -> None:
        self._collector = DetectionCollector()
        self._roi_accuracy = RoiAccuracy(self.roi_boxes)
        self._seconds = 0.0

    def _score(
        self,
        trainer: Trainer,
        gathered: Sequence[tuple[DetectionCollector, RoiAccuracy]],
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Score the images of all ranks. An image that a sampler repeated counts once.
        val/evaluation_seconds covers this scoring only, not the wait for slower ranks.
        """
        started = time.perf_counter()
        for collector, roi_accuracy in gathered:
            self._collector.merge(collector)
            self._roi_accuracy.merge(roi_accuracy)
        index, seen = trainer.datamodule.val_index, self._collector.by_image  # type: ignore[attr-defined]
        every = self._collector.results(index.categories)
        truth = of_images(index.coco_ground_truth(), seen)
        results, left_out = of_categories(every, index.categories, truth["categories"])
        if left_out and not self._left_out:
            _log.info(left_out)
        self._left_out = self._left_out or left_out is not None
        self.image_ids = sorted(seen)
        if self.path is not None:
            write_results(self.path, results)
        masks = self._collector.has_masks
        self.matches = match_all(truth, results, self.max_detections[-1], masks)
        scores = score_matches(self.matches, truth["categories"], self.max_detections)
        official_ap = getattr(trainer.datamodule, "official_ap", None)  # type: ignore[attr-defined]
        scores = with_official_ap(official_ap, scores, index, truth, results)
        if len(seen) < len(index):
            _log.info(
                f"scored {len(seen)} of {len(index)} validation images: "
                f"{len(self._collector.unreadable)} could not be read, the others were not "
                "requested"
            )
        if math.isnan(scores.metrics["val/box_ap"]):
            _log.info("the validation images have no objects: AP is undefined")
        warning = limit_warning(
            self.matches["box"],
            self.max_detections,
            self.model_limit,
            raises_model=self.raises_model,
        )
        if warning and warning != self._warned:
            _log.info(warning)
        self._warned = warning
        self.scored = truth, results
        accuracy = self._roi_accuracy.per_class([category.name for category in index.categories])
        per_class = {
            n: values | {"roi_accuracy": accuracy[n]} for n, values in scores.per_class.items()
        }
        limit = self.max_detections[-1]
        more, self.confusion = metrics_and_confusion(truth, results, limit)
        more |= {"val/roi_accuracy": self._roi_accuracy.compute(), "val/images": float(len(seen))}
        more["val/evaluation_seconds"] = time.perf_counter() - started
        return scores.metrics | more, per_class


def _chooses_best(trainer: Trainer) -> str | None:
    """The metric by which best.ckpt of this run is chosen."""
    return getattr(trainer.checkpoint_callback, "monitor", None)
