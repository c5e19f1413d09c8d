from pathlib import Path

import numpy as np
import pytest
from coco_file import small_index

import maskrcnn_lit.data.stores.mask_crops as module
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.rasterize import mask_crops
from maskrcnn_lit.data.stores.mask_crops import MaskCrops


def rasterised(index: AnnotationIndex, i: int, side: int) -> np.ndarray:
    boxes = index.annotations(i)["boxes"]
    return mask_crops([index.outline(i, j) for j in range(len(boxes))], boxes, index.size(i), side)


@pytest.mark.parametrize("side", [28, 112, 15, 1])
def test_crops_are_as_rasterised_and_mirrored_left_to_right(tmp_path: Path, side: int):
    index = small_index(tmp_path)
    crops = MaskCrops(index, side, tmp_path / "cache")
    for _ in range(2):  # made, and then kept
        for i in range(len(index)):
            boxes = index.annotations(i)["boxes"]
            expected = rasterised(index, i, side)
            found, held = crops.of(i, boxes)
            mirrored, _ = crops.of(i, boxes, mirrored=True)
            assert found.shape == (len(boxes), side, side)
            assert found.dtype == np.uint8
            assert np.array_equal(found, expected)
            assert np.array_equal(mirrored, expected[:, :, ::-1])
            assert held.tolist() == expected.any((1, 2)).tolist()


def test_a_polygon_is_rasterised_once_for_all_runs_and_subsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index = small_index(tmp_path)
    expected = rasterised(index, 4, 28)
    MaskCrops(index, 28, tmp_path / "cache").of(4, index.annotations(4)["boxes"])

    def again(*_: object) -> None:
        raise AssertionError("rasterised again")

    monkeypatch.setattr(module, "mask_crops", again)
    part = small_index(tmp_path).with_ids([int(index.image_ids[4])])
    found, _ = MaskCrops(part, 28, tmp_path / "cache").of(0, part.annotations(0)["boxes"])
    assert np.array_equal(found, expected)
    with pytest.raises(
        AssertionError, match="rasterised again"
    ):  # of another size they are other crops
        MaskCrops(part, 56, tmp_path / "cache").of(0, part.annotations(0)["boxes"])


def test_crops_of_train2017_take_little(tmp_path: Path):
    """860,001 crops of 112 x 112 bits."""
    index = small_index(tmp_path)
    crops = MaskCrops(index, 112, tmp_path / "cache")
    bytes_each = (crops._stored.spans[:, 1] - crops._stored.spans[:, 0]).sum() / len(
        index.packed.arrays.ids
    )
    assert 860_001 * bytes_each == pytest.approx(1.35e9, rel=0.01)
