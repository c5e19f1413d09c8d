import math
from typing import Any

import pytest
import torch
from models import make_batch, make_model

from maskrcnn_lit.data.batch import TARGET_KEYS, check_batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.roi_accuracy import DEFINITIONS, RoiAccuracy, roi_accuracy_line

NAMES = ("ant", "bee", "cow", "dog")


def _batch(ids: list[int]) -> dict[str, torch.Tensor]:
    """Each image: two objects, a crowd region, padding."""
    size = len(ids)
    return {
        "image_ids": torch.tensor(ids),
        "readable": torch.ones(size, dtype=torch.bool),
        "labels": torch.tensor([[1, 2, 3, 0]]).expand(size, 4),
        "valid": torch.tensor([[True, True, False, False]]).expand(size, 4),
        "crowd": torch.tensor([[False, False, True, False]]).expand(size, 4),
    }


def test_counts_objects_only_and_background_as_wrong() -> None:
    accuracy = RoiAccuracy()
    accuracy.update(torch.tensor([[1, 0, 3, 0], [1, 2, 0, 0]]), _batch([5, 6]))  # 1 of 2 and 2 of 2
    assert accuracy.compute() == pytest.approx(3 / 4)
    assert accuracy.per_class(NAMES) == pytest.approx(
        {"ant": 1, "bee": 0.5, "cow": math.nan, "dog": math.nan}, nan_ok=True
    )


def test_unreadable_images_do_not_count() -> None:
    batch = _batch([5, 6])
    batch["readable"] = torch.tensor([True, False])
    for boxes, expected in (("all", 1.0), ("study", 2 / 15)):
        accuracy = RoiAccuracy(boxes)
        accuracy.update(torch.tensor([[1, 2, 0, 4], [0, 0, 0, 0]]), batch)
        assert accuracy.compute() == pytest.approx(expected)


def test_an_image_counts_once_over_batches_and_processes() -> None:
    first, second = RoiAccuracy(), RoiAccuracy()
    first.update(torch.tensor([[1, 2, 0, 0]]), _batch([5]))
    first.update(torch.tensor([[1, 2, 0, 0]]), _batch([5]))
    second.update(torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0]]), _batch([5, 6]))
    first.merge(second)
    assert first.compute() == pytest.approx(2 / 4)
    assert first.per_class(NAMES[:2]) == {"ant": 0.5, "bee": 0.5}


def test_nothing_seen_is_nan() -> None:
    assert math.isnan(RoiAccuracy().compute())
    assert all(map(math.isnan, RoiAccuracy("study").per_class(NAMES).values()))


def test_the_study_counts_fifteen_slots_and_the_empty_ones_too() -> None:
    """Of two objects one is right; 13 slots are empty, and right where the head says background to
    an empty box.
    """
    batch = _batch([5, 6])
    for empty, expected in (([0, 0], 28 / 30), ([0, 1], 15 / 30), ([3, 1], 2 / 30)):
        accuracy = RoiAccuracy("study")
        accuracy.update(torch.tensor([[1, 0, 3, answer] for answer in empty]), batch)
        assert accuracy.compute() == pytest.approx(expected)
        assert accuracy.per_class(NAMES[:2]) == {"ant": 1.0, "bee": 0.0}, (
            "the empty slots are of no class"
        )


def test_the_study_does_not_depend_on_what_else_is_in_the_batch() -> None:
    """The two objects in a batch without any padding, and in one with much of it."""
    accuracies = []
    for slots in (2, 32):
        batch = {
            key: value[:, :2] if value.ndim == 2 else value for key, value in _batch([5]).items()
        }
        batch |= {
            key: torch.nn.functional.pad(batch[key], (0, slots - 2))
            for key in ("labels", "valid", "crowd")
        }
        accuracy = RoiAccuracy("study")
        answers = torch.tensor([[1, 2, *[4] * (slots - 2), 0]])
        accuracy.update(answers, accuracy.prepare(batch))
        accuracies.append(accuracy.compute())
    assert accuracies == [1.0, 1.0]


def test_the_study_gives_every_image_one_empty_slot_more() -> None:
    """All of a batch's targets grow by zeros, so losses and detections do not see it."""
    batch = make_batch(objects=4, slots=4)
    prepared = RoiAccuracy("study").prepare(batch)
    check_batch(prepared, num_classes=3)
    for key, value in batch.items():
        if key in TARGET_KEYS:
            assert prepared[key].shape[1] == 5, key
            assert not prepared[key][:, 4].any(), key
            assert torch.equal(prepared[key][:, :4], value), key
        else:
            assert prepared[key] is value
    assert RoiAccuracy("all").prepare(batch) is batch
    model = make_model(norm="frozen").eval()
    with torch.no_grad():
        plain, more = model(batch), model(prepared)
    assert {k: v.item() for k, v in more.losses.items()} == pytest.approx(
        {k: v.item() for k, v in plain.losses.items()}, rel=1e-5
    )
    assert torch.equal(more.box_labels[:, :4], plain.box_labels)
    assert torch.equal(more.detections["boxes"], plain.detections["boxes"])


def test_the_study_takes_the_first_fifteen_objects() -> None:
    """Of 16 objects the first, a crowd region between them, and no empty slot."""
    batch = {
        "image_ids": torch.tensor([5]),
        "readable": torch.tensor([True]),
        "labels": torch.tensor([[1, 3, *[1] * 14, 2, 0]]),
        "valid": torch.tensor([[True, False, *[True] * 15, False]]),
    }
    accuracy = RoiAccuracy("study")
    accuracy.update(torch.tensor([[0, 3, *[1] * 14, 2, 0]]), batch)
    assert accuracy.compute() == pytest.approx(14 / 15)
    assert math.isnan(accuracy.per_class(NAMES)["bee"])


@pytest.mark.parametrize("boxes", ["first", None, True, 1, ["all"], {"all": 1}, math.nan])
def test_another_choice_is_named(boxes: Any) -> None:
    with pytest.raises(UserError, match=r"metrics.roi_accuracy.boxes=.* use all or study"):
        RoiAccuracy(boxes)


def test_the_study_needs_an_empty_slot() -> None:
    batch = _batch([5])
    batch["labels"] = torch.tensor([[1, 2, 3, 1]])
    with pytest.raises(ValueError, match="pass the result of `prepare` to the model"):
        RoiAccuracy("study").update(torch.tensor([[1, 0, 3, 2]]), batch)


@pytest.mark.parametrize("boxes", DEFINITIONS)
def test_the_line_says_briefly_what_the_number_is(boxes: str) -> None:
    line = roi_accuracy_line(0.5, boxes)
    assert line.startswith("roi_accuracy 0.500: share of ")
    assert len(line) <= 80
    assert "not AP" in line
    assert "not an AP" in DEFINITIONS[boxes]
    assert roi_accuracy_line(math.nan, boxes).startswith("roi_accuracy -: ")
