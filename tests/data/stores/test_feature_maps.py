import os
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_file import small_index
from torch import Tensor

from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.stores.feature_maps import (
    DTYPES,
    FeatureMaps,
    Level,
    decode,
    encode,
    padded_shapes,
    piece_bytes,
)
from maskrcnn_lit.errors import UserError

LEVELS = (Level("c2", 3, 5, 7), Level("c3", 5, 3, 3))


def random_maps(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {level.key: torch.randn(*level[1:], generator=generator) * 10 - 3.0 for level in LEVELS}


def as_read(maps: dict[str, Tensor], key: str) -> Tensor:
    """The values that the model gets (`batch.stored_maps`)."""
    values = maps[key].float()
    if f"{key}_step" in maps:
        values = maps[f"{key}_low"][:, None, None] + maps[f"{key}_step"][:, None, None] * values
    return values


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_piece_has_the_maps_with_the_rounding_of_its_form(dtype: str, readable: bool):
    maps = random_maps()
    maps["c3"][1] = 0.25  # a channel without a range
    piece = encode(maps, readable, dtype)
    assert len(piece) == piece_bytes(LEVELS, dtype)
    decoded, flag = decode(piece, LEVELS, dtype)
    assert flag is readable
    for level in LEVELS:
        exact, read = maps[level.key], as_read(decoded, level.key)
        assert read.shape == exact.shape
        error = (read - exact).abs()
        if dtype == "float32":
            assert torch.equal(read, exact)
        elif dtype == "bfloat16":
            assert (error <= exact.abs() * 2**-8).all()
            assert error.max() > 0
        else:
            span = exact.amax((1, 2)) - exact.amin((1, 2))
            assert (error <= (span / 510 * 1.001 + 1e-6)[:, None, None]).all()
            assert error.max() > 0
    assert torch.allclose(as_read(decoded, "c3")[1], torch.tensor(0.25))


def store(
    index: AnnotationIndex,
    folder: Path,
    image_size: ImageSize = 64,
    key: str = "weights",
    dtype: str = "float32",
) -> FeatureMaps:
    shapes, _ = padded_shapes(index, image_size)
    levels: dict[Shape, tuple[Level, ...]] = dict.fromkeys(shapes, LEVELS)
    return FeatureMaps(
        index=index,
        image_size=image_size,
        levels=levels,
        dtype=dtype,
        key=key,
        blank={shape: random_maps(99) for shape in shapes},
        folder=folder,
    )


def test_views_are_kept_until_the_file_or_the_key_changes(tmp_path: Path):
    index = small_index(tmp_path)
    kept = store(index, tmp_path / "features")
    assert kept.missing(False) == kept.missing(True) == list(range(6))
    for i in range(6):
        kept.put(i, False, random_maps(i), readable=i != 3)
    kept.put(4, True, random_maps(14), readable=True)
    assert kept.missing(False) == []
    assert kept.missing(True) == [0, 1, 2, 3, 5]
    part = store(index.at(np.array([4, 1])), tmp_path / "features")  # a subset shares the file
    for position, i in ((0, 4), (1, 1)):
        maps, readable = part.read(position, False)
        assert readable
        assert all(torch.equal(maps[k], v) for k, v in random_maps(i).items())
    assert torch.equal(part.read(0, True)[0]["c2"], random_maps(14)["c2"])
    assert kept.read(3, False)[1] is False
    assert store(index, tmp_path / "features", key="other").missing(False) == list(range(6))
    os.utime(index.where(4), (1, 1))
    assert kept.missing(False) == [4]
    assert part.get(0, True) is None
    with pytest.raises(UserError, match=r"features of .*04\.jpg are no longer in .* resume=RUN"):
        part.read(0, False)


def test_a_damaged_piece_is_missing(tmp_path: Path):
    index = small_index(tmp_path)
    kept = store(index, tmp_path / "features")
    for i in range(6):
        kept.put(i, False, random_maps(i), readable=True)
    with open(kept.file, "r+b") as file:
        file.seek(2 * piece_bytes(LEVELS, "float32") + 40)  # of image 1, as it is
        file.write(b"\xff")
    assert store(index, tmp_path / "features").missing(False) == [1]


def test_what_a_run_needs_is_that_of_its_images_and_views(tmp_path: Path):
    index = small_index(tmp_path)
    for dtype, bytes_of_one in ((d, piece_bytes(LEVELS, d)) for d in DTYPES):
        part = store(index.at(np.array([2, 5])), tmp_path / "features", dtype=dtype)
        assert part.needed(2) == 4 * bytes_of_one
        assert part.needed(1) == 2 * bytes_of_one


def test_each_orientation_has_its_padded_size_whatever_the_subset(tmp_path: Path):
    index = small_index(tmp_path, 9)  # 60 x 100 to 110 x 75
    shapes, of_row = padded_shapes(index, (64, 100))
    assert shapes == [(64, 128), (128, 64)]
    wide = index.sizes[:, 1] >= index.sizes[:, 0]
    assert of_row.tolist() == np.where(wide, 0, 1).tolist()
    assert 0 < wide.sum() < 9
    part = index.at(np.flatnonzero(~wide))
    kept = store(part, tmp_path / "features", (64, 100))
    assert {kept.shape(i) for i in range(len(part))} == {(128, 64)}
    assert torch.equal(kept.blank((128, 64))["c2"], random_maps(99)["c2"])
