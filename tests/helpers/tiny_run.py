"""A run that takes a second: a model of a few weights, a data module of a few images, and a program
to kill.

Usage: tiny_run.py RUN_DIR [--resume] [--workers N] [--accumulate N] [--kill step:N|save:N|saved:N]
"""

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from maskrcnn_lit.callbacks.train_meter import TrainMeter
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.sampling import ANCHORS, random_keys
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.training.loggers import CsvLogger
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.optimizer import adamw
from maskrcnn_lit.training.trainer import build_trainer

IMAGES, BATCH, SIZE = 14, 2, 16
LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")
CATEGORIES = (Category(7, "circle"), Category(9, "square"))


class TinyModel(nn.Module):
    """Convolution, BatchNorm and linear layer; noise in every forward, so that the random state
    matters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, len(LOSSES))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, batch: Batch) -> Output:
        features = self.backbone(batch["images"] / 255).relu().mean((2, 3))  # B 4
        # As of a layer that draws for itself in training, and as the samplers do of each image's
        # seed.
        drawn = torch.rand_like(features) if self.training else 0
        noisy = features + 0.1 * (drawn + random_keys(batch["seeds"], ANCHORS, 4) / 2**31)
        terms = (self.head(noisy) - batch["labels"][:, :1].float()).square().mean(0)
        losses = dict(zip(LOSSES, terms, strict=True)) if "boxes" in batch else {}
        counts = dict.fromkeys(losses, batch["readable"].sum())
        if self.training:
            return Output(losses, counts, None, None)
        return Output(losses, counts, detections(batch), None)


def detections(batch: Batch) -> dict[str, Tensor]:
    """The ground truth as if it had been detected with score 0.9."""
    count, slots = batch["labels"].shape
    return {
        "boxes": batch["boxes"],
        "scores": torch.full((count, slots), 0.9),
        "labels": batch["labels"],
        "masks": torch.ones(count, slots, 28, 28),
        "valid": batch["valid"],
    }


class Order:
    """Batches of positions: a function of the epoch, from batch `start` on."""

    def __init__(self) -> None:
        self.epoch, self.start = 0, 0
        self.sampler = self  # Lightning looks for set_epoch here

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return IMAGES // BATCH

    def __iter__(self) -> Any:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch))
        yield from order.view(-1, BATCH)[self.start :].tolist()


class TinyImages(Dataset):
    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, i: int) -> Batch:
        return image(100 + i)


def image(image_id: int) -> Batch:
    """One image with one object, without the batch dimension."""
    label = 1 + image_id % 2
    generator = torch.Generator().manual_seed(image_id)
    return {
        "images": torch.randint(
            0, 120 * label, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8
        ),
        "image_sizes": torch.tensor([SIZE, SIZE]),
        "scales": torch.ones(2),
        "original_sizes": torch.tensor([SIZE, SIZE]),
        "image_ids": torch.tensor(image_id),
        "seeds": torch.tensor(image_id),
        "readable": torch.tensor(True),
        "boxes": torch.tensor([[2.0, 2.0, 12.0, 12.0], [0.0, 0.0, 0.0, 0.0]]),
        "labels": torch.tensor([label, 0]),
        "valid": torch.tensor([True, False]),
        "crowd": torch.tensor([False, False]),
        "masks": torch.ones(2, 8, 8, dtype=torch.uint8),
        "mask_boxes": torch.tensor([[2.0, 2.0, 12.0, 12.0], [0.0, 0.0, 0.0, 0.0]]),
    }


class TinyIndex:
    image_ids = torch.arange(100, 100 + IMAGES).numpy()

    def __len__(self) -> int:
        return IMAGES


class TinyData(LightningDataModule):
    """What training needs of CocoDataModule."""

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.workers, self.order = BATCH, workers, Order()
        self.train_index = self.val_index = self.validation_subset = TinyIndex()

    def resume(self, *, epoch: int, batch: int, together: int) -> None:
        self.order.epoch, self.order.start = epoch, batch

    def train_dataloader(self) -> DataLoader:
        kwargs: dict[str, Any] = (
            {"persistent_workers": True, "multiprocessing_context": "fork"} if self.workers else {}
        )
        return DataLoader(
            TinyImages(), batch_sampler=self.order, num_workers=self.workers, **kwargs
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TinyImages(), batch_size=4, generator=torch.Generator())


class Score(Callback):
    """Logs a val/mask_ap that rises and falls: best.ckpt is neither the first nor the last."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("val/mask_ap", (0.2, 0.6, 0.4)[trainer.current_epoch % 3])


class Kill(Callback):
    """SIGKILL, which no program can catch, after training step N (counted from the start of the
    run).
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_in_save(number: int, *, after: bool) -> None:
    """SIGKILL in the save that is the `number`-th of this process, before or right after the file
    gets its name.
    """
    replace, count = os.replace, 0

    def replace_or_die(source: Any, target: Any) -> None:
        nonlocal count
        count += str(target).endswith(".ckpt")
        if after and str(target).endswith(".ckpt"):
            replace(source, target)
        if count == number and str(target).endswith(".ckpt"):
            os.kill(os.getpid(), signal.SIGKILL)
        if not after or not str(target).endswith(".ckpt"):
            replace(source, target)

    os.replace = replace_or_die


def tiny_module(seed: int = 3, lr: float = 0.05, **optimizer: Any) -> DetectionModule:
    torch.manual_seed(0)
    numbers: dict[str, Any] = {
        **{"lr": lr, "reference_batch": BATCH, "scaling": "linear", "backbone_factor": 0.5},
        **{"weight_decay": 0.1, "betas": (0.9, 0.999), "warmup_steps": 5, "end_factor": 0.01},
        **optimizer,
    }
    config = {"optimizer": {"lr": lr}, "data": {"image_size": [SIZE, SIZE]}}
    return DetectionModule(
        model=TinyModel(),
        optimizer=partial(adamw, **numbers),
        categories=CATEGORIES,
        config=config,
        seed=seed,
    )


def tiny_trainer(run_dir: Path, callbacks: list[Callback] | None = None, **kwargs: Any) -> Trainer:
    values: dict[str, Any] = {
        **{
            "epochs": 3,
            "steps": None,
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "precision": "auto",
        },
        **{"accumulate": 1, "clip_norm": 1.0, "evaluate_every_n_epochs": 1, "log_every_n_steps": 2},
        **{"checkpoint_every_n_steps": 3, **kwargs},
    }
    loggers = [
        TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False),
        CsvLogger(path=run_dir / "metrics.csv"),
    ]
    return build_trainer(
        run_dir=run_dir, callbacks=[TrainMeter(), *(callbacks or [])], loggers=loggers, **values
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--kill", default="")
    arguments = parser.parse_args(argv)
    callbacks: list[Callback] = [Score()]
    how, _, number = arguments.kill.partition(":")
    if how == "step":
        callbacks.append(Kill(int(number)))
    elif how:
        kill_in_save(int(number), after=how == "saved")
    torch.set_num_threads(1)
    trainer = tiny_trainer(arguments.run_dir, callbacks, accumulate=arguments.accumulate)
    resume = last_checkpoint(arguments.run_dir) if arguments.resume else None
    trainer.fit(tiny_module(), datamodule=TinyData(arguments.workers), ckpt_path=resume)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
