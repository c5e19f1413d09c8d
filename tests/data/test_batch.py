from pathlib import Path

import pytest
import torch
from coco_file import small_index

from maskrcnn_lit.data.batch import IMAGE_KEYS, TARGET_KEYS, Batch, check_batch
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.dataset import CocoDataset


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    dataset = CocoDataset(index=small_index(tmp_path), image_size=64, mask_size=28)
    return collate([dataset[(0, i)] for i in (3, 5)], [(64, 64)])


def test_a_batch_of_the_loader_keeps_the_contract(batch: Batch):
    check_batch(batch, num_classes=3)
    assert set(batch) == {*IMAGE_KEYS, *TARGET_KEYS, "seeds"}


@pytest.mark.parametrize("key", [*IMAGE_KEYS, *TARGET_KEYS])
def test_a_missing_key_and_another_type_are_named(batch: Batch, key: str):
    with pytest.raises(ValueError, match=rf"batch\['{key}'\] is torch.float64"):
        check_batch({**batch, key: batch[key].double()}, 3)
    del batch[key]
    with pytest.raises(ValueError, match=f"batch has no '{key}'"):
        check_batch(batch, 3)


def test_void_and_masked_are_optional(batch: Batch):
    more = {"void": torch.zeros(2, 64, 64, dtype=torch.uint8), "masked": batch["valid"]}
    check_batch(batch | more, 3)
    with pytest.raises(ValueError, match="expected BHW with H = 64"):
        check_batch(batch | {"void": more["void"][:, 1:]}, 3)
    with pytest.raises(ValueError, match="expected BG with G = 8"):
        check_batch(batch | {"masked": batch["valid"][:, 1:]}, 3)


def test_seeds_are_optional(batch: Batch):
    check_batch({key: value for key, value in batch.items() if key != "seeds"}, 3)
    check_batch(batch | {"seeds": torch.tensor([3, -4])}, 3)
    with pytest.raises(
        ValueError, match=r"batch\['seeds'\] is torch.int32 \(2,\); expected torch.int64 B"
    ):
        check_batch(batch | {"seeds": torch.tensor([3, -4], dtype=torch.int32)}, 3)


def test_sizes_must_agree(batch: Batch):
    with pytest.raises(ValueError, match=r"batch\['masks'\] is .*expected BGMM with M = 28"):
        check_batch({**batch, "masks": batch["masks"][..., :-1]}, 3)
    with pytest.raises(ValueError, match=r"batch\['labels'\] is \(1, 8\); expected BG with B = 2"):
        check_batch({**batch, "labels": batch["labels"][:1]}, 3)
    with pytest.raises(ValueError, match=r"expected torch.uint8 B3HW"):
        check_batch({**batch, "images": batch["images"][0]}, 3)


def test_values_must_be_in_range(batch: Batch):
    both = {**batch, "crowd": batch["crowd"] | batch["valid"]}
    with pytest.raises(ValueError, match="valid and crowd at once"):
        check_batch(both, 3)
    for box in ([10.0, 5, 10, 20], [-1.0, 5, 10, 20], [0.0, 0, 65, 20], [0.0, 9, 5, 8]):
        boxes = batch["boxes"].clone()
        boxes[1, 2] = torch.tensor(box)
        with pytest.raises(ValueError, match="of image 6 must have 0 <= x1 < x2 <= width"):
            check_batch({**batch, "boxes": boxes}, 3)
    with pytest.raises(ValueError, match=r"labels must be 1\.\.2 in filled slots"):
        check_batch(batch, 2)
    labels = batch["labels"].clone()
    labels[0, -1] = 1  # padding
    with pytest.raises(ValueError, match="and 0 in padding"):
        check_batch({**batch, "labels": labels}, 3)
