"""Which class is taken for which: a confusion matrix of detections, with background.

Of each image the detections from their class's threshold on are taken best first, whatever their
class; each takes the object with the highest IoU, of 0.5 or more, that none has taken. An object
that nobody takes is a background to the detector, a detection that takes nothing finds an object on
the background; one that lies in a crowd region of its class (IoU with it 0.5 or more, by COCO's
crowd rule) is left out. Letters: K classes, D detections, G objects.
"""

from collections.abc import Sequence

import numpy as np

from maskrcnn_lit.evaluation.analysis.average_precision import Bools, match
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Ints, Pairs


def kept_detections(image: Pairs, thresholds: Floats) -> Bools:
    """D: those with a score from the threshold of their class on. `thresholds`: K."""
    return image.scores >= thresholds[image.labels]


def confusion_matrix(pairs: Sequence[Pairs], thresholds: Floats, iou: float = 0.5) -> Ints:
    """K+1 K+1 counts: the row is the true class, the column the detected one, the last of each the
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
