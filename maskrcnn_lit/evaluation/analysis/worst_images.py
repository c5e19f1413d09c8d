"""The images with most errors, counting detections that reach the threshold of their class.

*missed*: objects without a match at IoU 0.5, by COCO's rules; *false*: unmatched detections outside
of crowd regions of their class; *merged*: detections that cover more than half of each of two or
more objects of their class, such as touching objects detected as one. Images are ranked by the sum
of the three counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_lit.evaluation.analysis.average_precision import match
from maskrcnn_lit.evaluation.analysis.confusion import kept_detections
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Ints, Pairs


def worst_images(
    pairs: Sequence[Pairs],
    annotations: Sequence[dict[str, Any]],
    thresholds: Floats,
    count: int = 20,
) -> list[dict[str, Any]]:
    """At most `count` images with errors, worst first, ties by id: {"image_id", "missed":
    [annotation ids], "false": [indices into the results], "merged": [indices into the results]}.

    annotations: those of the ground truth of `pairs`; thresholds: K.
    """
    ranked = []
    for image in pairs:
        selected = np.flatnonzero(kept_detections(image, thresholds))
        crowd = np.arange(len(image.objects) + len(image.crowd_labels)) >= len(image.objects)
        (taken,) = match(image.of_one_class()[selected], np.array([0.5]), crowd, crowd)
        missed = image.objects[~np.isin(np.arange(len(image.objects)), taken)]
        entry = {
            "image_id": image.image_id,
            "missed": [annotations[n]["id"] for n in missed.tolist()],
            "false": image.detections[selected[taken < 0]].tolist(),
            "merged": image.detections[_merged(image, selected)].tolist(),
        }
        bad = len(entry["missed"]) + len(entry["false"]) + len(entry["merged"])
        if bad:
            ranked.append((-bad, image.image_id, entry))
    return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])[:count]]


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
