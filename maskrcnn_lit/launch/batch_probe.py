"""Tries a batch size in a process of its own, which may be killed when the memory is full:
`python -m maskrcnn_lit.launch.batch_probe CONFIG OUT BATCH_SIZE [LIMIT_BYTES]`.

The process trains and validates as the run would, on full batches (measure/full_batch.py) of each
padded size, and measures the memory.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.memory import is_oom_error
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset

from maskrcnn_lit.callbacks.coco_evaluation import CocoEvaluation
from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.loaders import CudaPrefetcher, Loader
from maskrcnn_lit.launch import console
from maskrcnn_lit.launch.run import build_module, read_data
from maskrcnn_lit.launch.trial import short_trainer
from maskrcnn_lit.measure.full_batch import Fullest, full_batch, fullest
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.sealed import write_sealed_json
from maskrcnn_lit.training.devices import (
    count_devices,
    device_name,
    device_numbers,
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)

# Batches of an optimizer step: with two, the forward pass of the second one has the gradients of
# the first in memory, as where gradients are accumulated, and as in the buckets of several
# processes.
ACCUMULATE = 2

# so small that the weights stay as they are, since random pixels would spoil them
RATE = 1e-12

# Of the memory that is free on the CPU, where loader processes and other programs need some.
SHARE_OF_CPU = 0.5


class Exceeded(Exception):
    """The memory of a batch is above the limit."""


class FullBatches(LightningDataModule):
    """Full batches in place of the images of `data`: for each padded size those of one optimizer
    step, then one to validate.
    """

    def __init__(self, data: CocoDataModule, batch_size: int) -> None:
        super().__init__()
        if data.train_index is None or data.val_index is None:
            raise RuntimeError("call setup() first")
        self.batch_size, self.categories = batch_size, data.categories
        self.train_index, self.val_index = data.train_index, data.val_index
        self.has_void, self.feature_cache = data.has_void, "off"
        self.train, self.val = fullest(data, data.train_index), fullest(data, data.val_index)

    def train_dataloader(self) -> Loader:
        shapes = [shape for shape in self.train.shapes for _ in range(ACCUMULATE)]
        return self._loader(self.train, shapes)

    def val_dataloader(self) -> Loader:
        return self._loader(self.val, self.val.shapes)

    def _loader(self, of: Fullest, shapes: Sequence[Shape]) -> Loader:
        loader = DataLoader(_Batches(of, shapes, self.batch_size), batch_size=None)
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        return CudaPrefetcher(loader, device) if device.type == "cuda" else loader


class _Batches(Dataset[Batch]):
    """A full batch of each of `shapes`, made when it is needed."""

    def __init__(self, of: Fullest, shapes: Sequence[Shape], batch_size: int) -> None:
        self.of, self.shapes, self.batch_size = of, shapes, batch_size

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, number: int) -> Batch:
        return full_batch(self.of, self.shapes[number], self.batch_size, seed=number)


class Peaks(Callback):
    """Notes the peak memory of each padded size in training and validation.

    Args:
        limit: bytes; a peak above it ends the probe with Exceeded.

    Attributes:
        peaks: "train 800x1344" -> bytes, in their order.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.peaks: dict[str, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the state of the optimizer, which a step that 16-mixed skips would not."""
        (optimizer,) = trainer.optimizers
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._note("train", batch, trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._note("val", batch, trainer)

    def _note(self, part: str, batch: Batch, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        height, width = batch["images"].shape[2:]
        name = f"{part} {height}x{width}"
        self.peaks[name] = max(self.peaks.get(name, 0), peak_memory_bytes(device))
        if self.peaks[name] > self.limit:
            raise Exceeded(f"{name} takes {self.peaks[name] / 1e9:.3f} GB")
        reset_peak_memory(device)


def measure(config: DictConfig, batch_size: int, limit: int | None) -> dict[str, Any]:
    """Try `batch_size` images for a run with `config`, on one device.

    Args:
        limit: bytes that the run may use; None: see `memory_limit`.

    Returns:
        fits; limit_bytes, budget_bytes (less the margin), peak_bytes by padded size ("train
        800x1344"), reason (None: it fits), train_images, device.
    """
    limit = memory_limit(config) if limit is None else limit
    budget = limit * (1 - config.auto_batch.margin)
    peaks = Peaks(budget)
    numbers = device_numbers(config.trainer.accelerator, config.trainer.devices)
    device = torch.device("cuda", numbers[0]) if numbers else torch.device("cpu")
    if numbers:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), device)
    data = read_data(_for_the_probe(config, batch_size))
    batches = FullBatches(data, batch_size)
    reason = None
    try:
        _train(_for_the_probe(config, batch_size), data, batches, peaks)
    except Exceeded as error:
        reason = str(error)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or is_oom_error(error)):
            raise
        reason = "the device ran out"
    return {
        "fits": reason is None,
        "reason": reason,
        "limit_bytes": limit,
        "budget_bytes": int(budget),
        "peak_bytes": peaks.peaks,
        "train_images": len(batches.train_index),
        "device": device_name(device),
    }


def memory_limit(config: DictConfig) -> int:
    """The bytes that each process of a run may use where `auto_batch.memory_gb` is null: what is
    free on the GPU with the least; on the CPU half of what is free, divided among the processes.
    """
    given = config.auto_batch.memory_gb
    if given is not None:
        return round(given * 1e9)
    devices = config.trainer.devices
    numbers = device_numbers(config.trainer.accelerator, devices)
    free = free_memory_bytes(numbers)
    if numbers:
        return free
    return int(SHARE_OF_CPU * free / count_devices(config.trainer.accelerator, devices))


def _for_the_probe(config: DictConfig, batch_size: int) -> DictConfig:
    """A copy of a run's config for full batches, which come without cached features."""
    copy = OmegaConf.create(to_dict(config))
    copy.data.batch_size, copy.data.feature_cache = batch_size, "off"
    copy.optimizer.lr = RATE
    if OmegaConf.select(copy, "model.box_head.score_threshold") is not None:
        copy.model.box_head.score_threshold = 0.0  # the most detections, with any weights
    copy.trainer.accumulate = ACCUMULATE
    copy.trainer.limit_train_batches = None
    copy.trainer.compile = "off"  # compiling takes minutes for each number of images
    return copy


def _train(config: DictConfig, data: CocoDataModule, batches: FullBatches, peaks: Peaks) -> None:
    torch.manual_seed(config.seed)
    module = build_module(config, data)
    if isinstance(module.model, MaskRCNN):  # masks in all slots, on the CPU, too
        module.model.forward = partial(module.model.forward, static_shapes=True)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = short_trainer(
            config,
            folder,
            [CocoEvaluation(), peaks],
            len(batches.train.shapes),
            len(batches.val.shapes),
        )
        trainer.fit(module, datamodule=batches)


def die_first() -> None:
    """Where the memory of the machine is full, let Linux end this process before any other."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main(config: str, out: str, batch_size: str, limit: str | None = None) -> None:
    die_first()
    loaded = DictConfig(OmegaConf.load(config))
    measured = measure(loaded, int(batch_size), None if limit is None else int(limit))
    write_sealed_json(Path(out), measured)


if __name__ == "__main__":
    console.silence_libraries()
    console.show_library_logs()
    sys.exit(console.run_and_report_errors(lambda: main(*sys.argv[1:])))
