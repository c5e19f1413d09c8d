"""Caches the mask crops of a json, M x M bits each: a polygon is rasterized once for all epochs and
runs.

A crop covers its annotation's box in the file's pixels. Training resizes and mirrors but does not
rotate, so one crop serves every view, up to mirroring.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.rasterize import mask_crops
from maskrcnn_lit.data.stores.memmap import MemmapStore


class MaskCrops:
    """The crops of the images of `index`, stored in `cache`/masks (1.35 GB for train2017 at M =
    112).
    """

    def __init__(self, index: AnnotationIndex, side: int, cache: Path) -> None:
        self.index, self.side = index, side
        self._row = -(-side // 8)  # bytes per row of a crop
        spans = index.packed.arrays.spans * side * self._row
        self._stored = MemmapStore(cache / "masks" / f"{index.packed.key}-{side}.bits", spans)

    def of(
        self,
        i: int,
        boxes: NDArray[np.float64],
        mirrored: bool = False,
        chosen: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The masks of all R annotations of image i, R M M of 0 or 1, and whether each has a pixel
        (R). A box without a mask has a mask that fills it.

        Args:
            boxes: R 4, their boxes in the file's pixels, x1 y1 x2 y2.
            mirrored: flip left to right.
            chosen: R becomes these of the annotations; None: all.
        """
        row, side = int(self.index.rows[i]), self.side
        bits = self._stored.get(row)
        if bits is None:
            outlines = [self.index.outline(i, j) for j in range(len(boxes))]
            crops = mask_crops(outlines, boxes, self.index.size(i), side)
            crops[~self.index.masked(i)] = 1
            bits = np.packbits(crops, axis=2)
            self._stored.put(row, bits)
        bits = bits.reshape(len(boxes), side, self._row)
        if chosen is not None:
            bits = bits[chosen]
        if mirrored:  # reverse the bytes and the bits in each; padding bits come first
            crops = np.unpackbits(bits[:, :, ::-1], axis=2, bitorder="little")[:, :, -side:]
        else:
            crops = np.unpackbits(bits, axis=2, count=side)
        return crops, np.any(bits, axis=(1, 2))
