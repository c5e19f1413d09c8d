"""Plots and tables of the validation scores for TensorBoard and other trackers: AP by class,
precision against recall, confusion.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from maskrcnn_lit.callbacks.boards import Table, boards, tensorboard_writers, validation_step
from maskrcnn_lit.callbacks.coco_evaluation import coco_evaluation
from maskrcnn_lit.evaluation.analysis.average_precision import Judged, judged_at_50
from maskrcnn_lit.evaluation.analysis.curves import class_curve, thinned
from maskrcnn_lit.evaluation.titles import metric_title
from maskrcnn_lit.report.evaluation.plots import class_ap, confusion, precision_recall
from maskrcnn_lit.report.format import POOLED
from maskrcnn_lit.report.theme import LIGHT, render

# with more classes, the PR CURVES tab has only the curve of all classes, and SCALARS none of them
CURVES = 20

ROWS = 100  # classes of the table: those with most objects

THRESHOLDS = np.linspace(0, 1, 127)  # thresholds that the PR CURVES tab assumes


class ScorePlots(Callback):
    """After every validation, log the pictures val_plots/class_ap, val_plots/precision_recall and
    val_plots/confusion, and the table val_tables/classes. TensorBoard also gets, of up to CURVES
    classes, the scalars val_class_mask_ap/... and val_class_box_ap/..., and for its PR CURVES tab
    the curves pr/all classes and pr_class/.... Curves use the matches of the scores at IoU 0.5, of
    masks if there are any.

    Must come after `CocoEvaluation` in the list of callbacks, since it reads its matches. It does
    nothing without that callback or a logger that takes pictures.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation, logs = coco_evaluation(trainer), boards(trainer)
        if evaluation is None or evaluation.scored is None or not logs:
            return
        truth, _ = evaluation.scored
        names = [
            c["name"] for c in sorted(truth["categories"], key=lambda c: c["id"])
        ]  # in the order of the matches' labels
        kind = "mask" if "mask" in evaluation.matches else "box"
        judged = judged_at_50(evaluation.matches[kind])
        shown = drawn(names, judged, evaluation.per_class, kind)
        plots = [class_ap, precision_recall]
        if evaluation.confusion is not None:
            labels = [*(c["name"] for c in truth["categories"]), "background"]
            shown["confusion"] = {"labels": labels, "counts": evaluation.confusion.tolist()}
            plots.append(confusion)
        step = validation_step(trainer)
        if 1 < len(names) <= CURVES:
            self._add_classes(trainer, names, judged, evaluation.per_class)
        for writer in tensorboard_writers(trainer):
            writer.add_pr_curve_raw(
                f"pr/{POOLED}",
                *threshold_counts(judged, None),
                global_step=step,
                num_thresholds=len(THRESHOLDS),
            )
        pictures = {plot.__name__: pixels_of(render(plot, shown, LIGHT)) for plot in plots}
        table = class_table(shown["per_class"], evaluation.per_class)
        for board in logs:
            for name, pixels in pictures.items():
                board.picture(f"val_plots/{name}", pixels, step)
            board.table("val_tables/classes", table, step)

    def _add_classes(
        self,
        trainer: Trainer,
        names: Sequence[str],
        judged: Judged,
        per_class: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Curves and AP of each class, for TensorBoard."""
        step = validation_step(trainer)
        for writer in tensorboard_writers(trainer):
            for label, name in enumerate(names):
                writer.add_pr_curve_raw(
                    f"pr_class/{name}",
                    *threshold_counts(judged, label),
                    global_step=step,
                    num_thresholds=len(THRESHOLDS),
                )
                for key in ("mask_ap", "box_ap"):
                    value = per_class[name].get(key, math.nan)
                    if not math.isnan(value):
                        writer.add_scalar(f"val_class_{key}/{name}", value, step)


def pixels_of(png: bytes) -> np.ndarray:
    """H W 3 uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def class_table(
    rows: Sequence[Mapping[str, Any]], per_class: Mapping[str, Mapping[str, float]]
) -> Table:
    """The scores of the ROWS classes with most objects.

    Args:
        rows: as `drawn` makes them. per_class: class name -> its scores, NaN without objects.
    """
    keys = [key for key in ("mask_ap", "box_ap") if any(row[key] is not None for row in rows)]
    order = sorted(rows, key=lambda row: -row["objects"])[:ROWS]
    lines = []
    for row in order:
        accuracy = per_class[row["name"]].get("roi_accuracy", math.nan)
        values = [*(row[key] for key in keys), None if math.isnan(accuracy) else accuracy]
        lines.append([row["name"], row["objects"], *values])
    return Table(["class", "objects", *map(metric_title, keys), "roi_accuracy"], lines)


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
