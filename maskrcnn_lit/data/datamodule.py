"""LightningDataModule over two COCO jsons: prepares the data, reads and checks it, loads
batches.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from maskrcnn_lit.data.buckets import LENGTHS, Shape, bucket_groups, bucket_shapes, padding_overhead
from maskrcnn_lit.data.coco.categories import UNUSED, Category, some
from maskrcnn_lit.data.coco.classes import (
    check_names,
    describe_choice,
    read_choice,
    source_names,
)
from maskrcnn_lit.data.coco.faults import describe
from maskrcnn_lit.data.coco.index import AnnotationIndex, OnInvalid, SubsetOrder, read_index
from maskrcnn_lit.data.coco.learnable import describe_partial, describe_unlearnable, unlearnable
from maskrcnn_lit.data.coco.reading import (
    ALL,
    AnyReader,
    OneJson,
    PictureReader,
    Reader,
    folder_of,
    located,
)
from maskrcnn_lit.data.coco.split import Split
from maskrcnn_lit.data.collate import SLOTS, collate
from maskrcnn_lit.data.dataset import CocoDataset
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
from maskrcnn_lit.data.transforms import (
    Augment,
    ImageSize,
    fitted_sizes,
    read_augment,
    read_image_size,
)
from maskrcnn_lit.errors import (
    UserError,
    check_choice,
    check_flag,
    check_text,
    check_whole,
    check_within,
    plural,
)
from maskrcnn_lit.storage.files import default_cache
from maskrcnn_lit.storage.images import MAX_PIXELS
from maskrcnn_lit.storage.sources import join

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]

MAX_BATCH, MAX_MASK_SIDE, MAX_SLOTS = (
    65_536,
    4096,
    4096,
)  # reject a mistyped number before it allocates terabytes

PARTS = ("train", "val")

_log = logging.getLogger(__name__)


class CocoDataModule(LightningDataModule):
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
        ignore_void: bool = True,
        official_ap: str | None = None,
        sbd: str | Path | None = None,
        overlap: float | None = None,
        prepare: Callable[..., None] | None = None,
        download: bool | None = None,
        mirror: str | None = None,
    ) -> None:
        super().__init__()
        _check_counts(seed, mask_size, image_ids, cache_gb)
        check_choice(get_args(SubsetOrder), data__subset=subset)
        check_choice(get_args(OnInvalid), data__on_bad=on_bad)
        check_choice(("auto", "on", "off"), data__image_cache=image_cache)
        check_flag(data__keep_empty=keep_empty, data__ignore_void=ignore_void)
        check_workers(workers)
        if download is not None:
            check_flag(data__download=download)
        if not isinstance(name, str):
            raise UserError(f"data.name={name} must be text: the name of the data set in reports")
        check_text(data__mirror=mirror)
        if prepare is not None and not callable(prepare):
            raise UserError(f"data.prepare={prepare} must be null or a _partial_ with a _target_")
        self._fetching = {} if download is None else {"download": download, "mirror": mirror}
        if repeat_threshold is not None:
            check_within(0, 1, data__repeat_threshold=repeat_threshold)
        self.repeat_threshold = repeat_threshold
        self.name: str = name  # LightningDataModule declares an optional name
        self.seed, self.subset, self.prepare = seed, subset, prepare
        check_text(data__group_by=group_by)
        self.root = root
        self.reader = _reader(reader, annotations, images, root, val_share)
        self.split = None if val_share is None else Split(val_share, group_by, split_seed)
        self._paths = (
            {part: _paths(part, paths, root) for part, paths in (("train", train), ("val", val))}
            if self.reader is None
            else {}
        )
        self.classes = read_choice(classes)
        self.image_ids = image_ids
        self._counts = {"train": train_images, "val": val_images}
        self.image_size, self.augment = read_image_size(image_size), read_augment(augment or {})
        self.on_bad, self.keep_empty, self.mask_size = on_bad, keep_empty, mask_size
        _check_batch_size(batch_size)
        check_whole(1, LENGTHS, data__lengths=lengths)
        check_whole(1, MAX_SLOTS, data__slots=slots)
        self.lengths, self.slots = lengths, slots
        for name, count in {
            "data__train_images": train_images,
            "data__val_images": val_images,
        }.items():
            if count is not None:
                check_whole(1, **{name: count})
        self.feature_cache = _read_feature_cache(
            feature_cache, self.augment, self.image_size, lengths
        )
        check_whole(1, data__max_pixels=max_pixels)
        check_choice(("cityscapes",), True, data__official_ap=official_ap)
        self.official_ap, self.max_pixels, self.ignore_void = official_ap, max_pixels, ignore_void
        self.batch_size, self.workers, self.image_cache = batch_size, workers, image_cache
        self.cache, self.cache_gb = (
            Path(cache_dir).expanduser() if cache_dir else default_cache(),
            cache_gb,
        )
        self.categories: tuple[Category, ...] = ()  # set by setup
        self._trained = False  # whether they come from a trained model
        self.train_index: AnnotationIndex | None = None
        self.val_index: AnnotationIndex | None = None
        self.validation_subset_size: int | None = None  # see `validation_subset`
        self._features: dict[str, FeatureMaps] = {}  # by part, see `use_features`
        self._resume_at: tuple[int, int, int | None] = (0, 0, None)
        self._batches: EpochBatches | None = None

    def use_categories(self, categories: Sequence[Category]) -> None:
        """Use the labels of this table (that of a trained model), not of the training json; call it
        before `setup`.
        """
        self.categories, self._trained = tuple(categories), True

    @property
    def validation_subset(self) -> AnnotationIndex:
        """The images that `fit` validates on: `validation_subset_size` images, independent of
        `seed`, or all. A smaller subset is part of a larger one.
        """
        index, count = self.val_dataset.index, self.validation_subset_size
        return index if count is None or count >= len(index) else index.subset(count, seed=0)

    @property
    def has_void(self) -> bool:
        """Whether a part that was read has void regions, which training and metrics ignore."""
        indices = (self.train_index, self.val_index)
        return any(index is not None and index.has_void for index in indices)

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

    @property
    def parts(self) -> list[str]:
        """The parts that the data have: "train" for data that are not divided."""
        if self.reader is None or self.split is not None:
            return list(PARTS)
        if isinstance(self.reader, OneJson):
            return ["train"]
        return list(self.reader.parts(folder_of(self.root))) or ["train"]

    def paths(self, part: str) -> tuple[str, str]:
        """The paths of the json of "train" or "val" and of its image folder. Data in another form
        are read first, see `reading.located`. Data that are not divided are either part.

        Raises:
            UserError: the data do not have this part, or cannot be read.
        """
        if self.reader is None:
            return self._paths[part]
        if isinstance(self.reader, OneJson) and self.split is None:
            return self.reader.annotations, self.reader.images
        root = Path() if isinstance(self.reader, OneJson) else folder_of(self.root)
        if self.split is None:
            has = self.reader.parts(root)
            if has and part not in has:
                raise UserError(
                    f"{root} has no part '{part}': give one beside {some(has)}, or divide the "
                    "images with data.val_share=0.2"
                )
            name = part if has else ALL
        else:
            name = ALL
        there = located(self.reader, root, name, self.cache, self.split, self.cache_gb)
        one = there[name if self.split is None else part]
        return str(one.annotations), str(one.images)

    def _check_divided(self) -> None:
        """Raise UserError if training and validation would be the same images."""
        if self.reader is not None and self.split is None and self.parts == ["train"]:
            where = self.root if not isinstance(self.reader, OneJson) else self.reader.annotations
            raise UserError(
                f"{where} has no validation part: divide its images with data.val_share=0.2, or "
                "give validation images of their own"
            )

    def prepare_data(self) -> None:
        if self.prepare is not None:
            self.prepare(**self._fetching)

    def setup(self, stage: str | None = None) -> None:
        """Read the jsons that are not read yet: both for "fit" or None, else only the validation
        json.
        """
        if stage in ("fit", None) and self.train_index is None:
            self._check_divided()
            self.train_index = self._read("train")
            if self.val_index is None:
                self.val_index = self._read("val")
                self.check_classes()
                self.announce(*self._leaks())
        if self.val_index is None:
            self.val_index = self._read("val")
            self._check_trained_classes()

    def setup_part(self, part: str) -> None:
        """Read only "train" or "val", when the other part is not given."""
        if part == "val":
            self.setup("validate")
            self.check_classes()
        elif self.train_index is None:
            self.train_index = self._read("train")
            self.check_classes()

    def check_classes(self) -> None:
        """Raise UserError for a name in data.classes that is in none of the jsons read."""
        indices = (self.train_index, self.val_index)
        check_names(self.classes, [index.packed for index in indices if index is not None])

    def _check_trained_classes(self) -> None:
        """As `check_classes`; names that the trained model has are allowed, too."""
        if self.classes is None or not self._trained or self.val_index is None:
            return
        allowed = {None, *(category.name for category in self.categories)}
        unknown = self.classes.unknown(source_names(self.val_index.packed))
        if any(self.classes.name_of(name) not in allowed for name in unknown):
            self.check_classes()

    def _leaks(self) -> list[str]:
        """A warning about validation images that are also training images, unless selected by
        id.
        """
        train, val = self.train_index, self.val_index
        if train is None or val is None or self.image_ids is not None:
            return []
        seen = {train.where(i) for i in range(len(train))}
        shared = sum(val.where(i) in seen for i in range(len(val)))
        if not shared:
            return []
        return [
            f"warning: {shared} of {len(val)} validation images are training images too, so the "
            "scores do not show how the model does on new images: give others with data.val.images "
            "and data.val.annotations"
        ]

    def _read(self, part: str) -> AnnotationIndex:
        annotations, images = self.paths(part)
        count = self._counts[part]
        where = self.where(part)
        index = read_index(
            annotations,
            images,
            self.on_bad,
            self.keep_empty,
            image_ids=self.image_ids,
            take=count,
            how=self.subset,
            seed=self.seed,
            cache=self.cache,
            cache_gb=self.cache_gb,
            max_pixels=self.max_pixels,
            classes=self.classes,
            where=where,
            ignore_void=self.ignore_void,
        )
        self.categories = self.categories or index.categories
        listed = {category.name for category in index.categories}
        index = index.with_categories(self.categories, where)
        known = {category.name for category in self.categories}
        absent = [n for n in known - listed if not n.startswith(UNUSED)]
        objects = int((index.spans[:, 1] - index.spans[:, 0]).sum())
        self.announce(
            f"{part}: {plural(len(index), 'image')}, {plural(objects, 'object')}, "
            f"{plural(len(index.categories), 'category', 'categories')} ({where})"
        )
        self.announce(*(f"{part}: {line}" for line in describe_choice(index.packed)))
        if absent:
            self.announce(f"{part}: the classes {some(absent)} have no objects and are not scored")
        if listed - known:
            self.announce(
                f"{part}: the classes {some(listed - known)} are left out: they have no objects"
            )
        if index.faults:
            self.announce(
                "\n  ".join(
                    [
                        f"{part}: {len(index.faults)} faulty entries left out (data.on_bad=skip):",
                        *describe(index.faults),
                    ]
                )
            )
        self.announce(*describe_changes(part, index))
        self.announce(*(f"{part}: {line}" for line in describe_partial(index)))
        if part == "train":
            self.announce(*self._unlearnable_lines(index))
        return index

    def where(self, part: str) -> str:
        """What the user gave for this part, for messages."""
        if self.reader is None:
            return self._paths[part][0]
        given = self.reader.annotations if isinstance(self.reader, OneJson) else self.root
        return f"{given}, its part '{part}'" if self.split is not None else str(given)

    def _unlearnable_lines(self, index: AnnotationIndex) -> list[str]:
        lost = unlearnable(index, self.image_size, self.mask_size)
        return [f"train: {line}" for line in describe_unlearnable(index, lost, self.image_size)]

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

    def subset_ids(self) -> dict[str, list[int]]:
        """The ids of the images in use, for each part."""
        indices = {"train": self.train_index, "val": self.val_index}
        return {
            part: index.image_ids.tolist() for part, index in indices.items() if index is not None
        }

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
        for line in lines:
            _log.info(line)


def _check_batch_size(batch_size: Any) -> None:
    if batch_size == "auto":
        raise UserError(
            "data.batch_size=auto is chosen by train and lr, before they read the data: give a "
            "number here, for example data.batch_size=2"
        )
    check_whole(1, MAX_BATCH, data__batch_size=batch_size)


def _check_counts(seed: Any, mask_size: Any, image_ids: Any, cache_gb: Any) -> None:
    check_whole(0, 2**63 - 1, data__seed=seed)
    check_whole(1, MAX_MASK_SIDE, data__mask_size=mask_size)
    check_within(0, 1e6, data__cache_gb=cache_gb)
    if image_ids is None:
        return
    if not isinstance(image_ids, (list, tuple)) or not image_ids:
        raise UserError(f"data.image_ids={image_ids} must be null or a list of image ids")
    for image_id in image_ids:
        check_whole(-(2**62), 2**62, data__image_ids=image_id)


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


def describe_changes(part: str, index: AnnotationIndex) -> list[str]:
    """Lines about corrected entries."""
    if not index.changes:
        return []
    return [
        f"{part}: {len(index.changes)} entries were corrected:",
        *(f"  {line}" for line in describe(index.changes, names=1)),
    ]


def _reader(
    reader: Any, annotations: Any, images: Any, root: str | Path | None, val_share: Any
) -> AnyReader | None:
    """What reads the data, if they are not one json for each part."""
    if val_share is not None:
        check_within(0.001, 0.999, data__val_share=val_share)
    if not isinstance(root, (str, Path, NoneType)):
        raise UserError(f"data.root={root} must be null, a folder or a URL")
    if reader is None:
        return _one_json(annotations, images, root, val_share)
    if annotations is not None or images is not None:
        raise UserError("data.annotations and data.images are of data=coco_json: leave them out")
    if not isinstance(reader, (Reader, PictureReader)):
        raise UserError(f"data.reader={reader} must be null or a reader with a _target_")
    return reader


def _one_json(
    annotations: Any, images: Any, root: str | Path | None, val_share: float | None
) -> OneJson | None:
    """The reader of a single json, if one is given."""
    if annotations is None and images is None:
        if val_share is not None:
            raise UserError(
                "data.val_share divides one json: give it with data.annotations=FILE "
                "data.images=DIR, in place of data.train and data.val"
            )
        return None
    for name, value in {"annotations": annotations, "images": images}.items():
        if not isinstance(value, (str, Path)) or not value:
            raise UserError(
                f"data.{name} is missing: give both data.annotations=FILE and data.images=DIR"
            )
    file = join(root, str(annotations))
    if val_share is not None and not Path(file).is_file():
        raise UserError(
            f"data.annotations={file} must be a file on this machine, to be divided by "
            "data.val_share: check the path"
        )
    return OneJson(file, join(root, str(images)))


def _paths(part: str, paths: Any, root: str | Path | None) -> tuple[str, str]:
    """The paths of the json and of the image folder."""
    if not isinstance(paths, Mapping):
        raise UserError(f"data.{part}={paths} must have images and annotations")
    for key, description in (
        ("annotations", "a COCO json"),
        ("images", "the folder of its images"),
    ):
        if not paths.get(key):
            raise UserError(f"data.{part}.{key} is missing: give {description}")
        if not isinstance(paths[key], (str, Path)):
            raise UserError(f"data.{part}.{key}={paths[key]} must be {description}")
    return join(root, str(paths["annotations"])), join(root, str(paths["images"]))
