"""LightningDataModule over two COCO jsons: coco_data.py reads and checks them, and this loads
batches.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from maskrcnn_lit.data.buckets import LENGTHS, Shape, bucket_groups, bucket_shapes, padding_overhead
from maskrcnn_lit.data.coco.index import AnnotationIndex, OnInvalid, SubsetOrder
from maskrcnn_lit.data.coco.learnable import describe_unlearnable, unlearnable
from maskrcnn_lit.data.coco.reading import (
    AnyReader,
)
from maskrcnn_lit.data.coco_data import CocoData
from maskrcnn_lit.data.collate import SLOTS, collate
from maskrcnn_lit.data.dataset import CocoDataset
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes, read_image_size
from maskrcnn_lit.data.loaders import (
    CudaPrefetcher,
    ExplainedLoader,
    Loader,
    check_workers,
    choose_workers,
    fetched_ahead,
)
from maskrcnn_lit.data.samplers import EpochBatches, repeat_factors, validation_batches
from maskrcnn_lit.data.stores.cutouts import choose_cutouts
from maskrcnn_lit.data.stores.feature_maps import DTYPES, FeatureMaps
from maskrcnn_lit.data.stores.resized_images import choose_resized
from maskrcnn_lit.data.transforms import Augment, read_augment
from maskrcnn_lit.errors import (
    UserError,
    check_choice,
    check_whole,
    check_within,
)
from maskrcnn_lit.storage.images import MAX_PIXELS

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]

MAX_BATCH, MAX_MASK_SIDE, MAX_SLOTS = (
    65_536,
    4096,
    4096,
)  # reject a mistyped number before it allocates terabytes


class CocoDataModule(CocoData, LightningDataModule):  # type: ignore[misc]  # `name` is optional there
    """Training and validation batches (batch.py) of any COCO data. conf/data/coco_json.yaml
    documents the options for users.

    Args:
        name: the name of the data set in reports.
        train: {"images": folder, "annotations": json}. Relative paths start from `root`. They may
            also be official zips or URLs, see storage/sources.py.
        val: likewise.
        classes: the classes to use, and their names; see data/coco/classes.py. None: all.
        root: a folder or a URL; None: the working directory.
        image_ids: use only the images with these ids, in both parts; None: all.
        train_images: number of images; None: all.
        val_images: likewise.
        subset: how to select them; see `AnnotationIndex.subset`.
        repeat_threshold: draw images with a class that fewer than this share of the training images
            have more often; see `repeat_factors`. None: every image once an epoch.
        image_size: side of a square, or (short side, long side), in pixels.
        lengths: maximum number of padded sizes per orientation. Each is compiled separately.
        slots: minimum number of object slots per image. Each number of slots is compiled
            separately.
        batch_size: images per batch and process.
        workers: loader processes, or "auto".
        on_bad: "error" or "skip"; see `read_index`.
        keep_empty: keep images without objects.
        seed: of the order, augmentation and subsets.
        augment: plain numbers, see `transforms.Augment`; for training images only.
        mask_size: M, the side of an object's mask crop.
        image_cache: "auto", "on" or "off"; see `choose_resized`.
        feature_cache: the form in which the maps of a frozen backbone are cached, of `DTYPES`, or
            "off"; training/feature_cache.py computes them.
        cache_dir: folder for caches; None: the user's cache folder.
        cache_gb: limit for copies of images there.
        max_pixels: limit for the pixels of an image file.
        bits: the depth of samples of more than 8 bits, 8 to 32, or "auto": by the largest value of
            each file.
        annotations: in place of `train` and `val`, one json.
        images: its image folder.
        reader: in place of `train` and `val`, what reads `root`, a folder in another form; see
            data/coco/reading.py.
        val_share: with `annotations` or `reader`: the share of the images that become validation,
            between 0 and 1; None: the data have two parts.
        group_by: a key of the image entries; images of equal value stay in one part.
        split_seed: of this division.
        ignore_void: whether void regions have no mask loss and no metric; False: background.
        official_ap: "cityscapes": evaluations have the official AP of that benchmark, too.
        sbd: not read here: an option of data=voc2012, for its reader.
        overlap: likewise, of data=shapes, for `prepare`.
        prepare: called without arguments in `prepare_data`, in one process, before anything is
            read. It writes or downloads the data, and returns at once if they exist.
        download: False: `prepare` downloads nothing. None: `prepare` has no such argument, nor
            `mirror`.
        mirror: a server to use instead, http://HOST/PATH.

    After `setup`: `categories` (the table of labels; label l is `categories[l - 1]`), `train_index`
    (with stage "fit"), `val_index` (whose `categories` have the same order and the val json's own
    ids), `train_dataset`, `val_dataset`. Training batches depend only on (seed, epoch, batch
    number), not on the workers or on `resume`.

    Raises:
        UserError: values of the wrong kind or range.
    """

    allow_zero_length_dataloader_with_multiple_devices = (
        True  # fewer validation images than processes
    )

    def __init__(
        self,
        *,
        name: str,
        train: Mapping[str, str | Path | None] | None = None,
        val: Mapping[str, str | Path | None] | None = None,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        reader: AnyReader | None = None,
        val_share: float | None = None,
        group_by: str | None = None,
        split_seed: int = 0,
        root: str | Path | None = None,
        classes: Sequence[Any] | Mapping[str, str | None] | None = None,
        image_ids: Sequence[int] | None = None,
        train_images: int | None = None,
        val_images: int | None = None,
        subset: SubsetOrder = "random",
        repeat_threshold: float | None = None,
        image_size: int | Sequence[int] = (800, 1333),
        lengths: int = LENGTHS,
        slots: int = SLOTS,
        batch_size: int = 2,
        workers: int | str = "auto",
        on_bad: OnInvalid = "error",
        keep_empty: bool = True,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        mask_size: int = 112,
        image_cache: str = "auto",
        feature_cache: str = "off",
        cache_dir: str | Path | None = None,
        cache_gb: float = 50.0,
        max_pixels: int = MAX_PIXELS,
        bits: int | str = "auto",
        ignore_void: bool = True,
        official_ap: str | None = None,
        sbd: str | Path | None = None,
        overlap: float | None = None,
        prepare: Callable[..., None] | None = None,
        download: bool | None = None,
        mirror: str | None = None,
    ) -> None:
        LightningDataModule.__init__(self)
        CocoData.__init__(
            self,
            name=name,
            train=train,
            val=val,
            annotations=annotations,
            images=images,
            reader=reader,
            val_share=val_share,
            group_by=group_by,
            split_seed=split_seed,
            root=root,
            classes=classes,
            image_ids=image_ids,
            train_images=train_images,
            val_images=val_images,
            subset=subset,
            on_bad=on_bad,
            keep_empty=keep_empty,
            seed=seed,
            cache_dir=cache_dir,
            cache_gb=cache_gb,
            max_pixels=max_pixels,
            bits=bits,
            ignore_void=ignore_void,
            prepare=prepare,
            download=download,
            mirror=mirror,
        )
        check_choice(("auto", "on", "off"), data__image_cache=image_cache)
        check_workers(workers)
        check_whole(1, MAX_MASK_SIDE, data__mask_size=mask_size)
        _check_batch_size(batch_size)
        check_whole(1, LENGTHS, data__lengths=lengths)
        check_whole(1, MAX_SLOTS, data__slots=slots)
        if repeat_threshold is not None:
            check_within(0, 1, data__repeat_threshold=repeat_threshold)
        check_choice(("cityscapes",), True, data__official_ap=official_ap)
        self.image_size, self.augment = read_image_size(image_size), read_augment(augment or {})
        self.feature_cache = _read_feature_cache(
            feature_cache, self.augment, self.image_size, lengths
        )
        self.batch_size, self.workers, self.image_cache = batch_size, workers, image_cache
        self.lengths, self.slots, self.mask_size = lengths, slots, mask_size
        self.repeat_threshold, self.official_ap = repeat_threshold, official_ap
        self.validation_subset_size: int | None = None  # see `validation_subset`
        self._features: dict[str, FeatureMaps] = {}  # by part, see `use_features`
        self._resume_at: tuple[int, int, int | None] = (0, 0, None)
        self._batches: EpochBatches | None = None

    @property
    def validation_subset(self) -> AnnotationIndex:
        """The images that `fit` validates on: `validation_subset_size` images, independent of
        `seed`, or all. A smaller subset is part of a larger one.
        """
        index, count = self.val_dataset.index, self.validation_subset_size
        return index if count is None or count >= len(index) else index.subset(count, seed=0)

    @property
    def padded_sizes(self) -> int:
        """The number of padded sizes of training batches."""
        if self.train_index is None:
            raise RuntimeError("call setup() first")
        return sum(map(len, self.padded_shapes(self.train_index)))

    def padded_shapes(self, index: AnnotationIndex) -> list[list[Shape]]:
        """The padded sizes of batches of the images of `index`, by orientation."""
        sizes = fitted_sizes(index.sizes, self.image_size)
        return bucket_shapes(sizes, self.image_size, self.lengths)

    def _read(self, part: str) -> AnnotationIndex:
        index = super()._read(part)
        if part == "train":
            lost = unlearnable(index, self.image_size, self.mask_size)
            lines = describe_unlearnable(index, lost, self.image_size)
            self.announce(*(f"train: {line}" for line in lines))
        return index

    @property
    def train_dataset(self) -> CocoDataset:
        return self._dataset(self.train_index, self.augment)

    @property
    def val_dataset(self) -> CocoDataset:
        return self._dataset(self.val_index, None)

    def use_features(self, features: Mapping[str, FeatureMaps]) -> None:
        """From now on, batches of "train" and "val" have these stored maps in place of pixels."""
        self._features = dict(features)

    def mirrored_views(self, part: str) -> list[bool]:
        """The views of an image that an epoch may draw: as it is (False), mirrored (True)."""
        flip = self.augment.flip if part == "train" else 0.0
        return [mirrored for mirrored in (False, True) if (flip if mirrored else 1 - flip) > 0]

    def view_batches(
        self, part: str, mirrored: bool, batches: Sequence[Sequence[int]]
    ) -> ExplainedLoader:
        """The images at these positions of "train" or "val", not augmented or all mirrored, with
        their pixels.
        """
        index = self.train_index if part == "train" else self.val_index
        dataset = self._dataset(index, Augment(flip=float(mirrored)), announce=False)
        keys = [[(0, position) for position in batch] for batch in batches]
        _, shapes = self._shapes(part, dataset.index, announce=False)
        return self._plain_loader(
            dataset, fetched_ahead(keys, dataset.index, dataset.paste_source), shapes
        )

    def _dataset(
        self, index: AnnotationIndex | None, augment: Augment | None, announce: bool = True
    ) -> CocoDataset:
        if index is None:
            raise RuntimeError("call setup() first")
        resized, message = choose_resized(
            self.image_cache, index, self.image_size, augment, self.cache, self.cache_gb
        )
        if message and augment is not None and announce:
            self.announce(message)
        cutouts = None
        if augment is not None and augment.copy_paste.p > 0:
            cutouts, message = choose_cutouts(
                self.image_cache, index, self.image_size, self.cache, self.cache_gb
            )
            self.announce(message)
        return CocoDataset(
            index=index,
            image_size=self.image_size,
            augment=augment,
            mask_size=self.mask_size,
            on_bad=self.on_bad,
            seed=self.seed,
            resized=resized,
            cache=self.cache,
            cutouts=cutouts,
            slots=self.slots,
        )

    def resume(self, epoch: int, batch: int, together: int | None = None) -> None:
        """Continue in `epoch` after its first `batch` batches of `together` images, those of all
        processes (None: batch_size in each). Call it before the loader is iterated. The loader's
        length stays that of a full epoch; later epochs are full.
        """
        self._resume_at = (epoch, batch, together)
        if self._batches is not None:
            self._batches.resume(epoch, batch, together)

    def train_dataloader(self) -> Loader:
        dataset = self.train_dataset
        dataset.features = self._features.get("train")
        rank, world_size = self._ranks()
        groups, shapes = self._shapes("train", dataset.index)
        self._batches = EpochBatches(
            chains=groups,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            repeats=self._repeats(dataset.index),
        )
        self._batches.resume(*self._resume_at)
        return self._loader(dataset, self._batches, shapes)

    def _repeats(self, index: AnnotationIndex) -> Floats | None:
        """How often each training image is drawn in an epoch; None: once."""
        if not self.repeat_threshold:
            return None
        arrays = index.packed.arrays
        labels = np.where(arrays.crowd[:], 0, index.labels[arrays.labels[:]])
        factors = repeat_factors(index.spans, labels, self.repeat_threshold)
        self.announce(
            f"data.repeat_threshold={self.repeat_threshold:g}: {(factors > 1).sum():,} of "
            f"{len(factors):,} training images are drawn more than once, up to {factors.max():.1f} "
            f"times; an epoch has {factors.sum():,.0f}"
        )
        return factors

    def val_dataloader(self) -> Loader:
        dataset = self.val_dataset
        dataset.features = self._features.get("val")
        groups, shapes = self._shapes("val", dataset.index)
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            wanted = np.isin(dataset.index.rows, self.validation_subset.rows)
            groups = [[group[wanted[group]] for group in chain] for chain in groups]
        return self._loader(
            dataset, validation_batches(groups, self.batch_size, *self._ranks()), shapes
        )

    def _shapes(
        self, part: str, index: AnnotationIndex, announce: bool = True
    ) -> tuple[list[list[Ints]], list[list[Shape]]]:
        """The groups of images that share a padded size, and these sizes."""
        sizes, shapes = fitted_sizes(index.sizes, self.image_size), self.padded_shapes(index)
        if announce:
            names = ", ".join(f"{height} x {width}" for chain in shapes for height, width in chain)
            self.announce(
                f"{part}: padded to {names}: {padding_overhead(sizes, shapes):.1%} more pixels "
                "than without padding"
            )
        return bucket_groups(sizes, shapes), shapes

    def _loader(
        self, dataset: CocoDataset, batches: Any, shapes: Sequence[Sequence[Shape]]
    ) -> Loader:
        if dataset.features is None:
            batches = fetched_ahead(batches, dataset.index, dataset.paste_source)
        loader = self._plain_loader(dataset, batches, shapes)
        if self.workers == "auto":
            self.announce(
                f"data.workers=auto: {loader.num_workers} loader processes for {len(dataset)} "
                "images"
            )
        device = self._device()
        return CudaPrefetcher(loader, device) if device.type == "cuda" else loader

    def _plain_loader(
        self, dataset: CocoDataset, batches: Any, shapes: Sequence[Sequence[Shape]]
    ) -> ExplainedLoader:
        cuda = self._device().type == "cuda"
        workers = choose_workers(self.workers, processes=self._ranks()[1], cuda=cuda)
        return ExplainedLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,  # torch uses one thread in each
            collate_fn=partial(
                collate,
                shapes=[shape for chain in shapes for shape in chain],
                slots=self.slots,
                features=dataset.features,
            ),
            pin_memory=cuda,
            persistent_workers=workers > 0,
            # the global generator would make a resumed run differ
            generator=torch.Generator(),
        )

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _ranks(self) -> tuple[int, int]:
        return (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )

    @rank_zero_only
    def announce(self, *lines: str) -> None:
        super().announce(*lines)


def _check_batch_size(batch_size: Any) -> None:
    if batch_size == "auto":
        raise UserError(
            "data.batch_size=auto is chosen by train and lr, before they read the data: give a "
            "number here, for example data.batch_size=2"
        )
    check_whole(1, MAX_BATCH, data__batch_size=batch_size)


def _read_feature_cache(value: Any, augment: Augment, image_size: ImageSize, lengths: int) -> str:
    """data.feature_cache. Raises UserError unless every view of an image is one of two, as it is or
    mirrored, padded to one size.
    """
    check_choice(("off", *DTYPES), data__feature_cache=value)
    choice = str(value)
    if choice == "off":
        return choice
    unchanged = Augment(flip=augment.flip)
    for name in ("scale", "crop", "brightness", "contrast", "saturation"):
        value, plain = getattr(augment, name), getattr(unchanged, name)
        if value != plain:
            value, plain = (str(v).replace("(", "[").replace(")", "]") for v in (value, plain))
            raise UserError(
                f"data.feature_cache caches an image as it is and mirrored, but augment.{name} is "
                f"{value}: use 'augment.{name}={plain}', or data.feature_cache=off"
            )
    if augment.transforms:
        names = ", ".join(type(transform).__name__ for transform in augment.transforms)
        raise UserError(
            f"data.feature_cache caches an image as it is and mirrored, but augment has {names}: "
            "use augment=none augment.flip=0.5, or data.feature_cache=off"
        )
    if augment.copy_paste.p > 0:
        raise UserError(
            f"data.feature_cache caches an image as it is and mirrored, but augment.copy_paste.p "
            f"is {augment.copy_paste.p}: use augment.copy_paste.p=0, or data.feature_cache=off"
        )
    if lengths > 1 and isinstance(image_size, tuple) and image_size[0] != image_size[1]:
        raise UserError(
            f"data.feature_cache needs one padded size of each image, but data.lengths is "
            f"{lengths}: use data.lengths=1, or one number as data.image_size"
        )
    return choice
