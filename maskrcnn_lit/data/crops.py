"""The mask crops of a whole json, M x M pixels each as bits: a polygon is rasterised once for all epochs and runs.

A crop covers its annotation's box in the file's own pixels. Views resize and mirror but do not turn, so that the crop
is the same in all of them, but for the mirror.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.index import AnnotationIndex
from maskrcnn_lit.data.rasterise import mask_crops
from maskrcnn_lit.data.stored import Stored


class MaskCrops:
    """The crops of the images of `index`, kept in `cache`/masks (1.35 GB for all of train2017 at M = 112)."""

    def __init__(self, index: AnnotationIndex, side: int, cache: Path) -> None:
        self.index, self.side = index, side
        self._bytes = -(-side * side // 8)
        spans = index.packed.arrays.spans
        self._stored = Stored(cache / "masks" / f"{index.packed.key}-{side}.bits", spans * self._bytes)

    def of(self, i: int, boxes: NDArray[np.float64]) -> NDArray[np.uint8]:
        """R M M masks, 0 or 1, of all R annotations of image i.

        Args:
            boxes: R 4, theirs in the pixels of the file, x1 y1 x2 y2.
        """
        row = int(self.index.rows[i])
        bits = self._stored.get(row)
        if bits is None:
            outlines = [self.index.outline(i, j) for j in range(len(boxes))]
            crops = mask_crops(outlines, boxes, self.index.size(i), self.side)
            bits = np.packbits(crops.reshape(len(boxes), -1), axis=1)
            self._stored.put(row, bits)
        flat = np.unpackbits(bits.reshape(len(boxes), self._bytes), axis=1, count=self.side * self.side)
        return flat.reshape(len(boxes), self.side, self.side)
