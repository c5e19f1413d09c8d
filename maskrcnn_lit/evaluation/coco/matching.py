"""Matches detections to objects, at every IoU threshold and for every size range, exactly as
pycocotools does.

A whole data set is matched at once. Candidates are pairs of a detection and an object of one image
and class; only pairs with an IoU of at least the lowest threshold can match, and they are few.
Matching runs in rounds: first the best detection of every image and class, then the second best,
and so on.

Letters: N detections, G objects of the ground truth, P pairs of the two, T IoU thresholds, A size
ranges, K classes, I images.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.sizes import AREAS
from maskrcnn_lit.evaluation.coco.federated import (
    counted_results,
    incomplete_classes,
    is_federated,
)
from maskrcnn_lit.evaluation.coco.results import (
    check_masks,
    check_results,
    mask_rle,
)
from maskrcnn_lit.evaluation.coco.void import VoidRegion, has_mask, truth_mask, void_of

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # T; pycocotools' own, to the last bit

# A 2: all, small, medium, large; in pixels
AREA_RANGES = np.array([[0, 1e5**2], *AREAS.values()])

WRONG, RIGHT, IGNORED = 0, 1, 2  # outcomes of a detection

FIELD = {"bbox": "bbox", "segm": "segmentation"}

_PAIRS = 1_000_000  # pairs whose IoU is in memory at once

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]


class Matches(NamedTuple):
    """The input of all scores. Detections are sorted by class, then by descending score, ties by
    image.
    """

    images: int  # I, in the order of their ids
    classes: int  # K, in the order of their ids
    labels: Ints  # N, 0..K-1
    image: Ints  # N, 0..I-1
    scores: Floats  # N
    rank: Ints  # N: rank among the detections of its image and class, from 0
    outcome: NDArray[np.int8]  # N T A: WRONG, RIGHT or IGNORED
    truth_labels: Ints  # G
    truth_image: Ints  # G
    truth_counted: NDArray[np.bool_]  # G A: of this size and not a crowd region


class Candidates(NamedTuple):
    """Pairs of a detection and an object whose IoU allows a match."""

    detection: Ints  # P
    object: Ints  # P
    iou: Floats  # P


def match_results(
    ground_truth: Mapping[str, Any], results: Sequence[dict[str, Any]], *, iou_type: str, limit: int
) -> Matches:
    """Match the results (entries of a COCO results json) with all images of a COCO json, by "bbox"
    or "segm".

    limit: maximum number of detections per image and class, by score; of a federated ground truth
        (federated.py), per image.

    Raises UserError for invalid entries and for unknown images or categories, with their ids.
    """
    images = sorted(ground_truth["images"], key=lambda image: image["id"])
    image_numbers = {image["id"]: number for number, image in enumerate(images)}
    class_ids = sorted(category["id"] for category in ground_truth["categories"])
    class_numbers = {category: number for number, category in enumerate(class_ids)}
    check_results(results, image_numbers, class_numbers, FIELD[iou_type])
    if iou_type == "segm":
        check_masks(results, {image["id"]: image for image in images})

    federated = is_federated(ground_truth)
    if federated:
        results = [results[n] for n in counted_results(ground_truth, results, limit)]
    truth = ground_truth["annotations"]
    truth_labels, truth_image = _numbers(truth, class_numbers, image_numbers)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in truth], dtype=bool)
    if iou_type == "segm":
        crowd |= ~np.array([has_mask(a) for a in truth], dtype=bool)
    counted = _within(np.array([a["area"] for a in truth], dtype=np.float64)) & ~crowd[:, None]
    regions = {n: region for n, one in enumerate(images) if (region := void_of(one)) is not None}

    labels, image = _numbers(results, class_numbers, image_numbers)
    scores = np.array([r["score"] for r in results], dtype=np.float64)
    order = np.lexsort((-scores, image, labels))  # stable: ties keep the order of the list
    group = (labels * len(images) + image)[order]  # one number per image and class
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    order, group, rank = order[rank < limit], group[rank < limit], rank[rank < limit]

    truth_group = truth_labels * len(images) + truth_image
    spans = _spans(group, truth_group)
    if iou_type == "bbox":
        boxes = np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4)[order]
        areas = boxes[:, 2] * boxes[:, 3]
        void = _void_shares(boxes, image[order], regions)
        pairs = _box_pairs(
            boxes, np.array([a["bbox"] for a in truth], dtype=np.float64), crowd, spans
        )
    else:
        masks = [
            mask_rle(results[n], images[i])
            for n, i in zip(order.tolist(), image[order].tolist(), strict=True)
        ]
        shapes = _Shapes(truth, truth_image, images, regions)
        masks, void = _without_void(masks, image[order], regions)
        areas = mask_areas(masks)
        counted &= ~shapes.all_void()[:, None]
        pairs = _mask_pairs(masks, shapes, crowd, group, spans)
    outcome = (
        np.where(_within(areas), WRONG, IGNORED).astype(np.int8)[:, None].repeat(len(THRESHOLDS), 1)
    )  # N T A
    for n, taken in assign(pairs, group, THRESHOLDS, counted=counted, reusable=crowd):
        row, t, a = np.nonzero(taken >= 0)
        right = counted[taken[row, t, a], a]
        outcome[n[row], t, a] = np.where(right, RIGHT, IGNORED)
    excused = void[:, None] >= np.minimum(THRESHOLDS, 1 - 1e-10)  # N T
    if federated:
        excused |= _unsure(ground_truth, results)[order][:, None]
    outcome[(outcome == WRONG) & excused[..., None]] = IGNORED
    final = np.lexsort((image[order], -scores[order], labels[order]))
    n = order[final]
    columns = (labels[n], image[n], scores[n], rank[final], outcome[final])
    return Matches(len(images), len(class_ids), *columns, truth_labels, truth_image, counted)


def _unsure(
    ground_truth: Mapping[str, Any], results: Sequence[dict[str, Any]]
) -> NDArray[np.bool_]:
    """N: whether the class of a result is not labeled completely in its image."""
    incomplete = incomplete_classes(ground_truth)
    return np.array([r["category_id"] in incomplete[r["image_id"]] for r in results], dtype=bool)


def _numbers(
    entries: Sequence[dict[str, Any]],
    class_numbers: Mapping[Any, int],
    image_numbers: Mapping[Any, int],
) -> tuple[Ints, Ints]:
    labels = np.array([class_numbers[entry["category_id"]] for entry in entries], dtype=np.int64)
    return labels, np.array([image_numbers[entry["image_id"]] for entry in entries], dtype=np.int64)


def _within(areas: Floats) -> NDArray[np.bool_]:
    """N A: whether an area lies in a range, inclusive."""
    return (areas[:, None] >= AREA_RANGES[:, 0]) & (areas[:, None] <= AREA_RANGES[:, 1])


def _spans(group: Ints, truth_group: Ints) -> tuple[Ints, Ints, Ints]:
    """The objects sorted by group, and begin and end (N each) of the objects in each detection's
    group.
    """
    by_group = np.argsort(truth_group, kind="stable")
    begin, end = (
        np.searchsorted(truth_group[by_group], group, side=side) for side in ("left", "right")
    )
    return by_group, begin, end


def mask_areas(masks: list[dict[str, Any]]) -> Floats:
    """N: areas in pixels. In chunks: pycocotools 2.0 with NumPy 2 fails on more than 255 masks."""
    parts = [rle_tools.area(masks[n : n + 255]) for n in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0), *parts])


def _box_pairs(
    boxes: Floats, truth: Floats, crowd: NDArray[np.bool_], spans: tuple[Ints, Ints, Ints]
) -> Candidates:
    """boxes: N 4, truth: G 4, x y w h. Operations have the order of pycocotools', so results are
    bit-identical.
    """
    by_group, begin, end = spans
    selected = [Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    upto = np.cumsum(end - begin)
    for cut in range(0, int(upto[-1]) if len(upto) else 0, _PAIRS):
        some = slice(*np.searchsorted(upto, [cut, cut + _PAIRS], side="right"))
        counts = (end - begin)[some]
        rows = np.repeat(np.arange(len(upto))[some], counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        objects = by_group[np.repeat(begin[some], counts) + offsets]
        d, g = boxes[rows].T, truth[objects].T
        w = np.minimum(d[2] + d[0], g[2] + g[0]) - np.maximum(d[0], g[0])
        h = np.minimum(d[3] + d[1], g[3] + g[1]) - np.maximum(d[1], g[1])
        both = (w > 0) & (h > 0)
        own, inter = d[2] * d[3], w * h
        union = np.where(crowd[objects], own, own + g[2] * g[3] - inter)
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=both)
        near = iou >= THRESHOLDS[0]
        selected.append(Candidates(rows[near], objects[near], iou[near]))
    return Candidates(*map(np.concatenate, zip(*selected, strict=True)))


class _Shapes:
    """The masks of objects without their void pixels, computed when they are needed."""

    def __init__(
        self,
        truth: Sequence[Mapping[str, Any]],
        truth_image: Ints,
        images: Sequence[Mapping[str, Any]],
        regions: Mapping[int, VoidRegion],
    ) -> None:
        self._truth, self._image = truth, truth_image.tolist()
        self._images, self._regions = images, regions

    def __getitem__(self, objects: Ints) -> list[dict[str, Any]]:
        """Compressed RLEs of some objects."""
        return [self._one(g) for g in objects.tolist()]

    def _one(self, g: int) -> dict[str, Any]:
        number = self._image[g]
        mask = truth_mask(self._truth[g], self._images[number])
        region = self._regions.get(number)
        return mask if region is None else region.visible([mask]).masks[0]

    def all_void(self) -> NDArray[np.bool_]:
        """G: whether an object of an image with a void region has no other pixel."""
        return np.array(
            [
                n in self._regions and not rle_tools.area(self._one(g))
                for g, n in enumerate(self._image)
            ],
            dtype=bool,
        )


def _void_shares(boxes: Floats, image: Ints, regions: Mapping[int, VoidRegion]) -> Floats:
    """N: the share of each box that is void."""
    shares = np.zeros(len(boxes))
    for number, region in regions.items():
        own = np.flatnonzero(image == number)
        shares[own] = region.share_of_boxes(boxes[own])
    return shares


def _without_void(
    masks: list[dict[str, Any]], image: Ints, regions: Mapping[int, VoidRegion]
) -> tuple[list[dict[str, Any]], Floats]:
    """N masks without their void pixels, and the share of each that is void."""
    left, shares = list(masks), np.zeros(len(masks))
    for number, region in regions.items():
        own = np.flatnonzero(image == number)
        visible = region.visible([masks[n] for n in own.tolist()])
        shares[own] = visible.void
        for n, mask in zip(own.tolist(), visible.masks, strict=True):
            left[n] = mask
    return left, shares


def _mask_pairs(
    masks: Sequence[dict[str, Any]],
    shapes: _Shapes,
    crowd: NDArray[np.bool_],
    group: Ints,
    spans: tuple[Ints, Ints, Ints],
) -> Candidates:
    """masks: N compressed RLE; shapes: those of the G objects."""
    by_group, begin, end = spans
    selected = [Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    firsts = np.flatnonzero((np.diff(group, prepend=-1) > 0) & (end > begin))
    stops = np.searchsorted(group, group[firsts], side="right")
    for first, stop in zip(firsts.tolist(), stops.tolist(), strict=True):
        objects = by_group[begin[first] : end[first]]
        iou = rle_tools.iou(masks[first:stop], shapes[objects], crowd[objects].tolist())
        rows, columns = np.nonzero(iou >= THRESHOLDS[0])
        selected.append(Candidates(first + rows, objects[columns], iou[rows, columns]))
    return Candidates(*map(np.concatenate, zip(*selected, strict=True)))


def assign(
    pairs: Candidates,
    group: Ints,
    thresholds: Floats,
    *,
    counted: NDArray[np.bool_],
    reusable: NDArray[np.bool_],
) -> Iterator[tuple[Ints, Ints]]:
    """COCO's assignment, for all groups (image and class) in parallel rounds.

    By descending score, each detection is matched to the unmatched object that counts with the
    highest IoU, the last one for a tie; without such an object, to one that does not count.

    Args:
        pairs: P pairs within a group.
        group: N, ascending; the detections of a group are sorted by descending score.
        thresholds: T minimum IoUs.
        counted: G A, the objects that count in each range of sizes; the others are ignored.
        reusable: G, the objects that may be matched any number of times.

    Yields:
        (n, taken): some detections, and n T A the object that each is matched to, or -1. Unmatched
        detections may be missing.
    """
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]  # T 1
    taken = np.zeros((len(counted), len(thresholds), counted.shape[1]), dtype=bool)
    by = np.lexsort(
        (pairs.object, pairs.iou, pairs.detection)
    )  # the best pair of a detection is last
    detection, objects, iou = pairs.detection[by], pairs.object[by], pairs.iou[by]
    slot = _rank_in_group(detection)  # rank of a pair among those of its detection
    seekers = detection[slot == 0]
    turn = np.repeat(
        _rank_in_group(group[seekers]),
        np.diff(np.append(np.flatnonzero(slot == 0), len(detection))),
    )
    by = np.lexsort((slot, turn))
    cuts = np.flatnonzero(np.diff(turn[by], prepend=-1))
    for now in np.split(by, cuts[1:]) if len(by) else ():
        n = detection[now][slot[now] == 0]  # at most one detection of a group
        chosen = np.full((len(n), *taken.shape[1:]), -1)
        counts = np.zeros(chosen.shape, dtype=bool)
        for one in np.split(now, np.flatnonzero(np.diff(slot[now])) + 1):
            rows, g = np.searchsorted(n, detection[one]), objects[one]
            counting = counted[g][:, None]
            free = ~taken[g] | reusable[g, None, None]
            take = free & (iou[one, None, None] >= limits) & (counting | ~counts[rows])
            chosen[rows] = np.where(take, g[:, None, None], chosen[rows])
            counts[rows] |= take & counting
        row, t, a = np.nonzero(chosen >= 0)
        taken[chosen[row, t, a], t, a] = True
        yield n, chosen


def _rank_in_group(ordered: Ints) -> Ints:
    """The index of each value within its run of equal values, from 0."""
    return np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
