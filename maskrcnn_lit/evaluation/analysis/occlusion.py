"""AP and recall by occlusion: by the share of an object's box that other boxes cover.

The share is the area inside the box of the union of the image's other boxes, of any class, without
crowd regions. In a slice, objects of other slices are ignored, as in COCO's area ranges: a
detection matched to one is neither a true nor a false positive, and it may be matched any number of
times, so that its duplicates count only in its own slice. An unmatched detection is a false
positive in every slice. Recall is the share of a slice's objects detected at IoU 0.5.

A crowded image has at least CROWDED_FROM objects.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskrcnn_lit.data.inspection.crowding import covered_shares
from maskrcnn_lit.evaluation.analysis.average_precision import (
    Bools,
    Judged,
    average_precision,
    judge,
    mean,
)
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Pairs

SLICES = {
    "0 to 0.1": (0.0, 0.1),
    "0.1 to 0.4": (0.1, 0.4),
    "0.4 and more": (0.4, math.inf),
}  # including the lower end

CROWDED_FROM = 10


def occlusion_slices(pairs: Sequence[Pairs], classes: int, overall: Judged) -> list[dict[str, Any]]:
    """[{"slice", "objects", "ap", "ap50", "recall"}], for each of SLICES and for crowded images.
    Numbers are None without objects. `overall`: the result of `judge` for all `pairs` and all
    objects.
    """
    shares = {image.image_id: covered_shares(_corners(image.boxes)) for image in pairs}
    rows = []
    for name, (low, high) in SLICES.items():
        within = {number: (share >= low) & (share < high) for number, share in shares.items()}
        judged = judge(pairs, classes, counted=look_up(within), ignored_reusable=True)
        rows.append(slice_row(name, judged))
    return [*rows, slice_row("crowded images", _crowded(pairs, classes, overall))]


def _corners(boxes: Floats) -> Floats:
    """x y w h as x1 y1 x2 y2."""
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def look_up(by_image: dict[int, Bools]) -> Callable[[Pairs], Bools]:
    """`by_image` as `judge` takes it."""
    return lambda image: by_image[image.image_id]


def _crowded(pairs: Sequence[Pairs], classes: int, overall: Judged) -> Judged:
    crowded = [len(image.objects) >= CROWDED_FROM for image in pairs]
    selected = (
        np.repeat(crowded, [len(image.labels) for image in pairs])
        if pairs
        else np.zeros(0, dtype=bool)
    )
    objects = np.zeros(classes, dtype=np.int64)
    for image, is_crowded in zip(pairs, crowded, strict=True):
        if is_crowded:
            objects += np.bincount(image.object_labels, minlength=classes)
    labels, scores, right, ignored, _ = overall
    return Judged(
        labels[selected], scores[selected], right[:, selected], ignored[:, selected], objects
    )


def slice_row(name: str, judged: Judged) -> dict[str, Any]:
    """The numbers of a slice, of the objects that count in it."""
    ap, objects = average_precision(judged), int(judged.objects.sum())
    recall = float(judged.right[0].sum() / objects) if objects else None
    return {
        "slice": name,
        "objects": objects,
        "ap": mean(ap),
        "ap50": mean(ap[:, 0]),
        "recall": recall,
    }
