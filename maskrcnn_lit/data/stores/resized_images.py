"""Images as they are once resized, kept as raw pixels: for small training sizes, where decoding
takes most of the time.

They are as large as training ever shows them, so a view of a kept image only shrinks or mirrors it.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.stores.memmap import MemmapStore
from maskrcnn_lit.data.transforms import Augment, ImageSize, fitted_sizes
from maskrcnn_lit.errors import UserError

SMALL = (
    512  # px of the longest side: beyond it a kept image takes more of the disk than it saves time
)


class ResizedImages:
    """The whole images of `index` at `image_size`, H W 3 uint8, kept in `cache`/images."""

    def __init__(self, index: AnnotationIndex, image_size: ImageSize, cache: Path) -> None:
        self.index = index
        arrays = index.packed.arrays
        self.sizes = fitted_sizes(
            np.stack([arrays.heights, arrays.widths], 1), image_size
        )  # of the whole json
        ends = np.cumsum(3 * self.sizes.prod(1))
        name = "x".join(map(str, image_size)) if isinstance(image_size, tuple) else str(image_size)
        source = hashlib.sha256(index.source.where.encode()).hexdigest()[:16]
        file = cache / "images" / f"{index.packed.key}-{source}-{name}.raw"
        self._stored = MemmapStore(file, np.stack([np.r_[0, ends[:-1]], ends], 1))

    def get(self, i: int) -> NDArray[np.uint8] | None:
        """Image i, if it is kept and its file has not changed since."""
        row = int(self.index.rows[i])
        piece = self._stored.get(row, self._stamp(i))
        return (
            None if piece is None else piece.reshape(*self.sizes[row], 3).copy()
        )  # torch wants to write

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
    """What `data.image_cache` (auto, on or off) makes of it, and what to tell.

    Raises:
        UserError: another mode, or "on" where the views of an image are no smaller copies of one.
    """
    if mode not in ("auto", "on", "off"):
        raise UserError(f"data.image_cache={mode} is unknown: use auto, on or off")
    zooms = augment is not None and (augment.crop < 1 or augment.scale[1] > 1)
    if mode == "on" and zooms:
        raise UserError(
            "data.image_cache=on keeps images at their training size, and augment.crop below 1 or augment.scale above "
            "1 would enlarge them: use data.image_cache=off, or augment.crop=1 and augment.scale=[0.8,1.0]"
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
            f"data.image_cache=auto: off, {needed / 1e9:.1f} GB of resized images and room for {room / 1e9:.1f}",
        )
    return (
        resized,
        f"data.image_cache={mode}: resized images are cached in {cache}/images, {needed / 1e9:.2f} GB in the end",
    )


def _longest(image_size: ImageSize) -> int:
    return image_size if isinstance(image_size, int) else image_size[1]
