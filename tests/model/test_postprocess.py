import numpy as np
import pycocotools.mask
import pytest
import torch

from maskrcnn_lit.model.postprocess import original_boxes, to_original


def test_boxes_go_back_to_the_original_image():
    scale = torch.tensor([0.5, 0.25])  # y, x
    boxes = original_boxes(torch.tensor([[10.0, 10, 20, 20], [-3, 90, 30, 200]]), scale, 100, 110)
    assert boxes.tolist() == [[40, 20, 80, 40], [0, 100, 110, 100]]


def detections() -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(
            [[[2.0, 4, 10, 20], [4, 4, 8, 8], [0, 0, 0, 0]], [[0.0, 0, 30, 10], [0] * 4, [0] * 4]]
        ),
        "scores": torch.tensor([[0.9, 0.4, 0], [0.8, 0, 0]]),
        "labels": torch.tensor([[2, 1, 0], [3, 0, 0]]),
        "masks": torch.ones(2, 3, 28, 28),
        "valid": torch.tensor([[True, True, False], [True, False, False]]),
    }


def test_to_original():
    batch = {
        "image_ids": torch.tensor([7, 2**40]),
        "scales": torch.tensor([[0.5, 0.5], [2.0, 1.0]]),
        "original_sizes": torch.tensor([[50, 60], [5, 30]]),
    }
    first, second = to_original(detections(), batch)
    assert (first["image_id"], second["image_id"]) == (7, 2**40)
    assert first["boxes"].tolist() == [[4, 8, 20, 40], [8, 8, 16, 16]]
    assert second["boxes"].tolist() == [[0, 0, 30, 5]]
    assert first["boxes"].dtype == np.float32
    assert first["labels"].tolist() == [2, 1]
    assert second["labels"].tolist() == [3]
    assert first["scores"].tolist() == pytest.approx([0.9, 0.4])
    assert [len(first["masks"]), len(second["masks"])] == [2, 1]
    assert first["masks"][0]["size"] == [50, 60]
    assert isinstance(first["masks"][0]["counts"], bytes)
    inside = pycocotools.mask.decode(first["masks"][0])
    assert inside[9:39, 5:19].all()
    assert inside.sum() <= 35 * 19
    assert pycocotools.mask.decode(second["masks"][0]).all(), "a full mask over the whole image"


def test_everything_is_moved_to_the_host_once(monkeypatch: pytest.MonkeyPatch):
    moved: list[torch.Size] = []
    plain = torch.Tensor.cpu

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.shape)
        return plain(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", seen)
    batch = {
        "image_ids": torch.tensor([7, 8]),
        "scales": torch.ones(2, 2),
        "original_sizes": torch.tensor([[50, 60], [40, 30]]),
    }
    given = detections()
    to_original(given, batch)
    assert moved[: len(given) + 2] == [
        *(value.shape for value in given.values()),
        batch["scales"].shape,
        batch["original_sizes"].shape,
    ]


def test_an_image_without_detections():
    empty = detections()
    empty["valid"][:] = False
    sizes = {
        "scales": torch.ones(2, 2),
        "original_sizes": torch.full((2, 2), 20),
        "image_ids": torch.tensor([1, 2]),
    }
    for image in to_original(empty, sizes):
        assert image["boxes"].shape == (0, 4)
        assert image["masks"] == []
        assert len(image["scores"]) == 0


BATCH = {  # an image of 50 x 45 pixels at its own size
    "image_ids": torch.tensor([7]),
    "scales": torch.ones(1, 2),
    "original_sizes": torch.tensor([[50, 45]]),
}


def test_a_pixel_of_exclusive_masks_belongs_to_the_best_detection():
    torch.manual_seed(0)
    given = {
        "boxes": torch.tensor([[[2.0, 2, 30, 30], [10, 10, 40, 40], [5, 5, 25, 25], [0, 0, 9, 9]]]),
        "scores": torch.tensor([[0.9, 0.8, 0.7, 0.6]]),
        "labels": torch.tensor([[1, 2, 1, 2]]),
        "masks": torch.ones(1, 4, 28, 28),
        "valid": torch.ones(1, 4, dtype=torch.bool),
    }
    plain = to_original(given, BATCH)[0]
    found = to_original(given | {"exclusive": given["valid"]}, BATCH)[0]
    masks = pycocotools.mask.decode(plain["masks"]).astype(bool)
    assert masks.sum(2).max() > 1
    expected = [masks[..., 0], masks[..., 1] & ~masks[..., 0], masks[..., 3] & ~masks[..., 0]]
    # the third lies in the first: no pixel is left of it
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert found["labels"].tolist() == [1, 2, 2]
    assert len(found["boxes"]) == 3
    np.testing.assert_array_equal(
        pycocotools.mask.decode(found["masks"]).astype(bool), np.stack(expected, 2)
    )


def test_a_detection_below_the_threshold_of_its_class_takes_no_pixel():
    given = {
        "boxes": torch.tensor([[[2.0, 2, 30, 30], [2, 2, 30, 30], [2, 2, 30, 30]]]),
        "scores": torch.tensor([[0.6, 0.5, 0.4]]),
        "labels": torch.tensor([[2, 1, 1]]),
        "masks": torch.ones(1, 3, 28, 28),
        "valid": torch.ones(1, 3, dtype=torch.bool),
    }
    thresholds = np.array([0.5, 0.7])  # the first detection does not reach that of its class
    (alone,) = to_original(given, BATCH, thresholds)
    assert alone["scores"].tolist() == [0.5]
    (found,) = to_original(given | {"exclusive": given["valid"]}, BATCH, thresholds)
    assert found["labels"].tolist() == [1]
    assert found["masks"] == alone["masks"]


def test_exclusive_masks_of_an_image_without_detections():
    empty = {
        "boxes": torch.zeros(1, 2, 4),
        "scores": torch.zeros(1, 2),
        "labels": torch.zeros(1, 2, dtype=torch.int64),
        "masks": torch.zeros(1, 2, 28, 28),
        "valid": torch.zeros(1, 2, dtype=torch.bool),
        "exclusive": torch.zeros(1, 2, dtype=torch.bool),
    }
    assert to_original(empty, BATCH)[0]["masks"] == []
