import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from coco_file import small_index

from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.data.stores.resized_images import ResizedImages, choose_resized
from maskrcnn_lit.data.transforms import Augment
from maskrcnn_lit.errors import UserError


def test_images_are_kept_at_their_fitted_size_until_the_file_changes(tmp_path: Path):
    index = small_index(tmp_path)
    sizes = fitted_sizes(index.sizes, 64)
    kept = ResizedImages(index, 64, tmp_path / "cache")
    pictures = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        for i, size in enumerate(sizes)
    ]
    assert all(kept.get(i) is None for i in range(len(index)))
    for i, picture in enumerate(pictures):
        kept.put(i, picture)
    part = index.at(np.array([4, 1]))
    again = ResizedImages(part, 64, tmp_path / "cache")  # another subset shares the file
    assert np.array_equal(again.get(0), pictures[4])
    assert np.array_equal(again.get(1), pictures[1])
    assert ResizedImages(index, (64, 100), tmp_path / "cache").get(1) is None
    assert ResizedImages(replace(index, bits=12), 64, tmp_path / "cache").get(1) is None
    os.utime(index.where(4), (1, 1))
    assert again.get(0) is None
    assert np.array_equal(again.get(1), pictures[1])


def choose(
    tmp_path: Path,
    mode: str,
    image_size: ImageSize = 128,
    augment: Augment | None = None,
    cache_gb: float = 1,
) -> tuple[ResizedImages | None, str]:
    return choose_resized(
        mode, small_index(tmp_path), image_size, augment, tmp_path / "cache", cache_gb
    )


def test_auto_keeps_small_images_that_views_only_shrink(tmp_path: Path):
    for size in (128, 512, (256, 512)):
        kept, told = choose(tmp_path, "auto", size, Augment(flip=0.5, scale=(0.5, 1.0)))
        assert kept is not None
        assert f"resized images are cached in {tmp_path}/cache/images, up to 0.0" in told
    for size, augment in (
        (513, None),
        ((500, 800), None),
        (128, Augment(scale=(0.8, 1.2))),
        (128, Augment(crop=0.5)),
    ):
        assert choose(tmp_path, "auto", size, augment) == (None, "")
    assert choose(tmp_path, "off") == (None, "")
    assert choose(tmp_path, "on", 800)[0] is not None


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_auto_keeps_none_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, told = choose(tmp_path, "auto", cache_gb=1e-6)
    assert kept is None
    assert told.startswith(
        "data.image_cache=auto: off, since resized images need 0.0 GB and 0.0 GB may be used"
    )
    assert choose(tmp_path, "on", cache_gb=1e-6)[0] is not None  # as was asked
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100, 99, 1))
    assert choose(tmp_path, "auto")[0] is None


def test_what_cannot_be_kept_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.image_cache=maybe is unknown: use auto, on or off"):
        choose(tmp_path, "maybe")
    for augment in (Augment(scale=(0.8, 1.2)), Augment(crop=0.5)):
        with pytest.raises(
            UserError,
            match=r"data\.image_cache=on stores .* use data\.image_cache=off, or augment\.cr",
        ):
            choose(tmp_path, "on", augment=augment)
