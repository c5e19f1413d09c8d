"""LightningDataModule over two COCO jsons: write the data if need be, read and check it, load batches."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco_json import describe
from maskrcnn_lit.data.dataset import CocoDataset, Sample, collate
from maskrcnn_lit.data.index import AnnotationIndex, Category, How, OnBad, read_index
from maskrcnn_lit.data.sampling import EpochBatches, validation_batches
from maskrcnn_lit.data.transforms import read_augment, read_image_size
from maskrcnn_lit.errors import UserError, check_whole


class CocoDataModule(LightningDataModule):
    """Training and validation batches (batch.py) of any COCO data. What each argument means to a user:
    conf/data/coco_json.yaml.

    Args:
        name: what reports call the data set.
        train, val: {"images": folder, "annotations": json}; relative paths start from `root`.
        root: a folder, or None for the working directory.
        image_ids: of both parts only the images with these ids; None: all.
        train_images, val_images, subset: see `AnnotationIndex.subset`; None: all.
        image_size: side of a square, or (short, long).
        batch_size: images a batch and process.
        workers: loader processes, or "auto".
        on_bad, keep_empty: see `read_index`.
        seed: of order, augmentation and subsets.
        augment: plain numbers, see `transforms.Augment`; for training images only.
        mask_size: M.
        prepare: called without arguments in `prepare_data`, on one process, before anything is read: it writes or
            fetches the data and returns at once where they are there already.
        download, mirror: for `prepare`, where the config gives them to it.

    After `setup`: `categories` (the table of labels; label l is `categories[l - 1]`), `train_index` (with stage "fit"),
    `val_index` (whose `categories` have the same order and the val json's own ids), `train_dataset`, `val_dataset`.
    Training batches are a function of (seed, epoch, batch number): whatever the workers, and after `resume`.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # fewer validation images than processes

    def __init__(
        self,
        *,
        name: str,
        train: Mapping[str, str | Path],
        val: Mapping[str, str | Path],
        root: str | Path | None = None,
        image_ids: Sequence[int] | None = None,
        train_images: int | None = None,
        val_images: int | None = None,
        subset: How = "random",
        image_size: int | Sequence[int] = (800, 1333),
        batch_size: int = 2,
        workers: int | str = "auto",
        on_bad: OnBad = "error",
        keep_empty: bool = True,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        mask_size: int = 112,
        prepare: Callable[[], None] | None = None,
        download: bool = True,
        mirror: str | None = None,
    ) -> None:
        super().__init__()
        self.name: str = name  # LightningDataModule has one that may be None
        self.seed, self.subset, self.prepare = seed, subset, prepare
        self._paths = {part: _paths(part, paths, Path(root or ".")) for part, paths in (("train", train), ("val", val))}
        self.image_ids = image_ids
        self._counts = {"train": train_images, "val": val_images}
        self.image_size, self.augment = read_image_size(image_size), read_augment(augment or {})
        self.on_bad, self.keep_empty, self.mask_size = on_bad, keep_empty, mask_size
        check_whole(1, data__batch_size=batch_size, data__mask_size=mask_size)
        for name, count in {"data__train_images": train_images, "data__val_images": val_images}.items():
            if count is not None:
                check_whole(1, **{name: count})
        self.batch_size, self.workers = batch_size, workers
        self.categories: tuple[Category, ...] = ()  # none yet
        self.train_index: AnnotationIndex | None = None
        self.val_index: AnnotationIndex | None = None
        self._resume_at = (0, 0)
        self._batches: EpochBatches | None = None

    def use_categories(self, categories: Sequence[Category]) -> None:
        """Before `setup`: number the labels by this table (that of a trained model), not by the training json."""
        self.categories = tuple(categories)

    def prepare_data(self) -> None:
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read what is not read yet: both jsons for "fit" or None, else the validation json alone."""
        if stage in ("fit", None) and self.train_index is None:
            self.train_index = self._read("train")
            self._check_enough(len(self.train_index))
        if self.val_index is None:
            self.val_index = self._read("val")

    def _check_enough(self, images: int) -> None:
        processes = self._ranks()[1]  # known once there is a trainer
        if images < self.batch_size * processes:
            advice = f"set data.batch_size={images // processes}" if images >= processes else "use fewer processes"
            raise UserError(
                f"training images: {images}, which do not fill one batch of {self.batch_size * processes} "
                f"(data.batch_size={self.batch_size}, processes: {processes}): {advice}"
            )

    def _read(self, part: str) -> AnnotationIndex:
        annotations, images = self._paths[part]
        count = self._counts[part]
        index = read_index(
            annotations,
            images,
            self.on_bad,
            self.keep_empty,
            image_ids=self.image_ids,
            take=count,
            how=self.subset,
            seed=self.seed,
        )
        self.categories = self.categories or index.categories
        index = index.with_categories(self.categories)
        objects = int((index.spans[:, 1] - index.spans[:, 0]).sum())
        self.tell(f"{part}: {len(index)} images, {objects} objects, {len(index.categories)} categories ({annotations})")
        if index.faults:
            self.tell(
                "\n  ".join([f"{part}: left out {len(index.faults)} (data.on_bad=skip):", *describe(index.faults)])
            )
        return index

    @property
    def train_dataset(self) -> CocoDataset:
        return self._dataset(self.train_index, training=True)

    @property
    def val_dataset(self) -> CocoDataset:
        return self._dataset(self.val_index, training=False)

    def _dataset(self, index: AnnotationIndex | None, training: bool) -> CocoDataset:
        if index is None:
            raise RuntimeError("call setup() first")
        return CocoDataset(
            index=index,
            image_size=self.image_size,
            augment=self.augment if training else None,
            mask_size=self.mask_size,
            on_bad=self.on_bad,
            seed=self.seed,
        )

    def subset_ids(self) -> dict[str, list[int]]:
        """The ids of the images in use, by part."""
        indices = {"train": self.train_index, "val": self.val_index}
        return {part: index.image_ids.tolist() for part, index in indices.items() if index is not None}

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.image_size)

    def resume(self, epoch: int, batch: int) -> None:
        """Go on in `epoch` after its first `batch` batches (of each process): before or after the loader is made, but
        before it is iterated. Its length stays that of a whole epoch; later epochs are whole."""
        self._resume_at = (epoch, batch)
        if self._batches is not None:
            self._batches.resume(epoch, batch)

    def train_dataloader(self) -> DataLoader[Sample]:
        dataset = self.train_dataset
        self._check_enough(len(dataset))
        rank, world_size = self._ranks()
        self._batches = EpochBatches(
            images=len(dataset), batch_size=self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        self._batches.resume(*self._resume_at)
        return self._loader(dataset, self._batches)

    def val_dataloader(self) -> DataLoader[Sample]:
        dataset = self.val_dataset
        return self._loader(dataset, validation_batches(len(dataset), self.batch_size, *self._ranks()))

    def _loader(self, dataset: CocoDataset, batches: Any) -> DataLoader[Sample]:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = choose_workers(self.workers, processes=self._ranks()[1], cuda=cuda)
        if self.workers == "auto":
            self.tell(f"data.workers=auto: {workers} loader processes for {len(dataset)} images")
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,  # in each torch itself keeps to one thread
            collate_fn=partial(collate, image_size=self.image_size),
            pin_memory=cuda,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else every epoch draws from the global one, and a resumed run differs
        )

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def tell(self, *lines: str) -> None:
        """Print on the first process only."""
        if self._ranks()[0] == 0:
            print(*lines, sep="\n", end="\n" if lines else "", flush=True)


def _paths(part: str, paths: Mapping[str, str | Path], root: Path) -> tuple[Path, Path]:
    """The json and the folder of the images."""
    for key, what in (("annotations", "a COCO json"), ("images", "the folder of its images")):
        if not paths.get(key):
            raise UserError(f"data.{part}.{key} is missing: give {what}")
    return root / paths["annotations"], root / paths["images"]


def choose_workers(workers: int | str, *, processes: int, cuda: bool) -> int:
    """Loader processes of one training process. "auto": a GPU is fed by all cores but one, at most 16, shared among the
    training processes of the machine; on the CPU training needs the cores, and one loader keeps up with it."""
    if workers != "auto":
        if not isinstance(workers, int) or workers < 0:
            raise UserError(f"data.workers={workers} must be auto or a number of processes, 0 or more")
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spare = max(0, cores // processes - 1)
    return min(spare, 16 if cuda else 1)
