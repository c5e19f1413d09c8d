"""The errors of an image, counting detections that reach the threshold of their class.

*missed*: objects without a match at IoU 0.5, by COCO's rules; *false*: unmatched detections outside
of crowd regions of their class; *wrong class*: those of them with an IoU of 0.5 or more with an
object of another class, and less with all of their own; *merged*: detections that cover more than
half of each of two or more objects of their class, such as touching objects detected as one.

Letters: D detections, G objects of an image.
"""

from typing import NamedTuple

import numpy as np

from maskrcnn_lit.evaluation.analysis.average_precision import match
from maskrcnn_lit.evaluation.analysis.confusion import kept_detections
from maskrcnn_lit.evaluation.analysis.pairs import LEAST_IOU, Floats, Ints, Pairs


class ImageErrors(NamedTuple):
    """Positions in the arrays of a `Pairs`, ascending."""

    missed: Ints  # into G
    confused: Ints  # into G: those of `missed` on which a detection of a wrong class lies
    false: Ints  # into D
    wrong_class: Ints  # into D: those of `false` on an object of another class
    merged: Ints  # into D


def image_errors(image: Pairs, thresholds: Floats) -> ImageErrors:
    """The errors of one image. thresholds: K, the score from which a detection counts."""
    selected = np.flatnonzero(kept_detections(image, thresholds))
    count = len(image.objects)
    crowd = np.arange(count + len(image.crowd_labels)) >= count
    (taken,) = match(image.of_one_class()[selected], np.array([LEAST_IOU]), crowd, crowd)
    missed = np.setdiff1d(np.arange(count), taken)
    false = selected[taken < 0]
    wrong, targets = _wrong_class(image, false)
    confused = np.intersect1d(missed, targets)
    return ImageErrors(missed, confused, false, wrong, _merged(image, selected))


def _wrong_class(image: Pairs, false: Ints) -> tuple[Ints, Ints]:
    """Those of `false` that lie on an object of another class, and the object of each."""
    if not len(false) or not len(image.objects):
        return false[:0], false[:0]
    same = image.labels[false][:, None] == image.object_labels
    own = np.where(same, image.iou[false], 0).max(axis=1)
    others = np.where(same, 0, image.iou[false])
    wrong = (others.max(axis=1) >= LEAST_IOU) & (own < LEAST_IOU)
    return false[wrong], others[wrong].argmax(axis=1)


def _merged(image: Pairs, selected: Ints) -> Ints:
    """The detections in `selected` that cover more than half of each of two objects of their
    class.
    """
    if not len(selected) or not len(image.objects):
        return selected[:0]
    iou = image.iou[selected]
    common = iou * (image.areas[selected][:, None] + image.object_pixels) / (1 + iou)
    same = image.labels[selected][:, None] == image.object_labels
    return selected[((common > 0.5 * image.object_pixels * (1 + 1e-9)) & same).sum(1) >= 2]
