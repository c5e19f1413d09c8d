"""Stores the maps c2..c5 of a frozen backbone, so that a run computes them once for each view of an
image, and later runs not at all.

A view is an image at its training size, as it is or mirrored. A map is stored in float32, in
bfloat16 (relative rounding of at most 2^-8), or in 8 bits (each channel of a map has its own scale:
rounding of at most 1/510 of the channel's range).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.buckets import Shape, bucket_groups, bucket_shapes
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.data.stores.memmap import MemmapStore
from maskrcnn_lit.errors import UserError

DTYPES = ("float32", "bfloat16", "uint8")
FOLDER = "features"  # in the folder of caches

_BYTES = {"float32": 4, "bfloat16": 2, "uint8": 1}
_WORD = 4  # bytes: every part of a piece begins at a multiple

Bytes = NDArray[np.uint8]


class Level(NamedTuple):
    """One map of an image."""

    key: str  # its name in a batch, c2..c5
    channels: int
    height: int
    width: int


def piece_bytes(levels: Sequence[Level], dtype: str) -> int:
    """The size of the piece of one view: all of its maps, and whether its file was readable."""
    return _WORD + sum(sum(_lengths(level, dtype)) for level in levels)


def encode(maps: Mapping[str, Tensor], readable: bool, dtype: str) -> Bytes:
    """The piece of one view. maps: key -> C h w float32, on the CPU."""
    parts = [np.array([readable, 0, 0, 0], np.uint8)]
    for value in maps.values():
        cells = value.float().permute(1, 2, 0).contiguous()  # h w C
        if dtype == "uint8":
            low, high = cells.amin((0, 1)), cells.amax((0, 1))
            step = (high - low) / 255
            scaled = (cells - low) / torch.where(step > 0, step, 1)
            parts += [_raw(torch.stack([low, step])), _raw(scaled.round_().clamp_(0, 255).byte())]
        else:
            parts.append(_raw(cells.to(getattr(torch, dtype)).view(torch.uint8)))
    return np.concatenate(parts)


def decode(piece: Bytes, levels: Sequence[Level], dtype: str) -> tuple[dict[str, Tensor], bool]:
    """The maps as a batch has them (data/batch.py), without B, and whether the file was
    readable.
    """
    content = torch.from_numpy(piece.copy())
    maps, at = {}, _WORD
    for level in levels:
        scales, cells = _lengths(level, dtype)
        if scales:
            values = content[at : at + scales].view(torch.float32).view(2, level.channels)
            maps[f"{level.key}_low"], maps[f"{level.key}_step"] = values
        first, count = at + scales, level.height * level.width * level.channels * _BYTES[dtype]
        values = content[first : first + count].view(getattr(torch, dtype))
        shaped = values.view(level.height, level.width, level.channels)
        maps[level.key] = shaped.permute(2, 0, 1)
        at += scales + cells
    return maps, bool(content[0])


class FeatureMaps:
    """The maps of the images of `index`, of each view, in one file of `folder`.

    Args:
        levels: the maps of each padded size of the full json (`padded_shapes`).
        dtype: of DTYPES.
        key: whatever the maps depend on beside the image files: weights, pixels' mean, ...
        blank: the maps of an image without pixels, of each padded size: for slots of a batch
            without an image.
    """

    def __init__(
        self,
        *,
        index: AnnotationIndex,
        image_size: ImageSize,
        levels: Mapping[Shape, Sequence[Level]],
        dtype: str,
        key: str,
        blank: Mapping[Shape, Mapping[str, Tensor]],
        folder: Path,
    ) -> None:
        self.index, self.levels, self.dtype = index, dict(levels), dtype
        self._blank = {
            shape: decode(encode(maps, False, dtype), self.levels[shape], dtype)[0]
            for shape, maps in blank.items()
        }
        self.shapes, self._of_row = padded_shapes(index, image_size)
        sizes = np.array([piece_bytes(self.levels[shape], dtype) for shape in self.shapes])
        self.bytes = sizes[self._of_row]  # of a view of each image of the json
        ends = np.cumsum(np.repeat(self.bytes, 2))  # as it is, mirrored
        self.file = folder / f"{index.pixels_key}-{key}.raw"
        self._stored = MemmapStore(self.file, np.stack([np.r_[0, ends[:-1]], ends], 1))

    def get(self, i: int, mirrored: bool) -> tuple[dict[str, Tensor], bool] | None:
        """The maps of a view of image i as a batch has them, without B, and whether its file was
        readable; None if they are not stored, or the file has changed.
        """
        row = int(self.index.rows[i])
        piece = self._stored.get(2 * row + mirrored, self._stamp(i))
        return None if piece is None else decode(piece, self.levels[self.shape(i)], self.dtype)

    def read(self, i: int, mirrored: bool) -> tuple[dict[str, Tensor], bool]:
        """As `get`. Raises: UserError: they are not stored."""
        stored = self.get(i, mirrored)
        if stored is None:
            raise LostFeaturesError(
                f"the features of {self.index.where(i)} are no longer in {self.file}: the image or "
                "the cache has changed since the run began; continue it with resume=RUN, which "
                "computes them again"
            )
        return stored

    def put(self, i: int, mirrored: bool, maps: Mapping[str, Tensor], readable: bool) -> None:
        """Store the maps of a view of image i, C h w each."""
        row = int(self.index.rows[i])
        self._stored.put(2 * row + mirrored, encode(maps, readable, self.dtype), self._stamp(i))

    def missing(self, mirrored: bool) -> list[int]:
        """The positions of the images of which this view is not stored. It reads all that is."""
        return [i for i in range(len(self.index)) if self.get(i, mirrored) is None]

    def needed(self, views: int) -> int:
        """The bytes of `views` views of all images of `index`."""
        return views * int(self.bytes[self.index.rows].sum())

    def shape(self, i: int) -> Shape:
        """The padded size of image i."""
        return self.shapes[int(self._of_row[self.index.rows[i]])]

    def blank(self, shape: Shape) -> dict[str, Tensor]:
        """The maps of a slot without an image, in a batch of this padded size."""
        return self._blank[shape]

    def _stamp(self, i: int) -> bytes:
        return repr(self.index.source.stamp(self.index.file_name(i))).encode()


class LostFeaturesError(UserError):
    """Stored maps that are gone. torch rebuilds a loader process's exception with the full
    traceback in its message: only the last sentence is for the user.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit("LostFeaturesError: ", 1)[-1].strip())


def padded_shapes(
    index: AnnotationIndex, image_size: ImageSize
) -> tuple[list[Shape], NDArray[np.int64]]:
    """The padded sizes of the full json of `index`, one for each orientation, and which of them
    each of its images has.
    """
    arrays = index.packed.arrays
    sizes = fitted_sizes(np.stack([arrays.heights, arrays.widths], 1), image_size)
    chains = bucket_shapes(sizes, image_size, 1)
    of_row = np.zeros(len(sizes), np.int64)
    for number, groups in enumerate(bucket_groups(sizes, chains)):
        of_row[np.concatenate(groups)] = number
    return [shape for chain in chains for shape in chain], of_row


def _lengths(level: Level, dtype: str) -> tuple[int, int]:
    """The bytes of a map's scales and of its cells, with padding to whole words."""
    scales = 2 * 4 * level.channels if dtype == "uint8" else 0
    cells = _BYTES[dtype] * level.channels * level.height * level.width
    return scales, math.ceil(cells / _WORD) * _WORD


def _raw(values: Tensor) -> Bytes:
    """The bytes of a tensor, padded with zeros to whole words."""
    content = values.contiguous().view(torch.uint8).numpy().ravel()
    return np.pad(content, (0, -len(content) % _WORD))
