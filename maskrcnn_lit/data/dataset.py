"""The Dataset over an index, and batches for prediction. Keys and shapes: batch.py.

Letters: B images, G padded instances, N instances of one image, M mask crop side.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_lit.data.batch import BLANK_ID, Batch
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.coco.index import AnnotationIndex, OnInvalid
from maskrcnn_lit.data.coco.rasterize import sample_runs, visible_boxes
from maskrcnn_lit.data.collate import SLOTS, Sample, collate, slot_count
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.paste import Objects, Piece, paste, resized_piece, sample_source
from maskrcnn_lit.data.samplers import BLANK, Key
from maskrcnn_lit.data.stores.cutouts import Cutouts
from maskrcnn_lit.data.stores.feature_maps import FeatureMaps
from maskrcnn_lit.data.stores.mask_crops import MaskCrops
from maskrcnn_lit.data.stores.resized_images import ResizedImages
from maskrcnn_lit.data.transforms import (
    Augment,
    SampledTransform,
    color_jitter,
    full_view,
    map_boxes,
    resample,
    sample_transform,
)
from maskrcnn_lit.data.warp import draw_transforms, warp_bitmap, warp_crops
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import default_cache
from maskrcnn_lit.storage.images import UnreadableImageError

BLANK_SIDE = 32  # pixels of the black image of BLANK

_log = logging.getLogger(__name__)


class BadImageError(UserError):
    """An image file that cannot be decoded. torch rebuilds a loader process's exception with the
    full traceback in its message: only the last sentence is for the user.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit("BadImageError: ", 1)[-1].strip())


class CocoDataset(Dataset[Sample]):
    """Samples of an index. A key (epoch, position) gives the same sample in every process and
    order.

    Args: augment: None: the full image, resized (validation). on_bad: "error": an image that cannot
    be decoded is a UserError; "skip": it becomes a black image under a crowd region, with
    `readable` False (its slot must be filled, since another batch size would change training).
    resized: the store of resized images, if used. cache: folder for mask crops; None: the user's
    cache. cutouts: the pixels of objects, for `augment.copy_paste`; None: read from the files.
    slots: see `collate`; copy-paste never makes a batch need more than the data do without it.
    features: the maps of a frozen backbone, which samples have in place of pixels; the augmentation
    may mirror images, and nothing else.

    The position BLANK gives such a black image, to fill a batch.
    """

    def __init__(
        self,
        *,
        index: AnnotationIndex,
        image_size: ImageSize,
        augment: Augment | None = None,
        mask_size: int = 112,
        on_bad: OnInvalid = "error",
        seed: int = 0,
        resized: ResizedImages | None = None,
        cache: Path | None = None,
        cutouts: Cutouts | None = None,
        slots: int = SLOTS,
        features: FeatureMaps | None = None,
    ) -> None:
        self.index, self.image_size, self.augment = index, image_size, augment
        self.features = features
        self.mask_size, self.on_bad, self.seed, self.resized = mask_size, on_bad, seed, resized
        self._crops = MaskCrops(index, mask_size, cache or default_cache())
        self._some_without_mask = bool(len(index.without_mask))
        self._has_void = index.has_void
        self._cutouts, self._sources, self._slots = cutouts, np.zeros(0, np.int64), 0
        if augment is not None and augment.copy_paste.p > 0:
            self._cutouts = cutouts or Cutouts(index, image_size, None)
            self._sources = self._cutouts.images()
            counts = index.spans[:, 1] - index.spans[:, 0]
            self._slots = slot_count(int(counts.max(initial=0)), slots)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Key) -> Sample:
        epoch, i = key
        if i == BLANK:
            return self._blank()
        rng = np.random.default_rng((self.seed, epoch, i))
        view = sample_transform(*self.index.size(i), self.image_size, self.augment, rng)
        if self.features is None:
            shown, targets = self._pixels(key, view, rng)
        else:
            shown, readable = self.features.read(i, view.flip)
            targets = self._unchanged(i, view) if readable else None
        readable = targets is not None
        sample = _describe(self.index.size(i), int(self.index.image_ids[i]), view, readable)
        sample["seeds"] = torch.from_numpy(np.array(rng.integers(2**63 - 1)))
        return sample | shown | (self._hidden(view.size) if targets is None else targets)

    def _pixels(
        self, key: Key, view: SampledTransform, rng: np.random.Generator
    ) -> tuple[Sample, Sample | None]:
        """The image and its targets; without targets, a black image for one that cannot be
        decoded.
        """
        image = self._image(key[1], view)
        if image is None:
            return {"images": torch.zeros(3, *view.size, dtype=torch.uint8)}, None
        image, targets = self._augmented(key, image, view, rng)
        return {"images": image}, targets

    def _unchanged(self, i: int, view: SampledTransform) -> Sample:
        """The targets of an image that is only resized and mirrored."""
        targets = self._targets(self._objects(i, view), view.size, None)
        if self._has_void:
            targets["void"] = torch.from_numpy(self._void(i, view))
        return targets

    def at_size(self, image_ids: Sequence[int], image_size: ImageSize) -> Batch:
        """The images of these ids at another size, without targets, read again from their files."""
        samples = []
        for image_id in image_ids:
            if image_id == BLANK_ID:
                view = full_view(BLANK_SIDE, BLANK_SIDE, BLANK_SIDE)
                size, image = view.size, None
            else:
                i = int(np.flatnonzero(self.index.image_ids == image_id)[0])
                size = self.index.size(i)
                view = full_view(*size, image_size)
                image = self._decoded(i, view)
            if image is None:
                image = torch.zeros(3, *view.size, dtype=torch.uint8)
            samples.append(_describe(size, image_id, view) | {"images": image})
        return collate(samples, _square(image_size))

    def whole(self, image_id: int) -> NDArray[np.uint8] | None:
        """The pixels H W 3 of the image of this id, as in its file; None: it cannot be decoded."""
        i = int(np.flatnonzero(self.index.image_ids == image_id)[0])
        decoded = self._read(i)
        return None if decoded is None else decoded[0]

    def paste_source(self, key: Key) -> int | None:
        """The position of the image whose objects are pasted on the image of `key`; None: no
        objects are pasted.
        """
        if key[1] == BLANK or not len(self._sources):
            return None
        sampled = self._sampled_source(key)
        return None if sampled is None else sampled[0]

    def _sampled_source(self, key: Key) -> tuple[int, np.random.Generator] | None:
        p = 0.0 if self.augment is None else self.augment.copy_paste.p
        return sample_source(self.seed, key, self._sources, p)

    def _augmented(
        self, key: Key, image: Tensor, view: SampledTransform, rng: np.random.Generator
    ) -> tuple[Tensor, Sample]:
        """The image after all that follows the view, and its targets."""
        i, matrix = key[1], None
        objects = self._objects(i, view)
        void = self._void(i, view) if self._has_void else None
        if len(self._sources):
            image, objects = self._pasted(key, image, objects, void)
        if self.augment is not None:
            image = color_jitter(image, self.augment, rng)
            image, matrix = draw_transforms(image, self.augment.transforms, rng)
        targets = self._targets(objects, view.size, matrix)
        if void is not None:
            void = void if matrix is None else warp_bitmap(void, matrix)
            targets["void"] = torch.from_numpy(void)
        return image, targets

    def _pasted(
        self, key: Key, image: Tensor, objects: Objects, void: NDArray[np.uint8] | None
    ) -> tuple[Tensor, Objects]:
        """The image with objects of another one, and all objects; `image` and `void` may be changed
        in place.
        """
        sampled = self._sampled_source(key)
        room = self._slots - len(objects.labels)
        if sampled is None or self.augment is None or room < 1:
            return image, objects
        source, rng = sampled
        pieces = self._pieces(source, room, rng)
        if not pieces:
            return image, objects
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        objects = paste(pixels, objects, pieces, void, self.augment.copy_paste, rng)
        return torch.from_numpy(pixels).permute(2, 0, 1), objects

    def _pieces(self, j: int, room: int, rng: np.random.Generator) -> list[Piece]:
        """Random objects of image j, at most `room`, resized and mirrored as in a training view of
        that image.
        """
        if self.augment is None or self._cutouts is None:
            raise RuntimeError("copy-paste needs an augmentation and cutouts")
        view = sample_transform(*self.index.size(j), self.image_size, self.augment, rng)
        scale = np.abs(view.matrix[[0, 1], [0, 1]])  # x, y
        annotations, begin = self.index.annotations(j), self.index.span(j)[0]
        boxes = annotations["boxes"]
        large_enough = ((boxes[:, 2:] - boxes[:, :2]) * scale >= 1).all(1)
        usable = np.flatnonzero(large_enough & self._cutouts.usable[begin : begin + len(boxes)])
        if not len(usable):
            return []
        most = min(self.augment.copy_paste.objects, len(usable), room)
        chosen = rng.permutation(usable)[: rng.integers(1, most + 1)]
        pixels = self._cutouts.get(j, boxes, chosen, self._decoded)
        if pixels is None:
            return []
        crops, filled = self._crops.of(j, boxes, view.flip, chosen)
        bounds, own = self._cutouts.bounds(j, boxes[chosen]), self._cutouts.scale(j)
        pieces = []
        for n in np.flatnonzero(filled).tolist():
            box = (boxes[chosen[n]].reshape(2, 2) * own - bounds[n, :2]).ravel()
            label = int(annotations["labels"][chosen[n]])
            pieces.append(resized_piece(pixels[n], crops[n], box, label, scale / own, view.flip))
        return pieces

    def _image(self, i: int, view: SampledTransform) -> Tensor | None:
        if self.resized is None:
            return self._decoded(i, view)
        pixels = self.resized.get(i)
        if pixels is None:
            image = self._decoded(i, full_view(*self.index.size(i), self.image_size))
            if image is None:
                return None
            pixels = image.permute(1, 2, 0).numpy()
            self.resized.put(i, pixels)
        height, width, _ = pixels.shape
        return resample(pixels, 1, view._replace(window=(0, 0, height, width)))

    def _decoded(self, i: int, view: SampledTransform) -> Tensor | None:
        size = self.index.size(i)
        full_size = (
            size[0] * view.size[0] / view.window[2],
            size[1] * view.size[1] / view.window[3],
        )
        decoded = self._read(i, full_size)
        return None if decoded is None else resample(*decoded, view)

    def _read(
        self, i: int, at_least: tuple[float, float] | None = None
    ) -> tuple[NDArray[np.uint8], int] | None:
        """The pixels of image i and their factor, as `index.decode` gives them; None: it cannot be
        decoded, which is a warning.
        """
        try:
            return self.index.decode(i, at_least)
        except (OSError, UnreadableImageError) as error:
            where = self.index.where(i)
            if self.on_bad == "error":
                raise BadImageError(
                    f"{where} cannot be decoded ({error}): fix or remove the file, or continue "
                    "without its pixels with "
                    "data.on_bad=skip"
                ) from error
            _log.warning(
                "%s cannot be decoded (%s): it is ignored (data.on_bad=skip)", where, error
            )
            return None

    def _objects(self, i: int, view: SampledTransform) -> Objects:
        """The objects of image i that have a mask, in pixels of `view`. A crop covers the uncut
        box, so it does not depend on the window.
        """
        annotations = self.index.annotations(i)
        crops, filled = self._crops.of(i, annotations["boxes"], view.flip)
        every = np.ones(len(filled), bool)
        objects = Objects(
            crops=crops,
            boxes=map_boxes(annotations["boxes"], view.matrix),
            labels=annotations["labels"],
            crowd=annotations["crowd"],
            masked=self.index.masked(i) if self._some_without_mask else every,
            covered=~every,
        )
        return objects if filled.all() else objects.at(filled)

    def _targets(
        self, objects: Objects, size: tuple[int, int], matrix: NDArray[np.float64] | None
    ) -> Sample:
        """Boxes, labels and mask crops. The box is cut to the window and shrunk to the mask inside.
        Objects under 1 pixel are dropped. size: height, width. matrix: of `augment.transforms`,
        applied after the view.
        """
        crops, uncut, covered = objects.crops, objects.boxes, objects.covered
        height, width = size
        if matrix is not None:
            crops, uncut = warp_crops(crops, uncut, matrix, size)
        cut = uncut.clip(0, [width, height, width, height])
        boxes = visible_boxes(crops, uncut, cut, covered)
        seen = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
        crowd = objects.crowd[seen]
        targets = {
            "boxes": torch.from_numpy(boxes[seen].astype(np.float32)),
            "labels": torch.from_numpy(objects.labels[seen]),
            "valid": torch.from_numpy(~crowd),
            "crowd": torch.from_numpy(crowd),
            "masks": torch.from_numpy(crops[seen]),
            "mask_boxes": torch.from_numpy(uncut[seen].astype(np.float32)),
        }
        if self._some_without_mask:
            targets["masked"] = torch.from_numpy(objects.masked[seen])
        return targets

    def _void(self, i: int, view: SampledTransform) -> NDArray[np.uint8]:
        """H W of `view`: 1 where the file's pixel at a pixel's center is void."""
        runs = self.index.void(i)
        if not len(runs):
            return np.zeros(view.size, np.uint8)
        (top, left, *window), size = view.window, view.size
        y, x = (
            (start + (np.arange(side) + 0.5) * (extent / side)).astype(np.float64)
            for start, extent, side in zip((top, left), window, size, strict=True)
        )
        return sample_runs(runs, self.index.size(i), y, x[::-1] if view.flip else x)

    def _hidden(self, size: tuple[int, int]) -> Sample:
        """A crowd region over the full image: anchors and regions inside are neither positive nor
        negative.
        """
        box = torch.tensor([[0, 0, size[1], size[0]]], dtype=torch.float32)
        targets = {
            "boxes": box,
            "labels": torch.ones(1, dtype=torch.int64),  # any class: no loss uses it
            "valid": torch.zeros(1, dtype=torch.bool),
            "crowd": torch.ones(1, dtype=torch.bool),
            "masks": torch.ones(1, self.mask_size, self.mask_size, dtype=torch.uint8),
            "mask_boxes": box,
        }
        if self._some_without_mask:
            targets["masked"] = torch.ones(1, dtype=torch.bool)
        if self._has_void:
            targets["void"] = torch.zeros(size, dtype=torch.uint8)
        return targets

    def _blank(self) -> Sample:
        view = full_view(BLANK_SIDE, BLANK_SIDE, BLANK_SIDE)
        sample = _describe(view.size, BLANK_ID, view, readable=False)
        if self.features is None:  # else `collate` adds the maps, as it knows the padded size
            sample["images"] = torch.zeros(3, *view.size, dtype=torch.uint8)
        return sample | self._hidden(view.size) | {"seeds": torch.zeros((), dtype=torch.int64)}


def _describe(
    original: tuple[int, int],
    image_id: int,
    view: SampledTransform,
    readable: bool = True,
) -> Sample:
    scales = view.size[0] / view.window[2], view.size[1] / view.window[3]
    return {
        "image_sizes": torch.from_numpy(np.array(view.size)),  # three times as fast as torch.tensor
        "scales": torch.from_numpy(np.array(scales, np.float32)),
        "original_sizes": torch.from_numpy(np.array(original)),
        "image_ids": torch.from_numpy(np.array(image_id)),
        "readable": torch.from_numpy(np.array(readable)),
    }


def image_batch(
    images: Sequence[NDArray[np.uint8]], image_ids: Sequence[int], image_size: ImageSize
) -> Batch:
    """A batch for prediction: RGB images (H W 3) of any size, resized like validation images,
    without targets.
    """
    samples = []
    for image, image_id in zip(images, image_ids, strict=True):
        size = (image.shape[0], image.shape[1])
        view = full_view(*size, image_size)
        pixels = {"images": resample(np.array(image), 1, view)}
        samples.append(_describe(size, image_id, view) | pixels)
    return collate(samples, _square(image_size))


def _square(image_size: ImageSize) -> list[Shape] | None:
    """The one padded shape of squares; None: it depends on the images."""
    return None if isinstance(image_size, tuple) else [(image_size, image_size)]
