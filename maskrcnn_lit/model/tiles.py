"""Detection in overlapping tiles of an image, whose results are merged as run lengths.

Two tiles that overlap see the same pixels there, so detections of one object agree in the strip
that they share. A detection that ends at an edge of its tile, inside the image, is a part of an
object or looks like one; its other part, or a view of the whole, is in the neighbor's detections.

Letters: T tiles, R detections, N runs, H W the image, h w a tile.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
import torch
from numpy.typing import NDArray
from torch import nn

from maskrcnn_lit.data.batch import BLANK_ID, Batch
from maskrcnn_lit.data.coco.rasterize import expand_counts
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.errors import UserError, check_whole, check_within
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original, without_overlap

MIN_TILE, MAX_TILE = 32, 16_384  # pixels
MAX_OVERLAP = 0.5
MAX_IMAGE = 2**32 - 1  # pixels: the run lengths of COCO have 32 bits

SAME = 0.5  # IoU of two views of one object that is whole in both
SHARED = 0.5  # intersection over the smaller, in the shared strip, of two parts of one object
NEAR_EDGE = 4.0  # px: a box that ends so near to an edge is cut by it,
NEAR_SIDE = 0.1  # or as near as this share of its side, as boxes are not exact

_CACHED = 4096  # masks in memory as runs

Found = dict[str, Any]  # boxes R 4, scores R, labels R, masks R RLE, as `to_original` gives them
Runs = NDArray[np.int64]  # N 2: begin and end of each run, in COCO's order, down the columns

_log = logging.getLogger(__name__)


class Tiling(NamedTuple):
    """tile: side of a tile in pixels. overlap: the share of it that two neighbors have in common at
    least, 0 to 0.5.
    """

    tile: int
    overlap: float = 0.2

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        check_whole(MIN_TILE, MAX_TILE, tile=self.tile)
        check_within(0, MAX_OVERLAP, overlap=self.overlap)

    def windows(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """T times y, x, h, w, row by row: tiles of one size that cover an image of `size` (height,
        width) evenly. A side that is shorter than a tile has one.

        Raises: UserError: the image has more than MAX_IMAGE pixels.
        """
        height, width = size
        if height * width > MAX_IMAGE:
            raise UserError(
                f"an image of {width} x {height} pixels is too large for masks as run lengths of "
                f"32 bits, {MAX_IMAGE} pixels: cut it into several files"
            )
        rows, columns = self._starts(height), self._starts(width)
        sides = min(self.tile, height), min(self.tile, width)
        return [(y, x, *sides) for y in rows for x in columns]

    def _starts(self, side: int) -> list[int]:
        if side <= self.tile:
            return [0]
        step = max(1, int(self.tile * (1 - self.overlap)))
        count = -(-(side - self.tile) // step) + 1
        return [round(n * (side - self.tile) / (count - 1)) for n in range(count)]


def detect_tiles(
    detect: Callable[[list[NDArray[np.uint8]]], list[Found]],
    pixels: Iterable[tuple[int, NDArray[np.uint8]]],
    windows: Sequence[tuple[int, int, int, int]],
    size: tuple[int, int],
    *,
    batch_size: int = 1,
    name: str = "",
) -> Found:
    """Detections of an image of `size`, in its pixels, from those of its tiles.

    Args:
        detect: images of one size -> the detections of each, in its pixels.
        pixels: the position in `windows` and the pixels of each tile, in any order.
        windows: of `Tiling.windows`.
        batch_size: maximum number of images for `detect`.
        name: of the image, for lines of the log about its progress.
    """
    found: list[Found | None] = [None] * len(windows)
    tenth, done = max(10, len(windows) // 10), 0
    for batch in _batches(pixels, batch_size):
        numbers, images = zip(*batch, strict=True)
        for number, result in zip(numbers, detect(list(images)), strict=True):
            found[number] = result
        before, done = done, done + len(batch)
        if name and done // tenth > before // tenth and done < len(windows):
            _log.info(f"{name}: {done} of {len(windows)} tiles")
    every = [one for one in found if one is not None]
    if len(every) < len(windows):
        raise ValueError(f"{len(every)} of {len(windows)} tiles were given")
    return merge_tiles(every, windows, size)


class WithTiles(nn.Module):
    """A model whose forward, in evaluation mode, detects in tiles of the images too.

    Args:
        model: batch -> `Output`, in evaluation mode.
        tiling: the tiles, in pixels of the images as they are.
        image_size: to which the model's images, and tiles, are resized.
        read: the id of an image -> its pixels H W 3; None: it cannot be read.

    Attributes:
        images, tiles: the numbers so far.
        seconds, plain_seconds: the time for the detections in tiles, and of the model for the
            images as a whole.
    """

    def __init__(
        self,
        model: nn.Module,
        tiling: Tiling,
        image_size: ImageSize,
        read: Callable[[int], NDArray[np.uint8] | None],
    ) -> None:
        super().__init__()
        self.model, self.tiling, self.image_size, self.read = model, tiling, image_size, read
        self.images, self.tiles, self.seconds, self.plain_seconds = 0, 0, 0.0, 0.0

    def forward(self, batch: Batch) -> Output:
        """`Output.found` has the detections in tiles, as `to_original` gives them, `plain` those of
        the images as a whole.
        """
        began = time.perf_counter()
        output: Output = self.model(batch)
        whole = to_original(output.detections or {}, batch)  # waits for the device
        self.plain_seconds += time.perf_counter() - began
        count, device = len(batch["images"]), batch["images"].device
        found = [
            one if (tiled := self._image(one["image_id"], count, device)) is None else tiled
            for one in whole
        ]
        return output._replace(losses={}, found=found, plain=output.detections)

    def _image(self, image_id: int, batch_size: int, device: torch.device) -> Found | None:
        pixels = None if image_id == BLANK_ID else self.read(image_id)
        if pixels is None:
            return None
        began = time.perf_counter()
        exclusive = False

        def detect(images: list[NDArray[np.uint8]]) -> list[Found]:
            nonlocal exclusive
            own = image_batch(images, range(len(images)), self.image_size)
            there = {key: value.to(device) for key, value in own.items()}
            detections = self.model(there).detections or {}
            exclusive = exclusive or "exclusive" in detections
            return to_original(detections, there)

        size = (pixels.shape[0], pixels.shape[1])
        windows = self.tiling.windows(size)
        parts = cut_tiles(pixels, windows)
        found = detect_tiles(detect, parts, windows, size, batch_size=batch_size)
        found = without_overlap(found) if exclusive and len(windows) > 1 else found
        self.seconds += time.perf_counter() - began
        self.images += 1
        self.tiles += len(windows)
        return found | {"image_id": image_id}


def cut_tiles(
    pixels: NDArray[np.uint8], windows: Sequence[tuple[int, int, int, int]]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The position in `windows` and the pixels of each tile of an image in memory."""
    for i, (y, x, height, width) in enumerate(windows):
        yield i, pixels[y : y + height, x : x + width]


def _batches(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


def merge_tiles(
    found: Sequence[Found], windows: Sequence[tuple[int, int, int, int]], size: tuple[int, int]
) -> Found:
    """The detections of T tiles as those of the image of `size` (height, width): the parts of an
    object are one, with the highest of their scores, and what two tiles see as a whole is there
    once. By descending score.
    """
    if len(windows) == 1:  # the tile is the image
        return found[0]
    parts = _Parts(found, windows, size)
    groups = _Groups(parts.scores)
    pairs = list(_pairs(parts))
    for a, b, _ in sorted(
        (pair for pair in pairs if pair[2] == "same"),
        key=lambda pair: -max(parts.scores[pair[0]], parts.scores[pair[1]]),
    ):
        worse, better = (a, b) if parts.scores[a] < parts.scores[b] else (b, a)
        groups.absorb(worse, better)
    for a, b, kind in pairs:
        if kind == "view":
            groups.absorb(a, b)
    for a, b, kind in pairs:
        if kind == "parts":
            groups.join(a, b)
    return parts.merged(groups.members())


class _Parts:
    """All detections of all tiles, in pixels of the image."""

    def __init__(
        self,
        found: Sequence[Found],
        windows: Sequence[tuple[int, int, int, int]],
        size: tuple[int, int],
    ) -> None:
        self.size, self.windows = size, windows
        counts = [len(one["scores"]) for one in found]
        self.tiles = np.repeat(np.arange(len(found)), counts)
        self.spans = np.cumsum([0, *counts])
        corners = [(x, y, x, y) for y, x, _, _ in windows]
        self.boxes = np.concatenate(
            [
                np.asarray(one["boxes"], np.float64).reshape(-1, 4) + corner
                for one, corner in zip(found, corners, strict=True)
            ]
        )
        self.scores = np.concatenate([np.asarray(one["scores"]) for one in found])
        self.labels = np.concatenate([np.asarray(one["labels"]) for one in found])
        self.has_masks = "masks" in found[0]
        self._masks = [mask for one in found for mask in one.get("masks", ())]
        self._runs = lru_cache(_CACHED)(self._make_runs)

    def of_tile(self, tile: int) -> NDArray[np.int64]:
        return np.arange(self.spans[tile], self.spans[tile + 1])

    def _make_runs(self, r: int) -> Runs:
        return tile_runs(self._masks[r], self.windows[self.tiles[r]], self.size[0])

    def cut(self, r: NDArray[np.int64], tile: int, other: int) -> NDArray[np.bool_]:
        """Whether each detection r of `tile` ends at an edge of it that lies inside of `other`."""
        y, x, height, width = self.windows[tile]
        top, left, other_height, other_width = self.windows[other]
        boxes = self.boxes[r]
        near = np.maximum(NEAR_EDGE, NEAR_SIDE * (boxes[:, 2:] - boxes[:, :2]))  # x, y
        result = np.zeros(len(r), np.bool_)
        if left < x:
            result |= boxes[:, 0] - x <= near[:, 0]
        if left + other_width > x + width:
            result |= x + width - boxes[:, 2] <= near[:, 0]
        if top < y:
            result |= boxes[:, 1] - y <= near[:, 1]
        if top + other_height > y + height:
            result |= y + height - boxes[:, 3] <= near[:, 1]
        return result

    def areas(self, a: int, b: int, strip: NDArray[np.int64]) -> tuple[float, ...]:
        """The areas of two detections, of each inside of `strip` (x1 y1 x2 y2), which two tiles
        share, and of both there.
        """
        if not self.has_masks:
            whole = self.boxes[[a, b]]
            inside = np.stack([_clipped(box, strip) for box in whole])
            both = np.concatenate([inside[:, :2].max(0), inside[:, 2:].min(0)])
            return tuple(_area(box) for box in (*whole, *inside, both))
        first, second = self._runs(a), self._runs(b)
        own, others = (clip_runs(runs, strip, self.size[0]) for runs in (first, second))
        sums = [run_pixels(runs) for runs in (first, second, own, others)]
        return (*sums, sums[2] + sums[3] - run_pixels(unite([own, others])))

    def merged(self, groups: Sequence[tuple[float, Sequence[int]]]) -> Found:
        """groups: the score and the detections of each."""
        order = sorted(range(len(groups)), key=lambda g: -groups[g][0])  # stable
        chosen = [groups[g] for g in order]
        first = [members[0] for _, members in chosen]
        boxes = [
            np.concatenate([self.boxes[m, :2].min(0), self.boxes[m, 2:].max(0)])
            for m in (list(members) for _, members in chosen)
        ]
        result: Found = {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "scores": np.array([score for score, _ in chosen], np.float32),
            "labels": self.labels[first],
        }
        if self.has_masks:
            result["masks"] = [
                encode_runs(unite([self._make_runs(r) for r in members]), self.size)
                for _, members in chosen
            ]
        return result


def _pairs(parts: _Parts) -> Iterator[tuple[int, int, str]]:
    """Pairs of detections of one class and two tiles: "same", two views of one whole object;
    "view", the first is a view of the second that its tile cuts; "parts", each may have what the
    other lacks.
    """
    windows = np.array(parts.windows).reshape(-1, 4)
    low, high = windows[:, 1::-1], windows[:, 1::-1] + windows[:, :1:-1]  # x, y
    for i in range(len(windows)):
        strips = np.concatenate([np.maximum(low[i], low), np.minimum(high[i], high)], 1)
        overlap: NDArray[np.bool_] = np.all(strips[:, :2] < strips[:, 2:], axis=1)
        for j in (np.flatnonzero(overlap[i + 1 :]) + i + 1).tolist():
            yield from _pairs_of_tiles(parts, i, j, strips[j])


def _pairs_of_tiles(
    parts: _Parts, i: int, j: int, strip: NDArray[np.int64]
) -> Iterator[tuple[int, int, str]]:
    first, second = parts.of_tile(i), parts.of_tile(j)
    first, second = (r[_meets(parts.boxes[r], strip)] for r in (first, second))
    cut = parts.cut(first, i, j), parts.cut(second, j, i)
    same_class = parts.labels[first][:, None] == parts.labels[second]
    touching = _touch(parts.boxes[first], parts.boxes[second])
    for m, n in np.argwhere(same_class & touching).tolist():
        a, b = int(first[m]), int(second[n])
        whole_a, whole_b, own, other, both = parts.areas(a, b, strip)
        if both <= 0:
            continue
        cut_a, cut_b = bool(cut[0][m]), bool(cut[1][n])
        if not cut_a and not cut_b:
            if both >= SAME * (whole_a + whole_b - both):
                yield a, b, "same"
        elif cut_a and cut_b:
            if both >= SHARED * min(own, other):
                yield a, b, "parts"
        elif both >= SAME * (whole_a if cut_a else whole_b):
            yield (a, b, "view") if cut_a else (b, a, "view")
        # the one that is whole may have lost a piece, or is a neighbor that ends in the strip
        elif both >= SAME * (own + other - both) or both >= SAME * min(whole_a, whole_b):
            yield a, b, "parts"


def _meets(boxes: NDArray[Any], strip: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (np.maximum(boxes[:, :2], strip[:2]) < np.minimum(boxes[:, 2:], strip[2:])).all(1)


def _touch(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each box of `a` overlaps each of `b`, or comes within a pixel: masks are whole
    pixels.
    """
    gaps = np.maximum(a[:, None, :2] - b[None, :, 2:], b[None, :, :2] - a[:, None, 2:])
    return (gaps < 1).all(2)


def _clipped(box: NDArray[Any], strip: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([np.maximum(box[:2], strip[:2]), np.minimum(box[2:], strip[2:])])


def _area(box: NDArray[Any]) -> float:
    return float(np.prod(np.clip(box[2:] - box[:2], 0, None)))


class _Groups:
    """Which detections are one. One that is absorbed gives its score alone."""

    def __init__(self, scores: NDArray[Any]) -> None:
        self._parent = list(range(len(scores)))
        self._absorbed = np.zeros(len(scores), np.bool_)
        self._scores = scores

    def _root(self, r: int) -> int:
        while self._parent[r] != r:
            self._parent[r] = self._parent[self._parent[r]]
            r = self._parent[r]
        return r

    def absorb(self, worse: int, better: int) -> None:
        if not self._absorbed[worse] and not self._absorbed[better]:
            self.join(worse, better)
            self._absorbed[worse] = True

    def join(self, a: int, b: int) -> None:
        if not self._absorbed[a] and not self._absorbed[b]:
            self._parent[self._root(a)] = self._root(b)

    def members(self) -> list[tuple[float, list[int]]]:
        """The highest score of each group, and those of its detections that are not absorbed."""
        groups: dict[int, list[int]] = {}
        for r in range(len(self._parent)):
            groups.setdefault(self._root(r), []).append(r)
        return [
            (float(self._scores[own].max()), [r for r in own if not self._absorbed[r]])
            for own in groups.values()
        ]


def tile_runs(mask: dict[str, Any], window: tuple[int, int, int, int], height: int) -> Runs:
    """The runs of a tile's compressed RLE as those of an image of `height`, each in one column."""
    y, x, own_height, _ = window
    ends = np.cumsum(expand_counts(mask["counts"]))
    begins, ends = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    kept = ends > begins
    begins, ends = begins[kept], ends[kept]
    first = begins // own_height
    columns = (ends - 1) // own_height - first + 1  # that a run goes through
    run = np.repeat(np.arange(len(begins)), columns)
    column = np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns) + first[run]
    top = np.maximum(begins[run] - column * own_height, 0)
    bottom = np.minimum(ends[run] - column * own_height, own_height)
    return ((x + column) * height + y)[:, None] + np.stack([top, bottom], 1)


def clip_runs(runs: Runs, strip: NDArray[np.int64], height: int) -> Runs:
    """The part inside of `strip` (x1 y1 x2 y2) of runs that each lie in one column."""
    x1, y1, x2, y2 = strip.tolist()
    runs = runs[(runs[:, 0] >= x1 * height) & (runs[:, 0] < x2 * height)]
    column = runs[:, :1] // height * height
    clipped = np.clip(runs - column, y1, y2) + column
    return clipped[clipped[:, 1] > clipped[:, 0]]


def unite(several: Sequence[Runs]) -> Runs:
    """The union of masks: runs that neither overlap nor touch, in order."""
    runs = np.concatenate(several)
    if not len(runs):
        return runs
    runs = runs[runs[:, 0].argsort(kind="stable")]
    last = np.maximum.accumulate(runs[:, 1])
    apart = runs[1:, 0] > last[:-1]
    return np.stack([runs[np.r_[True, apart], 0], last[np.r_[apart, True]]], 1)


def run_pixels(runs: Runs) -> int:
    """The pixels of runs that do not overlap."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def encode_runs(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed COCO RLE of runs that neither overlap nor touch."""
    counts = np.diff(np.concatenate([[0], runs.ravel(), [size[0] * size[1]]]))
    counts = counts if counts[-1] or len(counts) == 1 else counts[:-1]
    return pycocotools.mask.frPyObjects({"size": list(size), "counts": counts}, *size)


def shrink_mask(mask: dict[str, Any], box: NDArray[Any], size: tuple[int, int]) -> dict[str, Any]:
    """A COCO RLE as that of a smaller image of `size` (height, width): the value at the center of
    each of its pixels. Memory is that of the smaller image inside `box` (x1 y1 x2 y2, pixels of the
    mask), outside of which the mask is left out.
    """
    height, width = mask["size"]
    y, x = (
        ((np.arange(count) + 0.5) * side / count).astype(np.int64)
        for count, side in zip(size, (height, width), strict=True)
    )
    x1, y1, x2, y2 = (box + np.array([-1, -1, 1, 1])).tolist()  # a mask may be a pixel larger
    rows, columns = np.flatnonzero((y >= y1) & (y < y2)), np.flatnonzero((x >= x1) & (x < x2))
    small = np.zeros((size[0], size[1]), np.uint8, order="F")
    if len(rows) and len(columns):
        ends = np.cumsum(expand_counts(mask["counts"]))
        at = (x[columns] * height)[:, None] + y[rows]  # columns rows
        inside = np.searchsorted(ends, at.ravel(), side="right") % 2
        small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = inside.reshape(at.shape).T
    return pycocotools.mask.encode(small)
