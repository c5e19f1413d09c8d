"""Classification accuracy on ground-truth boxes, as the "validation accuracy" of the reference
study.

It is not an AP: the ground-truth boxes are the regions, so it does not measure localization, false
detections or masks.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.batch import SLOT_KEYS, Batch
from maskrcnn_lit.errors import UserError

STUDY_SLOTS = 15  # boxes per image in the study

DEFINITIONS = {
    "all": (
        "The share of ground-truth boxes that the box head, with the box as its region, assigns to "
        "the right class: the arg-max over the classes and the background. Crowd regions and "
        "unreadable images do not count. It does not measure localization, so it is not an AP."
    ),
    "study": (
        f"As in the reference study: {STUDY_SLOTS} slots per image, for its first {STUDY_SLOTS} "
        "ground-truth boxes in the order of their left edges; the others are empty boxes with the "
        "label background. A slot is right if the arg-max over the classes and the background is "
        "its label; empty slots count. It is not an AP, and not comparable with boxes=all."
    ),
}

BRIEF = {
    "all": "share of ground-truth boxes given the right class (not AP)",
    "study": f"share of {STUDY_SLOTS} slots per image given the right class (not AP)",
}


class RoiAccuracy:
    """The accuracy of the box head on ground-truth boxes. Each image id counts once.

    boxes: "all": every object of the readable images, without crowd regions; background is never
    right. "study": the reference study's definition, as far as described ("at most 15 ground-truth
    boxes an image, labels without background removal"): 15 slots per image. The first 15 objects
    are in batch order, that of their left edges (data/coco/index.py does not keep the json's
    order). The remaining slots have a box of zeros and the label 0, and count: background is right
    for them. The region of such a box is a point, the top left corner of the image, where RoIAlign
    samples features (at least one cell of p2, or with `aligned` only the point). So all empty slots
    of an image get the same prediction, and the prediction for a corner affects the number for
    images with few objects.

    Neither is an AP, and the two are not comparable.
    Raises UserError for another `boxes`.
    """

    def __init__(self, boxes: str = "all") -> None:
        if not isinstance(boxes, str) or boxes not in DEFINITIONS:
            raise UserError(
                f"metrics.roi_accuracy.boxes={boxes} is unknown: use {' or '.join(DEFINITIONS)}"
            )
        self.boxes = boxes
        self.by_image: dict[
            int, NDArray[np.int64]
        ] = {}  # image id -> 2 N: label and prediction of the boxes that count

    def prepare(self, batch: Batch) -> Batch:
        """The model's input for `update`: `batch`, for "study" with an additional empty slot per
        image. Losses and detections do not depend on empty slots.
        """
        if self.boxes != "study":
            return batch
        more = {
            key: F.pad(batch[key], (0, 0) * (batch[key].ndim - 2) + (0, 1))
            for key in SLOT_KEYS
            if key in batch
        }
        return batch | more

    def update(self, box_labels: Tensor, batch: Batch) -> None:
        """box_labels: B G int64, the class given to the box of each slot (0 = background). For
        "study" the last slot of each image is empty, see `prepare`.
        """
        pairs = np.stack([batch["labels"].cpu().numpy(), box_labels.cpu().numpy()], 1)  # B 2 G
        valid, readable = batch["valid"].cpu().numpy(), batch["readable"].tolist()
        if self.boxes == "study" and batch["labels"][:, -1].any():
            raise ValueError(
                "boxes=study counts empty slots: pass the result of `prepare` to the model"
            )
        for i, image in enumerate(batch["image_ids"].tolist()):
            if not readable[i]:
                continue
            counted = pairs[i][:, valid[i]]
            if self.boxes == "study":
                counted = counted[:, :STUDY_SLOTS]
                padding = np.repeat(pairs[i][:, -1:], STUDY_SLOTS - counted.shape[1], axis=1)
                counted = np.concatenate([counted, padding], 1)
            self.by_image.setdefault(image, counted)

    def merge(self, other: "RoiAccuracy") -> None:
        """Take over the images of another process that are not here yet."""
        self.by_image = other.by_image | self.by_image

    def compute(self) -> float:
        """The accuracy, 0..1; NaN if no box counts."""
        labels, answers = self._all()
        return float((labels == answers).mean()) if labels.size else math.nan

    def per_class(self, names: Sequence[str]) -> dict[str, float]:
        """Class name -> accuracy on its boxes, 0..1, NaN without boxes; label l is `names[l -
        1]`.
        """
        labels, answers = self._all()
        totals = np.bincount(labels, minlength=len(names) + 1)
        right = np.bincount(labels[labels == answers], minlength=len(names) + 1)
        return {
            n: float(right[k] / totals[k]) if totals[k] else math.nan
            for k, n in enumerate(names, start=1)
        }

    def _all(self) -> NDArray[np.int64]:
        """Labels and predictions of all images, 2 N."""
        return np.concatenate([np.zeros((2, 0), np.int64), *self.by_image.values()], 1)


def roi_accuracy_line(accuracy: float, boxes: str) -> str:
    """The number, "-" if no box counts, and a short description; DEFINITIONS has the full one."""
    number = "-" if math.isnan(accuracy) else f"{accuracy:.3f}"
    return f"roi_accuracy {number}: {BRIEF[boxes]}"
