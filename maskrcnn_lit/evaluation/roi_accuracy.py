"""Class accuracy on ground-truth boxes: the number that the reference study reports as "validation accuracy".

It is no AP: the ground-truth boxes are the regions, so it says nothing of finding them.
"""

import math

from torch import Tensor

from maskrcnn_lit.data.batch import Batch


class RoiAccuracy:
    """The share of ground-truth boxes (objects of readable images, no crowd regions) whose region is
    given its right class by the box head: arg-max over the classes and the background. Each image id
    counts once."""

    def __init__(self) -> None:
        self.by_image: dict[int, tuple[int, int]] = {}  # image id -> (right, objects)

    def update(self, box_labels: Tensor, batch: Batch) -> None:
        """box_labels: B G int64, the class given to each ground-truth box (0 = background)."""
        counted = batch["valid"] & batch["readable"][:, None]
        right = (counted & (box_labels == batch["labels"])).sum(1).tolist()
        ids, totals = batch["image_ids"].tolist(), counted.sum(1).tolist()
        for image, correct, total in zip(ids, right, totals, strict=True):
            self.by_image.setdefault(image, (correct, total))

    def merge(self, other: "RoiAccuracy") -> None:
        """Take over the images of another process that are not here yet."""
        self.by_image = other.by_image | self.by_image

    def compute(self) -> float:
        """In 0..1; NaN without any object."""
        right = sum(correct for correct, _ in self.by_image.values())
        total = sum(total for _, total in self.by_image.values())
        return right / total if total else math.nan
