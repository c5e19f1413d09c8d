"""The contract between the loader, the model and the losses: keys, shapes, dtypes and ranges of a
batch.

Letters: B images, G padded instances, M mask crop side, H W the padded image, K classes.

images          B 3 H W uint8   RGB, zero padded at right and bottom; normalized on the device.
                                B 0 H W with c2..c5: the padded size alone
image_sizes     B 2 int64       height, width of the valid part
scales          B 2 float32     resized / original, for y and x: `box / scale` is in file pixels
original_sizes  B 2 int64       height, width of the image in the json
image_ids       B int64         as in the json; BLANK_ID for a slot that only fills the batch
readable        B bool          False for a file that could not be decoded (data.on_bad=skip) and
                                for a blank slot: a black image under one crowd region, which
                                losses and metrics ignore
boxes           B G 4 float32   x1 y1 x2 y2 in pixels of `images`; 0 <= x1 < x2 <= width; padding: 0
labels          B G int64       1..K contiguous; padding: 0
valid           B G bool        the slot has an object
crowd           B G bool        the slot has a crowd region: never positive, no negatives inside
masks           B G M M uint8   0 or 1: the mask cropped to its mask box, resampled to M x M
mask_boxes      B G 4 float32   the area of the crop: the box, or the uncut box of a cropped image
masked          B G bool        optional, of data with boxes without masks: whether the object of
                                the slot has a mask; if not, `masks` fills the box and has no loss
void            B H W uint8     optional, of data with void regions: 1 in void pixels, which have no
                                mask loss
c2..c5          B C h w         optional, of data.feature_cache: the maps of a frozen backbone, in
                                float32, bfloat16 or uint8; one alone of a plain transformer
c2_low, c2_step B C float32     for maps in uint8: a value is low + step * its byte; also of c3..c5
seeds           B int64         optional: decides which anchors and regions of the image are
                                sampled; here a function of (seed of the run, epoch, position of
                                the file by name). Without it, torch's generator draws one

A slot is valid, crowd or padding, never two of them. All shapes are static: objects are padded to
one of a few numbers of slots, so the training step needs no synchronization of host and device.
"""

import torch
from torch import Tensor

Batch = dict[str, Tensor]

BLANK_ID = -(2**63)  # the image id of a slot that only fills the batch; no json can have it

IMAGE_KEYS = ("images", "image_sizes", "scales", "original_sizes", "image_ids", "readable")

TARGET_KEYS = ("boxes", "labels", "valid", "crowd", "masks", "mask_boxes")

SLOT_KEYS = (*TARGET_KEYS, "masked")  # padded to G slots

AREA_KEYS = ("images", "void")  # padded to H W

MAP_KEYS = ("c2", "c3", "c4", "c5")

_LAYOUT: dict[str, tuple[str, torch.dtype]] = {
    "images": ("B3HW", torch.uint8),
    "image_sizes": ("B2", torch.int64),
    "scales": ("B2", torch.float32),
    "original_sizes": ("B2", torch.int64),
    "image_ids": ("B", torch.int64),
    "readable": ("B", torch.bool),
    "boxes": ("BG4", torch.float32),
    "labels": ("BG", torch.int64),
    "valid": ("BG", torch.bool),
    "crowd": ("BG", torch.bool),
    "masks": ("BGMM", torch.uint8),
    "mask_boxes": ("BG4", torch.float32),
    "masked": ("BG", torch.bool),
    "void": ("BHW", torch.uint8),
    "seeds": ("B", torch.int64),
}

_OPTIONAL = ("masked", "void", "seeds")


def map_key(stride: int) -> str:
    """The key of the map at this stride, 4, 8, 16 or 32."""
    return MAP_KEYS[stride.bit_length() - 3]


def stored_maps(batch: Batch) -> list[Tensor] | None:
    """The maps c2..c5 that a batch has in place of pixels, B C h w float32; None if it has
    pixels.
    """
    maps = []
    for key in MAP_KEYS:
        if key in batch:
            values = batch[key].float()
            if f"{key}_step" in batch:
                low, step = (batch[f"{key}_{part}"][..., None, None] for part in ("low", "step"))
                values = low + step * values
            maps.append(values)
    return maps or None


def check_batch(batch: Batch, num_classes: int) -> None:
    """Raise ValueError, naming key, value and expectation, if `batch` breaks the contract. For
    tests and debugging: it reads values, so it synchronizes with the device.
    """
    sizes: dict[str, int] = {}
    for key, (letters, dtype) in _LAYOUT.items():
        if key in _OPTIONAL and key not in batch:
            continue
        if key not in batch:
            raise ValueError(f"batch has no '{key}'; it needs {', '.join(_LAYOUT)}")
        if key == "images" and stored_maps(batch):
            letters = "B0HW"
        _check_layout(key, batch[key], letters, dtype, sizes)
    boxes, labels, filled = batch["boxes"], batch["labels"], batch["valid"] | batch["crowd"]
    if (batch["valid"] & batch["crowd"]).any():
        raise ValueError("a slot is valid and crowd at once; crowd regions are not objects")
    limit = batch["image_sizes"].flip(-1).repeat(1, 2)[:, None]  # B 2 (h, w) -> B 1 4 (w, h, w, h)
    inside = (
        (boxes >= 0).all(-1) & (boxes <= limit).all(-1) & (boxes[..., :2] < boxes[..., 2:]).all(-1)
    )
    if not (inside | ~filled).all():
        b, g = (~(inside | ~filled)).nonzero()[0].tolist()
        raise ValueError(
            f"box {boxes[b, g].tolist()} of image {int(batch['image_ids'][b])} must have 0 <= x1 < "
            "x2 <= width "
            f"and 0 <= y1 < y2 <= height of its size {batch['image_sizes'][b].tolist()}"
        )
    if (
        not ((labels >= 1) & (labels <= num_classes) | ~filled).all()
        or (labels[~filled] != 0).any()
    ):
        raise ValueError(
            f"labels must be 1..{num_classes} in filled slots and 0 in padding, got "
            f"{labels.tolist()}"
        )


def _check_layout(
    key: str, value: Tensor, letters: str, dtype: torch.dtype, sizes: dict[str, int]
) -> None:
    if value.dtype != dtype or value.ndim != len(letters):
        raise ValueError(
            f"batch['{key}'] is {value.dtype} {tuple(value.shape)}; expected {dtype} {letters}"
        )
    for letter, size in zip(letters, value.shape, strict=True):
        expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
        if size != expected:
            raise ValueError(
                f"batch['{key}'] is {tuple(value.shape)}; expected {letters} with {letter} = "
                f"{expected}"
            )
