"""One Dataset over any index, and what makes batches of its samples. Keys and shapes: batch.py.

Letters: B images, G padded instances, N instances of one image, M mask crop side.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.image import UnreadableImageError, decode
from maskrcnn_lit.data.index import AnnotationIndex, OnBad
from maskrcnn_lit.data.rasterise import mask_crops, visible_boxes
from maskrcnn_lit.data.transforms import (
    Augment,
    ImageSize,
    View,
    change_colours,
    draw_view,
    map_boxes,
    resample,
)
from maskrcnn_lit.errors import UserError

Sample = dict[str, Tensor]  # a batch's keys and shapes without B, unpadded
_SLOTS = (8, 16, 32)  # G; beyond it doubles
_log = logging.getLogger(__name__)


class BadImageError(UserError):
    """An image file that cannot be decoded. torch rebuilds what a loader process raised from a report with its whole
    traceback: only the sentence at its end is for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit("BadImageError: ", 1)[-1].strip())


class CocoDataset(Dataset[Sample]):
    """Samples of an index. A key is (epoch, position) and gives the same sample in whatever process and order.

    `augment` None: the whole image, resized (validation). An image that cannot be decoded is a UserError, or with
    `on_bad="skip"` a black one under a crowd region, with `readable` False (the loader has to fill its slot: batches
    of another size would be other training).
    """

    def __init__(
        self,
        *,
        index: AnnotationIndex,
        image_size: ImageSize,
        augment: Augment | None = None,
        mask_size: int = 112,
        on_bad: OnBad = "error",
        seed: int = 0,
    ) -> None:
        self.index, self.image_size, self.augment = index, image_size, augment
        self.mask_size, self.on_bad, self.seed = mask_size, on_bad, seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, i = key
        rng = np.random.default_rng((self.seed, epoch, i))
        view = draw_view(*self.index.size(i), self.image_size, self.augment, rng)
        image = self._image(i, view)
        readable = image is not None
        if image is None:
            image = torch.zeros(3, *view.size, dtype=torch.uint8)
        elif self.augment is not None:
            image = change_colours(image, self.augment, rng)
        sample = _describe(image, self.index.size(i), int(self.index.image_ids[i]), view, readable)
        return sample | (self._targets(i, view) if readable else _hidden(view.size, self.mask_size))

    def _image(self, i: int, view: View) -> Tensor | None:
        path, size = self.index.path(i), self.index.size(i)
        whole = (size[0] * view.size[0] / view.window[2], size[1] * view.size[1] / view.window[3])
        try:
            pixels, factor = decode(path.read_bytes(), size, whole)
        except (OSError, UnreadableImageError) as error:
            if self.on_bad == "error":
                raise BadImageError(
                    f"{path} cannot be decoded ({error}): mend or remove the file, or go on without its pixels with "
                    "data.on_bad=skip"
                ) from error
            _log.warning("%s cannot be decoded (%s): it counts for nothing (data.on_bad=skip)", path, error)
            return None
        return resample(pixels, factor, view)

    def _targets(self, i: int, view: View) -> Sample:
        """Boxes, labels and mask crops. A crop covers the uncut box, so it shows what it would without the window; the
        box is cut to the window and shrunk to the mask inside. What is under 1 pixel or without mask is dropped."""
        annotations = self.index.annotations(i)
        height, width = view.size
        uncut = map_boxes(annotations["boxes"], view.matrix)
        cut = uncut.clip(0, [width, height, width, height])
        keep = np.flatnonzero((cut[:, 2:] - cut[:, :2] >= 1).all(1))
        outlines = [self.index.outline(i, int(j)) for j in keep]
        crops = mask_crops(outlines, uncut[keep], view.matrix, self.index.size(i), self.mask_size)
        boxes = visible_boxes(crops, uncut[keep], cut[keep])
        seen = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1).all(1) & crops.any((1, 2)))
        crowd = annotations["crowd"][keep][seen]
        return {
            "boxes": torch.from_numpy(boxes[seen].astype(np.float32)),
            "labels": torch.from_numpy(annotations["labels"][keep][seen].astype(np.int64)),
            "valid": torch.from_numpy(~crowd),
            "crowd": torch.from_numpy(crowd),
            "masks": torch.from_numpy(crops[seen]),
            "mask_boxes": torch.from_numpy(uncut[keep][seen].astype(np.float32)),
        }


def _describe(image: Tensor, original: tuple[int, int], image_id: int, view: View, readable: bool = True) -> Sample:
    return {
        "images": image,
        "image_sizes": torch.tensor(view.size),
        "scales": torch.tensor([view.size[0] / view.window[2], view.size[1] / view.window[3]], dtype=torch.float32),
        "original_sizes": torch.tensor(original),
        "image_ids": torch.tensor(image_id),
        "readable": torch.tensor(readable),
    }


def _hidden(size: tuple[int, int], side: int) -> Sample:
    """A crowd region over the whole image: anchors and regions inside are neither positives nor negatives."""
    box = torch.tensor([[0, 0, size[1], size[0]]], dtype=torch.float32)
    return {
        "boxes": box,
        "labels": torch.ones(1, dtype=torch.int64),  # any class: no loss reads it
        "valid": torch.zeros(1, dtype=torch.bool),
        "crowd": torch.ones(1, dtype=torch.bool),
        "masks": torch.ones(1, side, side, dtype=torch.uint8),
        "mask_boxes": box,
    }


def collate(samples: Sequence[Sample], image_size: ImageSize) -> Batch:
    """Samples as one batch, padded with zeros: images to the square, or to the largest height and width in the batch
    rounded up to 32; objects to 8, 16, 32, 64, ... slots. So there are few shapes."""
    batch: Batch = {}
    if isinstance(image_size, int):
        height = width = image_size
    else:
        height, width = (-(-max(s["images"].shape[d] for s in samples) // 32) * 32 for d in (1, 2))
    most = max((len(s["boxes"]) for s in samples if "boxes" in s), default=0)
    slots = next((n for n in _SLOTS if n >= most), 1 << (most - 1).bit_length() if most else _SLOTS[0])
    for key, first in samples[0].items():
        shape = list(first.shape)
        if key == "images":
            shape = [3, height, width]
        elif key in ("boxes", "labels", "valid", "crowd", "masks", "mask_boxes"):
            shape[0] = slots
        batch[key] = torch.zeros([len(samples), *shape], dtype=first.dtype)
        for row, sample in zip(batch[key], (s[key] for s in samples), strict=True):
            row[tuple(slice(n) for n in sample.shape)] = sample
    return batch


def image_batch(images: Sequence[NDArray[np.uint8]], image_ids: Sequence[int], image_size: ImageSize) -> Batch:
    """A batch without targets of RGB images (H W 3) of any size, resized as validation images are: for prediction."""
    samples = []
    for image, image_id in zip(images, image_ids, strict=True):
        size = (image.shape[0], image.shape[1])
        view = draw_view(*size, image_size, None, np.random.default_rng(0))
        samples.append(_describe(resample(np.array(image), 1, view), size, image_id, view))
    return collate(samples, image_size)
