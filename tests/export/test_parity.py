import pytest
import torch
from torch import Tensor

from maskrcnn_lit.export.parity import Parity

SLOTS = 5


def detections() -> dict[str, Tensor]:
    """Two images: three detections, the first two with equal scores, and none."""
    boxes = torch.zeros(2, SLOTS, 4)
    boxes[0, :3] = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 9, 9]])
    scores, labels = torch.zeros(2, SLOTS), torch.zeros(2, SLOTS, dtype=torch.int64)
    scores[0, :3], labels[0, :3] = torch.tensor([0.9, 0.9, 0.2]), torch.tensor([1, 2, 1])
    masks = torch.full((2, SLOTS, 4, 4), 0.5)
    return {
        "boxes": boxes,
        "scores": scores,
        "labels": labels,
        "masks": masks,
        "valid": scores > 0,
    }


def compared(found: dict[str, Tensor], threshold: float = 0.05) -> Parity:
    parity = Parity()
    parity.add(detections(), found, threshold)
    return parity


def test_equal_detections_have_no_difference_in_any_order():
    assert compared(detections()) == Parity(images=2, detections=3)
    swapped = {name: value[:, [1, 0, 2, 3, 4]] for name, value in detections().items()}
    assert compared(swapped) == Parity(images=2, detections=3)
    assert compared(swapped).broken() == []


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [("boxes", 0.009, 0.011), ("scores", 0.9e-5, 1.2e-5), ("masks", 0.9e-4, 1.1e-4)],
)
def test_a_number_is_within_its_bound_or_not(name: str, small: float, large: float):
    for change, holds in ((small, True), (large, False)):
        found = detections()
        found[name][0, 1] += change
        parity = compared(found)
        assert getattr(parity, name) == pytest.approx(change, rel=0.1)
        assert [text.split()[0] for text in parity.broken()] == ([] if holds else [name])


def test_of_a_refined_mask_a_few_pixels_may_differ_and_no_more():
    found = detections()
    found["masks"][0, 1, 0, :2] += 0.3
    for share, differ in ((0.0, True), (1 / 16, True), (2 / 16, False)):
        parity = Parity()
        parity.add(detections(), found, 0.05, share)
        assert parity.masks == pytest.approx(0.3 if differ else 0.0)
    found["masks"][0, 1, 0, 0] = torch.nan
    parity = Parity()
    parity.add(detections(), found, 0.05, 1 / 16)
    assert parity.masks == pytest.approx(0.3)
    found["masks"][0, 1] = torch.nan
    parity.add(detections(), found, 0.05, 1 / 16)
    assert parity.masks == torch.inf


def test_another_label_or_a_missing_detection_is_told():
    found = detections()
    found["labels"][0, 0] = 3
    assert compared(found).unmatched == 2
    assert compared(found).broken() == ["2 detections differ"]
    found = detections()
    found["valid"][0, 0] = False
    assert compared(found).unmatched == 1
    found = detections()
    found["valid"][1, 0] = True
    found["scores"][1, 0] = 0.4
    assert compared(found).unmatched == 1


def test_one_at_the_threshold_may_be_missing():
    found = detections()
    found["valid"][0, 2] = False
    assert compared(found, threshold=0.2 - 0.5e-5).broken() == []
    assert compared(found, threshold=0.19).broken() == ["1 detections differ"]


def test_a_number_that_is_not_one_breaks_the_bound():
    found = detections()
    found["masks"][0, 0] = torch.nan
    assert [text.split()[0] for text in compared(found).broken()] == ["masks"]
