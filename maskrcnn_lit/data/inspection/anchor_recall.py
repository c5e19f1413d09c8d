"""Best possible anchor recall on a data set, and a search for better anchors.

Anchors are arrays: a grid h w a 4 for each level (x1 y1 x2 y2; a anchors per cell); anchors of a
row share y, those of a column x. Letters: I images, N objects, a anchors per cell.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.buckets import bucket_groups, bucket_shapes
from maskrcnn_lit.data.coco.sizes import SIZES
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.inspection.summary import Floats, Ints, Objects, size_names
from maskrcnn_lit.errors import UserError

Grids = Sequence[NDArray[Any]]

SAMPLE = 20_000  # objects to search better anchors with

_STEPS = (0.7, 0.85, 1.2, 1.4)  # factors for the anchors of one level


class Choice(NamedTuple):
    """Anchor sizes in pixels, one per level, and aspect ratios (height / width)."""

    sizes: tuple[int, ...]
    ratios: tuple[float, ...]


MakeGrids = Callable[[Choice, tuple[int, int]], Grids]  # for a padded height, width


def padded_sizes(sizes: Ints, image_size: ImageSize) -> Ints:
    """I 2 heights and widths to which the loader pads images of these `sizes` (I 2, after the
    resize).
    """
    padded = np.empty_like(sizes)
    shapes = bucket_shapes(sizes, image_size)
    for chain, groups in zip(shapes, bucket_groups(sizes, shapes), strict=True):
        for shape, group in zip(chain, groups, strict=True):
            padded[group] = shape
    return padded


def best_iou(boxes: Floats, grids: Grids) -> Floats:
    """N: the best IoU of any anchor with each box (N 4).

    Among anchors of one shape, the one with the nearest center overlaps most: only that one is
    compared.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    best = np.zeros(len(boxes))
    for grid in grids:
        for anchors in np.moveaxis(grid.astype(np.float64), 2, 0):  # h w 4
            column = _nearest(anchors[0, :, [0, 2]].mean(0), centers[:, 0])
            row = _nearest(anchors[:, 0, [1, 3]].mean(1), centers[:, 1])
            np.maximum(best, _iou(boxes, anchors[row, column]), out=best)
    return best


def _nearest(places: Floats, values: Floats) -> Ints:
    """For each value the index of the nearest of the ascending `places`."""
    return np.searchsorted((places[1:] + places[:-1]) / 2, values)


def _iou(one: Floats, other: Floats) -> Floats:
    """N 4 and N 4, pair by pair -> N."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = sides.clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def reach(objects: Objects, padded: Ints, choice: Choice, make: MakeGrids) -> Floats:
    """N: the best IoU of each object with the anchors of its padded image (`padded` I 2, height and
    width).
    """
    best = np.zeros(len(objects.image))
    shapes, kind = np.unique(padded, axis=0, return_inverse=True)
    kind = kind.reshape(-1)[objects.image]
    for n, (height, width) in enumerate(shapes.tolist()):
        rows = np.flatnonzero(kind == n)
        if len(rows):
            best[rows] = best_iou(objects.boxes[rows], make(choice, (height, width)))
    return best


def recalls(
    best: Floats, sides: Floats, thresholds: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Recalls {"all": {"0.5": share of objects with a best IoU of at least 0.5, ...}, "small": ...,
    ...}; sizes without objects are omitted. `sides`: N, in pixels.
    """
    names = size_names(sides)
    chosen = {"all": np.ones(len(best), bool)} | {name: names == name for name in SIZES}
    return {
        name: {
            f"{threshold:g}": float((best[rows] >= threshold).mean()) for threshold in thresholds
        }
        for name, rows in chosen.items()
        if rows.any()
    }


def improve(
    objects: Objects,
    padded: Ints,
    now: Choice,
    make: MakeGrids,
    thresholds: Sequence[float],
    seed: int,
) -> Choice:
    """Anchors with a larger sum of recalls at `thresholds` than `now` and as many sizes and ratios,
    or `now`.

    Candidates are ladders of sizes that begin at sizes of the objects, the objects' aspect ratios,
    and small changes on each level of the best of these. The search uses a random sample of objects
    and one padded size; report the recall of `reach`.
    """
    if len(objects.image) > SAMPLE:
        chosen = np.sort(
            np.random.default_rng(seed).choice(len(objects.image), SAMPLE, replace=False)
        )
        objects = objects._replace(
            **{name: getattr(objects, name)[chosen] for name in ("image", "boxes", "labels")}
        )
    largest = np.broadcast_to(padded.max(0), padded.shape)

    def score(choice: Choice) -> float:
        try:
            best = reach(objects, largest, choice, make)
        except UserError:  # invalid anchors, for example without area
            return -math.inf
        return sum(float((best >= threshold).mean()) for threshold in thresholds)

    scores = {choice: score(choice) for choice in _candidates(objects, now)}
    best = max(scores, key=scores.__getitem__)
    for _ in range(4):
        before = best
        for level, step in [(level, step) for level in range(len(now.sizes)) for step in _STEPS]:
            moved = list(best.sizes)
            moved[level] = max(2, round(moved[level] * step))
            choice = Choice(tuple(moved), best.ratios)
            if moved != sorted(moved) or choice in scores:
                continue
            scores[choice] = score(choice)
            best = max(best, choice, key=scores.__getitem__)
        if best == before:
            break
    return best if scores[best] > scores[now] else now


def _candidates(objects: Objects, now: Choice) -> Iterator[Choice]:
    """`now`, and sizes that grow by one factor per level, like the strides, from several smallest
    sizes.
    """
    boxes = objects.boxes
    own = (boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])
    places = (np.arange(len(now.ratios)) + 0.5) / len(now.ratios)
    ratios = tuple(float(f"{ratio:.2g}") for ratio in np.quantile(own, places))
    ladders = [
        tuple(max(2, round(first * growth**level)) for level in range(len(now.sizes)))
        for first in np.quantile(objects.sides(), [0.05, 0.15, 0.3, 0.5, 0.7]).tolist()
        for growth in (1.4, 1.7, 2.0)
    ]
    for sizes in (now.sizes, *ladders):
        for kind in (now.ratios, ratios):
            yield Choice(sizes, kind)
