"""Plots of the validation scores for TensorBoard: AP by class, and precision against recall."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from maskrcnn_lit.callbacks.coco_evaluation import coco_evaluation
from maskrcnn_lit.callbacks.tensorboard import tensorboard_writers, validation_step
from maskrcnn_lit.evaluation.analysis.average_precision import Judged, judged_at_50
from maskrcnn_lit.evaluation.analysis.curves import class_curve, thinned
from maskrcnn_lit.report.evaluation.plots import class_ap, precision_recall
from maskrcnn_lit.report.format import POOLED
from maskrcnn_lit.report.theme import LIGHT, render

# with more classes, the PR CURVES tab has only the curve of all classes
CURVES = 20

THRESHOLDS = np.linspace(0, 1, 127)  # thresholds that the PR CURVES tab assumes


class ScorePlots(Callback):
    """After every validation, log the pictures val_plots/class_ap and val_plots/precision_recall
    and, for TensorBoard's PR CURVES tab, the curves pr/all classes and pr_class/.... They use the
    matches of the scores at IoU 0.5, of masks if there are any.

    Must come after `CocoEvaluation` in the list of callbacks, since it reads its matches. It does
    nothing without that callback or a TensorBoard logger.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = coco_evaluation(trainer)
        writers = tensorboard_writers(trainer)
        if evaluation is None or evaluation.scored is None or not writers:
            return
        truth, _ = evaluation.scored
        names = [
            c["name"] for c in sorted(truth["categories"], key=lambda c: c["id"])
        ]  # in the order of the matches' labels
        kind = "mask" if "mask" in evaluation.matches else "box"
        judged = judged_at_50(evaluation.matches[kind])
        shown = drawn(names, judged, evaluation.per_class, kind)
        pictures = [
            summary(f"val_plots/{plot.__name__}", render(plot, shown, LIGHT))
            for plot in (class_ap, precision_recall)
        ]
        curves = {f"pr/{POOLED}": threshold_counts(judged, None)}
        if 1 < len(names) <= CURVES:
            curves |= {
                f"pr_class/{name}": threshold_counts(judged, label)
                for label, name in enumerate(names)
            }
        step = validation_step(trainer)
        for writer in writers:
            for (
                tag,
                counts,
            ) in curves.items():  # first: it reopens the file that the end of training closed
                writer.add_pr_curve_raw(
                    tag, *counts, global_step=step, num_thresholds=len(THRESHOLDS)
                )
            for picture in pictures:
                writer.file_writer.add_summary(picture, step)
            writer.flush()


def summary(tag: str, png: bytes) -> Summary:
    """A TensorBoard summary of an encoded PNG. (SummaryWriter.add_image takes pixels and would
    encode them again.)
    """
    width, height = Image.open(io.BytesIO(png)).size
    picture = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=picture)])


def drawn(
    names: Sequence[str], judged: Judged, per_class: Mapping[str, Mapping[str, float]], kind: str
) -> dict[str, Any]:
    """The parts of an analysis (evaluation/analysis/analyze.py) that the two plots read.

    per_class: class name -> {"box_ap", "mask_ap"}, NaN for a class without objects.
    """
    rows = []
    for name, objects in zip(names, judged.objects.tolist(), strict=True):
        values = {key: per_class[name].get(key, math.nan) for key in ("box_ap", "mask_ap")}
        rows.append(
            {"name": name, "objects": objects}
            | {k: None if math.isnan(v) else v for k, v in values.items()}
        )
    points = [(name, thinned(class_curve(judged, label))) for label, name in enumerate(names)]
    points.append((POOLED, thinned(class_curve(judged, None))))
    curves = [{"name": name, "recall": c.recall, "precision": c.precision} for name, c in points]
    return {"kind": kind, "per_class": rows, "curves": curves}


def threshold_counts(judged: Judged, label: int | None) -> list[np.ndarray]:
    """Counts for one class, or for all (None), at each of THRESHOLDS: true positives, false
    positives, true negatives, false negatives, precision, recall.

    A detector has no true negatives, so they are 0. Precision is 0 without detections; TensorBoard
    then skips the point.
    """
    selected = ~judged.ignored[0]
    if label is not None:
        selected &= judged.labels == label
    objects = int(judged.objects.sum() if label is None else judged.objects[label])
    scores, right = judged.scores[selected], judged.right[0, selected]
    detections, hits = _from(scores), _from(scores[right])
    precision = hits / np.maximum(detections, 1)
    recall = hits / max(objects, 1)
    return [hits, detections - hits, np.zeros_like(hits), objects - hits, precision, recall]


def _from(scores: np.ndarray) -> np.ndarray:
    """For each of THRESHOLDS, the number of scores that reach it."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left")
