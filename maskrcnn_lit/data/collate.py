"""Collates samples into batches with few distinct shapes: padded object slots, padded images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from maskrcnn_lit.data.batch import AREA_KEYS, SLOT_KEYS, Batch
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.stores.feature_maps import FeatureMaps

Sample = dict[str, Tensor]  # a batch's keys and shapes without B, unpadded

SLOTS = 8  # the minimum of G, which grows by doubling


def collate(
    samples: Sequence[Sample],
    shapes: Sequence[Shape] | None = None,
    slots: int = SLOTS,
    features: FeatureMaps | None = None,
) -> Batch:
    """Collate samples into one batch, zero-padded to one of few shapes.

    Objects get 8, 16, 32, 64, ... slots, and at least `slots`. Images get the smallest of `shapes`
    that is large enough for all; None: their largest height and width, rounded up to 32. features:
    the store of the maps that samples have in place of pixels; it has those of slots without an
    image.
    """
    height, width = (max(int(s["image_sizes"][d]) for s in samples) for d in (0, 1))
    if shapes is None:
        height, width = -(-height // 32) * 32, -(-width // 32) * 32
    else:
        height, width = min(
            (s for s in shapes if s[0] >= height and s[1] >= width), key=lambda s: s[0] * s[1]
        )
    most = max((len(s["boxes"]) for s in samples if "boxes" in s), default=0)
    slots = slot_count(most, slots)
    batch = _shown(samples, (height, width), features)
    if "void" in samples[0]:
        batch["void"] = _padded([s["void"] for s in samples], (height, width))
    for key in samples[0].keys() - batch.keys() - set(AREA_KEYS):
        columns, shape = [s[key] for s in samples], samples[0][key].shape
        batch[key] = _padded(columns, (slots, *shape[1:]) if key in SLOT_KEYS else shape)
    return batch


def _shown(samples: Sequence[Sample], shape: Shape, features: FeatureMaps | None) -> Batch:
    """The padded images or, in their place, stored maps; in the memory format for convolutions."""
    if features is None:
        pixels = [s["images"].permute(1, 2, 0) for s in samples]
        return {"images": _padded(pixels, (*shape, 3)).permute(0, 3, 1, 2)}
    batch: Batch = {"images": torch.empty(len(samples), 0, *shape, dtype=torch.uint8)}
    blank = features.blank(shape)
    for key, value in blank.items():
        columns = [s.get(key, value) for s in samples]
        if value.ndim == 1:
            batch[key] = _stacked(columns)
        else:
            batch[key] = _stacked([c.permute(1, 2, 0) for c in columns]).permute(0, 3, 1, 2)
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


def _stacked(columns: Sequence[Tensor]) -> Tensor:
    """The columns, of one shape, as one tensor."""
    stacked = _zeros([len(columns), *columns[0].shape], columns[0].dtype)
    return torch.stack(list(columns), out=stacked)


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
