"""Class accuracy on ground-truth boxes: the kind of number that the reference study reports as
"validation accuracy".

It is no AP: the ground-truth boxes are the regions, so it says nothing of finding them, of false
detections, of masks.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.errors import UserError

STUDY_SLOTS = 15  # boxes an image in the study

DEFINITIONS = {
    "all": (
        "The share of ground-truth boxes that the box head, given the box as its region, puts into the right class: "
        "arg-max over the classes and the background. Crowd regions and unreadable images do not count. "
        "It says nothing of finding objects, so it is no AP."
    ),
    "study": (
        f"As the reference study: {STUDY_SLOTS} slots an image, for its first {STUDY_SLOTS} ground-truth boxes in the "
        "order of their left edges, the rest empty boxes with the label background. A slot is right where the arg-max "
        "over the classes and the background is its label; empty slots count. It is no AP, and no match for boxes=all."
    ),
}

BRIEF = {
    "all": "of ground-truth boxes, those given the right class (no AP)",
    "study": f"of {STUDY_SLOTS} slots an image, those given the right class (no AP)",
}


class RoiAccuracy:
    """How often the box head, given a ground-truth box, names its class. Each image id counts once.

    boxes: "all", every object of the readable images, without crowd regions; background is never
        the right answer. "study", the reference study's own way, as far as its description goes
        ("at most 15 ground-truth boxes an image, labels without background removal"): targets of 15
        slots. Its first 15 objects come in the order of the batch, which is that of their left
        edges (data/coco/index.py: the order in the json is not kept). The slots that are left have a box
        of zeros and the label 0, and count: the answer for them is right where it is background.
        The region of such a box is a point, the top left corner of the image, where RoIAlign reads
        its features (at least one cell of p2, or with `aligned` the point alone); so all of them in
        an image get one answer, and an image without objects counts 15. Images with few objects
        thus raise or lower the number by what the head says of a corner.

    Neither is an AP, and they cannot be compared with each other.
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
        ] = {}  # image id -> 2 N: label and answer of what counts

    def prepare(self, batch: Batch) -> Batch:
        """What the model has to be given for `update`: `batch`, and for "study" with one more slot
        in each image, which is empty. Neither losses nor detections depend on empty slots.
        """
        if self.boxes != "study":
            return batch
        more = {
            key: F.pad(batch[key], (0, 0) * (batch[key].ndim - 2) + (0, 1))
            for key in TARGET_KEYS
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
                "boxes=study counts empty slots: give the model what `prepare` returns"
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
        """In 0..1; NaN where nothing counts."""
        labels, answers = self._all()
        return float((labels == answers).mean()) if labels.size else math.nan

    def per_class(self, names: Sequence[str]) -> dict[str, float]:
        """Class name -> share of its boxes that are right, 0..1, NaN without any; label l is
        `names[l - 1]`.
        """
        labels, answers = self._all()
        totals = np.bincount(labels, minlength=len(names) + 1)
        right = np.bincount(labels[labels == answers], minlength=len(names) + 1)
        return {
            n: float(right[k] / totals[k]) if totals[k] else math.nan
            for k, n in enumerate(names, start=1)
        }

    def _all(self) -> NDArray[np.int64]:
        """2 N."""
        return np.concatenate([np.zeros((2, 0), np.int64), *self.by_image.values()], 1)


def roi_accuracy_line(accuracy: float, boxes: str) -> str:
    """The number, "-" where no box counts, and in brief what it is; DEFINITIONS has the whole."""
    number = "-" if math.isnan(accuracy) else f"{accuracy:.3f}"
    return f"roi_accuracy {number}: {BRIEF[boxes]}"
