"""Samples become batches of few shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from coco_file import small_index

from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.dataset import CocoDataset


def test_batches_have_few_shapes(tmp_path: Path):
    index = small_index(tmp_path, 8)
    dataset = CocoDataset(index=index, image_size=(64, 100), mask_size=28)
    samples = [dataset[(0, i)] for i in range(len(dataset))]
    for chosen in ([0], [1, 4], list(range(8))):
        batch = collate([samples[i] for i in chosen])
        shapes = np.array([samples[i]["images"].shape for i in chosen])
        assert batch["images"].shape[2:] == tuple(-(-shapes[:, d].max() // 32) * 32 for d in (1, 2))
        assert batch["boxes"].shape == (len(chosen), 8, 4)
        assert batch["masks"].shape == (
            len(chosen),
            8,
            28,
            28,
        )
        for b, i in enumerate(chosen):
            height, width = batch["image_sizes"][b]
            assert torch.equal(batch["images"][b, :, :height, :width], samples[i]["images"])
            assert not batch["images"][b, :, height:].any()
            assert not batch["images"][b, :, :, width:].any()
            assert torch.allclose(
                batch["scales"][b] * batch["original_sizes"][b], batch["image_sizes"][b].float()
            )
    square = CocoDataset(index=index, image_size=96, mask_size=28)
    assert collate([square[(0, 3)]], [(96, 96)])["images"].shape == (1, 3, 96, 96)


@pytest.mark.parametrize(
    ("most", "slots"), [(0, 8), (8, 8), (9, 16), (32, 32), (33, 64), (64, 64), (375, 512)]
)
def test_slots_are_powers_of_two(tmp_path: Path, most: int, slots: int):
    sample = CocoDataset(index=small_index(tmp_path), image_size=64, mask_size=14)[(0, 0)]
    keys = ("boxes", "labels", "valid", "crowd", "masks", "mask_boxes")
    full = sample | {key: sample[key].new_ones(most, *sample[key].shape[1:]) for key in keys}
    assert collate([sample, full], [(64, 64)])["boxes"].shape[1] == slots


@pytest.mark.parametrize(
    ("least", "slots"), [(1, 16), (8, 16), (16, 16), (17, 32), (64, 64), (100, 128)]
)
def test_there_are_so_many_slots_at_least(tmp_path: Path, least: int, slots: int):
    sample = CocoDataset(index=small_index(tmp_path), image_size=64, mask_size=14)[(0, 0)]
    keys = ("boxes", "labels", "valid", "crowd", "masks", "mask_boxes")
    full = sample | {key: sample[key].new_ones(12, *sample[key].shape[1:]) for key in keys}
    batch = collate([full], [(64, 64)], least)
    assert batch["boxes"].shape[1] == slots
    assert batch["valid"].sum() == 12
