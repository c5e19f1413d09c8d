"""Collates samples into batches with few distinct shapes: padded object slots, padded images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from maskrcnn_lit.data.batch import AREA_KEYS, SLOT_KEYS, Batch
from maskrcnn_lit.data.buckets import Shape

Sample = dict[str, Tensor]  # a batch's keys and shapes without B, unpadded

SLOTS = 8  # the minimum of G, which grows by doubling


def collate(
    samples: Sequence[Sample], shapes: Sequence[Shape] | None = None, slots: int = SLOTS
) -> Batch:
    """Collate samples into one batch, zero-padded to one of few shapes.

    Objects get 8, 16, 32, 64, ... slots, and at least `slots`. Images get the smallest of `shapes`
    that is large enough for all; None: their largest height and width, rounded up to 32.
    """
    height, width = (max(s["images"].shape[d] for s in samples) for d in (1, 2))
    if shapes is None:
        height, width = -(-height // 32) * 32, -(-width // 32) * 32
    else:
        height, width = min(
            (s for s in shapes if s[0] >= height and s[1] >= width), key=lambda s: s[0] * s[1]
        )
    most = max((len(s["boxes"]) for s in samples if "boxes" in s), default=0)
    slots = slot_count(most, slots)
    images = _padded(
        [s["images"].permute(1, 2, 0) for s in samples], (height, width, 3)
    )  # the memory format for convolutions
    batch: Batch = {"images": images.permute(0, 3, 1, 2)}
    if "void" in samples[0]:
        batch["void"] = _padded([s["void"] for s in samples], (height, width))
    for key in samples[0].keys() - set(AREA_KEYS):
        columns, shape = [s[key] for s in samples], samples[0][key].shape
        batch[key] = _padded(columns, (slots, *shape[1:]) if key in SLOT_KEYS else shape)
    return batch


def slot_count(objects: int, slots: int = SLOTS) -> int:
    """The number of slots for this many objects, see `collate`."""
    return 1 << (max(objects, slots, SLOTS) - 1).bit_length()


def _padded(columns: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Stack `columns` into one tensor, each in the top left corner of `shape`. NumPy copies in a
    third of torch's time.
    """
    padded = _zeros([len(columns), *shape], columns[0].dtype)
    filled = padded.numpy()
    for i, column in enumerate(columns):
        corner: tuple[Any, ...] = (i, *map(slice, column.shape))
        filled[corner] = column.numpy()
    return padded


def _zeros(shape: list[int], dtype: torch.dtype) -> Tensor:
    """A zero tensor; in a loader process, in memory shared with the training process, as in torch's
    own collate: this saves one copy of the batch.
    """
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(
        int(np.prod(shape)) * dtype.itemsize
    )  # new pages are zero
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
