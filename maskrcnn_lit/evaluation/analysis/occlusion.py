"""AP and recall of objects that others hide, by how much of their box the boxes of other objects
cover.

The share of a box is exact: the area of the union of the other boxes of its image, of any class,
within it (crowd regions do not count). For a slice the objects outside of it are ignored, as COCO's
area ranges do it: a detection that takes one of them is neither right nor wrong, and one of them
may be taken any number of times, so that its duplicates count in its own slice. A detection that
takes nothing is wrong in each slice. Recall is the share of the objects of a slice that is found at
IoU 0.5.

A crowded image holds at least CROWDED_FROM objects.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
}  # the lower end included

CROWDED_FROM = 10


def covered_shares(boxes: Floats) -> Floats:
    """G: how much of each box the others cover, 0..1; 0 for a box without area. `boxes`: G 4, x y w
    h.
    """
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shares = np.zeros(len(boxes))
    for g in np.flatnonzero((boxes[:, 2:] > 0).all(1)).tolist():
        low, high = (
            np.maximum(starts, starts[g]),
            np.minimum(ends, ends[g]),
        )  # the others, cut to this one
        touching = (high > low).all(1)
        touching[g] = False
        shares[g] = _union(low[touching], high[touching]) / boxes[g, 2:].prod()
    return shares


def _union(low: Floats, high: Floats) -> float:
    """Area of the union of N boxes, N 2 each: the plane is cut at every edge, and the covered cells
    are added up.
    """
    covers, lengths = [], []
    for axis in (0, 1):
        cuts = np.unique(np.r_[low[:, axis], high[:, axis]])
        covers.append((low[:, axis, None] <= cuts[:-1]) & (high[:, axis, None] >= cuts[1:]))
        lengths.append(np.diff(cuts))
    cells = covers[0].T.astype(np.float64) @ covers[1] > 0
    return float(lengths[0] @ cells @ lengths[1])


def occlusion_slices(pairs: Sequence[Pairs], classes: int, whole: Judged) -> list[dict[str, Any]]:
    """[{"slice", "objects", "ap", "ap50", "recall"}]: of each of SLICES, and of the crowded images.
    None without objects. `whole`: what `judge` says of all `pairs` with all objects.
    """
    shares = {image.image_id: covered_shares(image.boxes) for image in pairs}
    rows = []
    for name, (low, high) in SLICES.items():
        within = {number: (share >= low) & (share < high) for number, share in shares.items()}
        judged = judge(pairs, classes, counted=_look_up(within), ignored_reusable=True)
        rows.append(_row(name, judged))
    return [*rows, _row("crowded images", _crowded(pairs, classes, whole))]


def _look_up(by_image: dict[int, Bools]) -> Callable[[Pairs], Bools]:
    return lambda image: by_image[image.image_id]


def _crowded(pairs: Sequence[Pairs], classes: int, whole: Judged) -> Judged:
    crowded = [len(image.objects) >= CROWDED_FROM for image in pairs]
    kept = (
        np.repeat(crowded, [len(image.labels) for image in pairs])
        if pairs
        else np.zeros(0, dtype=bool)
    )
    objects = np.zeros(classes, dtype=np.int64)
    for image, is_crowded in zip(pairs, crowded, strict=True):
        if is_crowded:
            objects += np.bincount(image.object_labels, minlength=classes)
    labels, scores, right, ignored, _ = whole
    return Judged(labels[kept], scores[kept], right[:, kept], ignored[:, kept], objects)


def _row(name: str, judged: Judged) -> dict[str, Any]:
    ap, objects = average_precision(judged), int(judged.objects.sum())
    recall = float(judged.right[0].sum() / objects) if objects else None
    return {
        "slice": name,
        "objects": objects,
        "ap": mean(ap),
        "ap50": mean(ap[:, 0]),
        "recall": recall,
    }
