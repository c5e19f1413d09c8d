"""Scenes of two rectangles, and a real module to train on them: for tests of whole training
steps.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from tiny_run import CATEGORIES
from torch.utils.data import DataLoader, Dataset

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.loaders import CudaPrefetcher, Loader
from maskrcnn_lit.training.module import DetectionModule

SIZE, BATCH, STEPS, SLOTS = 128, 4, 16, 4


def scene(i: int) -> Batch:
    """Two bright rectangles on noise, without the batch dimension."""
    generator = torch.Generator().manual_seed(i)
    images = torch.randint(0, 80, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    boxes, labels = torch.zeros(SLOTS, 4), torch.zeros(SLOTS, dtype=torch.int64)
    for slot in range(2):
        x, y = torch.randint(0, SIZE - 60, (2,), generator=generator).tolist()
        width, height = torch.randint(20, 60, (2,), generator=generator).tolist()
        labels[slot] = 1 + (i + slot) % 2
        images[int(labels[slot]), y : y + height, x : x + width] = 250
        boxes[slot] = torch.tensor([x, y, x + width, y + height])
    valid = labels > 0
    return {
        **{
            "images": images,
            "image_sizes": torch.tensor([SIZE, SIZE]),
            "original_sizes": torch.tensor([SIZE, SIZE]),
        },
        **{
            "scales": torch.ones(2),
            "image_ids": torch.tensor(i),
            "readable": torch.tensor(True),
            "seeds": torch.tensor(i),
        },
        **{"boxes": boxes, "labels": labels, "valid": valid, "crowd": torch.zeros_like(valid)},
        **{"masks": valid[:, None, None].repeat(1, 28, 28).byte(), "mask_boxes": boxes.clone()},
    }


class Held(Dataset[Batch]):
    """What is in a list."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


class Scenes(LightningDataModule):
    batch_size = BATCH
    train_index = range(BATCH * STEPS)  # its length counts

    def train_dataloader(self) -> Loader:
        scenes = Held([scene(i) for i in range(BATCH * STEPS)])
        cuda = torch.cuda.is_available()
        loader = DataLoader(scenes, batch_size=BATCH, pin_memory=cuda)
        return CudaPrefetcher(loader, torch.device("cuda")) if cuda else loader

    def resume(self, *, epoch: int, batch: int, together: int) -> None:
        raise NotImplementedError


def real_module(
    *, channels_last: bool = True, options: Sequence[str] = ("model=tiny",)
) -> DetectionModule:
    """A Mask R-CNN, by default the tiny one, on a ResNet-18, from the same random weights each
    time.
    """
    config = compose("train", ["backbone=resnet18", "data=shapes", "optimizer.lr=1e-3", *options])
    config.model.num_classes = len(CATEGORIES)
    torch.manual_seed(0)
    model = build(config.model)
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    return DetectionModule(
        model=model, optimizer=build(config.optimizer), categories=CATEGORIES, config={}, seed=1
    )
