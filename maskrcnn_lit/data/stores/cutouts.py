"""Caches the pixels in the boxes of objects, for copy-paste: the image that an object comes from is
decoded once for all epochs and runs.

An object that is larger than paste.LARGEST_SHARE of its image is not pasted, and has no cutout.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.coco.arrays import has_mask
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.data.paste import LARGEST_SHARE
from maskrcnn_lit.data.stores.memmap import MemmapStore
from maskrcnn_lit.data.transforms import SampledTransform, whole_image

Ints = NDArray[np.int64]

ReadImage = Callable[[int, SampledTransform], Tensor | None]  # 3 H W; None: it cannot be decoded


class Cutouts:
    """The pixels of the objects of `index`, at the size of their files, or at `image_size` if that
    is smaller; stored in `cache`/cutouts, or read from the files each time if `cache` is None.
    """

    def __init__(self, index: AnnotationIndex, image_size: ImageSize, cache: Path | None) -> None:
        self.index = index
        arrays = index.packed.arrays
        files = np.stack([arrays.heights, arrays.widths], 1)  # of the full json
        self.sizes = np.minimum(files, fitted_sizes(files, image_size))
        self._scales = (self.sizes / files)[:, ::-1]  # x, y
        spans = np.asarray(arrays.spans)
        owner = np.repeat(np.arange(len(spans)), spans[:, 1] - spans[:, 0])
        boxes = np.array(arrays.boxes)
        boxes[:, 2:] += boxes[:, :2]
        limits = files[owner, ::-1]
        boxes = boxes.clip(0, np.tile(limits, 2))
        sides = boxes[:, 2:] - boxes[:, :2]
        self.usable = (  # N of the json
            (sides.prod(1) <= LARGEST_SHARE * limits.prod(1))
            & has_mask(arrays)
            & ~np.asarray(arrays.crowd)
        )
        parts = _bounds(boxes, self._scales[owner], self.sizes[owner, ::-1])
        lengths = np.where(self.usable, 3 * (parts[:, 2:] - parts[:, :2]).prod(1), 0)
        ends = np.cumsum(lengths)
        self._stored: MemmapStore | None = None
        if cache is not None:
            name = "x".join(map(str, np.atleast_1d(image_size).tolist()))
            file = cache / "cutouts" / f"{index.pixels_key}-{name}.raw"
            self._stored = MemmapStore(file, np.stack([ends - lengths, ends], 1))
        self.bytes = lengths

    def images(self) -> Ints:
        """The positions of the images of `index` with an object that can be pasted."""
        before = np.r_[0, np.cumsum(self.usable)]
        spans = self.index.spans
        return np.flatnonzero(before[spans[:, 1]] > before[spans[:, 0]])

    def bounds(self, i: int, boxes: NDArray[np.float64]) -> Ints:
        """R 4: x1 y1 x2 y2 of the cutouts of `boxes` (R 4, in the file's pixels) of image i, in
        pixels of the image at its size here.
        """
        row = int(self.index.rows[i])
        return _bounds(boxes, self._scales[row], self.sizes[row, ::-1])

    def scale(self, i: int) -> NDArray[np.float64]:
        """Pixels here for one of the file of image i: x, y."""
        return self._scales[int(self.index.rows[i])]

    def get(
        self, i: int, boxes: NDArray[np.float64], chosen: Ints, read: ReadImage
    ) -> list[NDArray[np.uint8]] | None:
        """The pixels, h w 3, of the objects `chosen` of image i; None if it cannot be decoded.

        Args:
            boxes: R 4, of all objects of the image, in the file's pixels.
            read: gives the image by position and view; called if they are not stored.
        """
        first = self.index.span(i)[0]
        bounds = self.bounds(i, boxes)
        stamp = b""
        if self._stored is not None:
            stamp = repr(self.index.source.stamp(self.index.file_name(i))).encode()
            pieces = [self._stored.get(first + n, stamp) for n in chosen.tolist()]
            found = [
                piece.reshape(y2 - y1, x2 - x1, 3)
                for piece, (x1, y1, x2, y2) in zip(pieces, bounds[chosen].tolist(), strict=True)
                if piece is not None
            ]
            if len(found) == len(chosen):
                return found
        height, width = self.sizes[int(self.index.rows[i])].tolist()
        image = read(i, whole_image(self.index.size(i), (height, width)))
        if image is None:
            return None
        pixels = image.permute(1, 2, 0).numpy()
        if self._stored is not None:
            for n in np.flatnonzero(self.usable[first : first + len(boxes)]).tolist():
                self._stored.put(first + n, _cut(pixels, bounds[n]), stamp)
        return [_cut(pixels, bounds[n]) for n in chosen.tolist()]


def choose_cutouts(
    mode: str,
    index: AnnotationIndex,
    image_size: ImageSize,
    cache: Path,
    cache_gb: float,
) -> tuple[Cutouts, str]:
    """The cutouts of `index`, stored unless `data.image_cache` is off or they need too much space;
    and a line for the log.
    """
    cutouts = Cutouts(index, image_size, cache)
    if not len(cutouts.images()):
        return Cutouts(index, image_size, None), (
            "augment.copy_paste has nothing to paste: every object is a crowd region, has no mask, "
            f"or has a box of over {LARGEST_SHARE:.0%} of its image"
        )
    spans = index.spans
    before = np.r_[0, np.cumsum(cutouts.bytes)]
    needed = int((before[spans[:, 1]] - before[spans[:, 0]]).sum())
    cache.mkdir(parents=True, exist_ok=True)
    room = min(cache_gb * 1e9, 0.8 * shutil.disk_usage(cache).free)
    if mode == "off" or needed > room:
        why = (
            "data.image_cache=off"
            if mode == "off"
            else f"they need {needed / 1e9:.1f} GB and {room / 1e9:.1f} GB may be used"
        )
        return Cutouts(index, image_size, None), (
            f"augment.copy_paste: the objects are read from the image files each time, which is "
            f"slower: {why}"
        )
    return cutouts, (
        f"augment.copy_paste: the pixels of objects are cached in {cache}/cutouts, up to "
        f"{needed / 1e9:.2f} GB"
    )


def _bounds(boxes: NDArray[np.float64], scales: NDArray[np.float64], limits: Ints) -> Ints:
    """R 4: whole pixels around `boxes` (R 4) times `scales` (x, y), inside 0..`limits` (x, y)."""
    low = np.floor(boxes[:, :2] * scales).astype(np.int64)
    high = np.ceil(boxes[:, 2:] * scales).astype(np.int64)
    low = low.clip(0, limits - 1)
    return np.concatenate([low, np.maximum(high.clip(0, limits), low + 1)], 1)


def _cut(pixels: NDArray[np.uint8], bounds: Ints) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = bounds.tolist()
    return pixels[y1:y2, x1:x2]
