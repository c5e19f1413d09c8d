"""Cutouts are the pixels of the file, stored or not, and a changed file has none."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_file import small_index
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.stores.cutouts import Cutouts, choose_cutouts
from maskrcnn_lit.data.transforms import SampledTransform, resample

LAST = 5  # an image with five annotations


class Reader:
    """Reads images, and counts them."""

    def __init__(self, index: AnnotationIndex) -> None:
        self.index, self.count = index, 0

    def __call__(self, i: int, view: SampledTransform) -> Tensor | None:
        self.count += 1
        pixels, factor = self.index.decode(i)
        return resample(pixels, factor, view)


def first_usable(index: AnnotationIndex) -> int:
    """The row of the first object of image LAST that can be pasted."""
    begin, end = index.span(LAST)
    return begin + int(Cutouts(index, 200, None).usable[begin:end].argmax())


def cut(cutouts: Cutouts, read: Any, chosen: list[int]) -> list[NDArray[np.uint8]] | None:
    boxes = cutouts.index.annotations(LAST)["boxes"]
    return cutouts.get(LAST, boxes, np.array(chosen), read)


def test_they_are_the_pixels_of_the_file_and_are_read_once(tmp_path: Path):
    index = small_index(tmp_path, 6)
    cutouts, read = Cutouts(index, 200, tmp_path / "cache"), Reader(index)
    boxes = index.annotations(LAST)["boxes"]
    usable = np.flatnonzero(cutouts.usable[slice(*index.span(LAST))]).tolist()
    assert usable == [j for j in range(5) if not index.annotations(LAST)["crowd"][j]]
    pixels, _ = index.decode(LAST)
    for _ in range(2):
        for n, piece in zip(usable, cut(cutouts, read, usable) or [], strict=True):
            x1, y1, x2, y2 = cutouts.bounds(LAST, boxes[n : n + 1])[0].tolist()
            assert np.array_equal(piece, pixels[y1:y2, x1:x2])
            assert (boxes[n, :2] >= [x1, y1]).all()
            assert (boxes[n, 2:] <= [x2, y2]).all()
    assert read.count == 1
    again = Cutouts(index, 200, tmp_path / "cache")
    assert np.array_equal((cut(again, read, usable[1:2]) or [])[0], cut(cutouts, read, usable)[1])
    assert read.count == 1
    os.utime(index.where(LAST), (1, 1))
    cut(again, read, usable[:1])
    assert read.count == 2


def test_without_a_store_they_are_the_same(tmp_path: Path):
    index = small_index(tmp_path, 6)
    for size in (200, 64, (40, 80)):
        stored, bare = Cutouts(index, size, tmp_path / "cache"), Cutouts(index, size, None)
        read = Reader(index)
        chosen = np.flatnonzero(stored.usable[slice(*index.span(LAST))]).tolist()
        for _ in range(2):
            pairs = zip(cut(stored, read, chosen), cut(bare, read, chosen), strict=True)
            assert all(np.array_equal(*pair) for pair in pairs)
        assert read.count == 3
        height, width = stored.sizes[index.rows[LAST]]
        assert height <= index.size(LAST)[0]
        assert max(height, width) <= (size if isinstance(size, int) else size[1])


def test_an_image_that_cannot_be_read_has_none(tmp_path: Path):
    index = small_index(tmp_path, 6)
    assert cut(Cutouts(index, 200, tmp_path / "cache"), lambda i, view: None, [0]) is None


def test_images_are_those_with_an_object_to_paste(tmp_path: Path):
    index = small_index(tmp_path, 6)
    assert Cutouts(index, 200, None).images().tolist() == [1, 2, 3, 4, 5]
    assert Cutouts(index.at(np.array([4, 0])), 200, None).images().tolist() == [0]


def test_they_are_stored_where_there_is_room(tmp_path: Path):
    index = small_index(tmp_path, 6)
    calls = Reader(index)
    for mode, gigabytes, said, stored in (
        ("auto", 1, f"cached in {tmp_path}/cache/cutouts", True),
        ("on", 1, "cached in", True),
        ("off", 1, "slower: data.image_cache=off", False),
        ("auto", 1e-9, "slower: they need 0.0 GB and 0.0 GB may be used", False),
    ):
        cutouts, line = choose_cutouts(mode, index, 64, tmp_path / "cache", gigabytes)
        assert said in line
        before, own = calls.count, [first_usable(index) - index.span(LAST)[0]]
        cut(cutouts, calls, own)
        cut(cutouts, calls, own)
        assert calls.count - before == (0 if stored and before else 1 if stored else 2)


def test_a_set_with_nothing_to_paste_is_told(tmp_path: Path):
    cutouts, line = choose_cutouts(
        "auto", small_index(tmp_path, 6).at(np.array([0])), 64, tmp_path / "cache", 1
    )
    assert not len(cutouts.images())
    assert "nothing to paste: every object is a crowd region, has no mask, or has a box of" in line
    assert "over 25% of its image" in line


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_a_box_of_more_than_a_quarter_of_the_image_has_none(tmp_path: Path, share: float):
    index = small_index(tmp_path, 6)
    height, width = index.size(LAST)
    boxes = np.array(index.packed.arrays.boxes)
    row = first_usable(index)
    boxes[row] = [0, 0, width, share * height]
    index.packed.arrays.__dict__["boxes"] = boxes
    cutouts = Cutouts(index, 200, None)
    assert cutouts.usable[row] == (share < 0.25)
