"""The confusion matrix of detections, with background.

In each image, detections that reach the threshold of their class are matched by descending score,
across classes, to the unmatched object with the highest IoU of 0.5 or more. An unmatched object
counts as detected as background, an unmatched detection as true background; detections in a crowd
region of their class (IoU of 0.5 or more by COCO's crowd rule) are excluded. Letters: K classes, D
detections, G objects.
"""

from collections.abc import Sequence

import numpy as np

from maskrcnn_lit.evaluation.analysis.average_precision import Bools, match
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Ints, Pairs


def kept_detections(image: Pairs, thresholds: Floats) -> Bools:
    """D: whether the score reaches the threshold of its class. `thresholds`: K."""
    return image.scores >= thresholds[image.labels]


def confusion_matrix(pairs: Sequence[Pairs], thresholds: Floats, iou: float = 0.5) -> Ints:
    """K+1 K+1 counts: rows are true classes, columns detected classes, the last of each is
    background.
    """
    classes = len(thresholds)
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for image in pairs:
        selected = kept_detections(image, thresholds)
        none = np.zeros(len(image.objects), dtype=bool)
        (taken,) = match(image.iou[selected], np.array([iou]), none, none)
        hit = taken >= 0
        labels = image.labels[selected]
        np.add.at(counts, (image.object_labels[taken[hit]], labels[hit]), 1)
        crowded = (
            (image.crowd_iou[selected] >= iou) & (labels[:, None] == image.crowd_labels)
        ).any(1)
        np.add.at(counts, (classes, labels[~hit & ~crowded]), 1)
        missed = np.setdiff1d(np.arange(len(image.objects)), taken)
        np.add.at(counts, (image.object_labels[missed], classes), 1)
    return counts
