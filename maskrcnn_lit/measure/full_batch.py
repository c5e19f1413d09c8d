"""Batches that need as much memory as any of a data set: every image fills its padded size, and
every object slot has an object. Letters: as in data/batch.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.collate import slot_count
from maskrcnn_lit.data.datamodule import CocoDataModule

SMALLEST = 16.0  # pixels: the side of an object


class Fullest(NamedTuple):
    """The largest batches of one part of the data.

    Attributes:
        shapes: the padded sizes, the largest first.
        slots: G, of the image with the most objects.
        mask_size: M.
        classes: K.
        image_ids: of images of the part, for the callbacks that look them up.
        original_size: height, width of its largest image file.
        void: whether the batches have void regions.
        masked: whether they have boxes without a mask.
    """

    shapes: tuple[Shape, ...]
    slots: int
    mask_size: int
    classes: int
    image_ids: tuple[int, ...]
    original_size: Shape
    void: bool
    masked: bool


def fullest(data: CocoDataModule, index: AnnotationIndex) -> Fullest:
    """The largest batches of `index`, the training or the validation part of `data`."""
    shapes = [shape for chain in data.padded_shapes(index) for shape in chain]
    counts = index.spans[:, 1] - index.spans[:, 0]
    height, width = index.sizes[index.sizes.prod(1).argmax()].tolist()
    return Fullest(
        shapes=tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape), reverse=True)),
        slots=slot_count(int(counts.max(initial=0)), data.slots),
        mask_size=data.mask_size,
        classes=len(data.categories),
        image_ids=tuple(index.image_ids.tolist()),
        original_size=(height, width),
        void=index.has_void,
        masked=bool(len(index.without_mask)),
    )


def full_batch(of: Fullest, shape: Shape, count: int, seed: int = 0) -> Batch:
    """A batch of `count` images of `shape` with random pixels, and random boxes in all slots. Their
    masks fill the boxes.
    """
    random = torch.Generator().manual_seed(seed)
    height, width = shape
    slots = (count, of.slots)
    boxes = _boxes(slots, shape, random)
    pixels = torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=random)
    scale = torch.tensor(shape) / torch.tensor(of.original_size)
    batch = {
        "images": pixels.permute(0, 3, 1, 2),
        "image_sizes": torch.tensor(shape).repeat(count, 1),
        "scales": scale.float().repeat(count, 1),
        "original_sizes": torch.tensor(of.original_size).repeat(count, 1),
        "image_ids": torch.tensor(_repeated(of.image_ids, count)),
        "readable": torch.ones(count, dtype=torch.bool),
        "boxes": boxes,
        "labels": torch.randint(1, of.classes + 1, slots, generator=random),
        "valid": torch.ones(slots, dtype=torch.bool),
        "crowd": torch.zeros(slots, dtype=torch.bool),
        "masks": torch.ones(*slots, of.mask_size, of.mask_size, dtype=torch.uint8),
        "mask_boxes": boxes.clone(),
        "seeds": torch.randint(2**63 - 1, (count,), generator=random),
    }
    if of.void:
        batch["void"] = torch.zeros(count, height, width, dtype=torch.uint8)
    if of.masked:
        batch["masked"] = torch.ones(slots, dtype=torch.bool)
    return batch


def _boxes(slots: tuple[int, int], shape: Shape, random: torch.Generator) -> Tensor:
    """B G 4 float32: sides from SMALLEST pixels to those of the image."""
    sides = torch.tensor(shape[::-1], dtype=torch.float32)  # width, height
    lengths = SMALLEST + torch.rand(*slots, 2, generator=random) * (sides - SMALLEST)
    corners = torch.rand(*slots, 2, generator=random) * (sides - lengths)
    return torch.cat([corners, torch.minimum(corners + lengths, sides)], dim=-1)


def _repeated(ids: Sequence[int], count: int) -> list[int]:
    return [ids[i % len(ids)] for i in range(count)]
