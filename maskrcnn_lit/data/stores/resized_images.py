"""Caches resized images as raw pixels, for small training sizes, where decoding dominates the time.

They have the largest size that training uses, so training only shrinks or mirrors them.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.data.stores.memmap import MemmapStore
from maskrcnn_lit.data.transforms import Augment
from maskrcnn_lit.errors import UserError

SMALL = 512  # px of the longest side: larger images cost more disk space than they save time


class ResizedImages:
    """The full images of `index` at `image_size`, H W 3 uint8, stored in `cache`/images."""

    def __init__(self, index: AnnotationIndex, image_size: ImageSize, cache: Path) -> None:
        self.index = index
        arrays = index.packed.arrays
        self.sizes = fitted_sizes(
            np.stack([arrays.heights, arrays.widths], 1), image_size
        )  # of the full json
        ends = np.cumsum(3 * self.sizes.prod(1))
        name = "x".join(map(str, image_size)) if isinstance(image_size, tuple) else str(image_size)
        file = cache / "images" / f"{index.pixels_key}-{name}.raw"
        self._stored = MemmapStore(file, np.stack([np.r_[0, ends[:-1]], ends], 1))

    def get(self, i: int) -> NDArray[np.uint8] | None:
        """Image i, or None if it is not stored or its file has changed."""
        row = int(self.index.rows[i])
        piece = self._stored.get(row, self._stamp(i))
        return (
            None if piece is None else piece.reshape(*self.sizes[row], 3).copy()
        )  # torch needs a writable array

    def put(self, i: int, pixels: NDArray[np.uint8]) -> None:
        self._stored.put(int(self.index.rows[i]), pixels, self._stamp(i))

    def _stamp(self, i: int) -> bytes:
        return repr(self.index.source.stamp(self.index.file_name(i))).encode()


def choose_resized(
    mode: str,
    index: AnnotationIndex,
    image_size: ImageSize,
    augment: Augment | None,
    cache: Path,
    cache_gb: float,
) -> tuple[ResizedImages | None, str]:
    """The store for `data.image_cache` (auto, on or off), or None, and lines for the log.

    Raises:
        UserError: an unknown mode, or "on" with an augmentation that enlarges images.
    """
    if mode not in ("auto", "on", "off"):
        raise UserError(f"data.image_cache={mode} is unknown: use auto, on or off")
    zooms = augment is not None and (augment.crop < 1 or augment.scale[1] > 1)
    if mode == "on" and zooms:
        raise UserError(
            "data.image_cache=on stores images at their training size, but augment.crop below 1 or "
            "augment.scale above 1 would enlarge them: use data.image_cache=off, or augment.crop=1 "
            "and augment.scale=[0.8,1.0]"
        )
    if mode == "off" or zooms or (mode == "auto" and _longest(image_size) > SMALL):
        return None, ""
    resized = ResizedImages(index, image_size, cache)
    needed = 3 * int(resized.sizes[index.rows].prod(1).sum())
    cache.mkdir(parents=True, exist_ok=True)
    room = min(cache_gb * 1e9, 0.8 * shutil.disk_usage(cache).free)
    if mode == "auto" and needed > room:
        return (
            None,
            f"data.image_cache=auto: off, since resized images need {needed / 1e9:.1f} GB and "
            f"{room / 1e9:.1f} GB may be used",
        )
    return (
        resized,
        f"data.image_cache={mode}: resized images are cached in {cache}/images, up to "
        f"{needed / 1e9:.2f} GB",
    )


def _longest(image_size: ImageSize) -> int:
    return image_size if isinstance(image_size, int) else image_size[1]
