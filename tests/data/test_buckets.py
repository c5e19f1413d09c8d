import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_lit.data.buckets import bucket_groups, bucket_shapes, padding_overhead
from maskrcnn_lit.data.coco.parse import read_instances
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes

SIDES = st.integers(8, 3000)
FILES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=30)
IMAGE_SIZES = st.sampled_from(
    [256, 100, (800, 1333), (600, 1000), (256, 256), (100, 110), (64, 2000)]
)


def fitted(files: list[tuple[int, int]], image_size: ImageSize) -> np.ndarray:
    return fitted_sizes(np.array(files), image_size)


@given(FILES, IMAGE_SIZES)
@settings(max_examples=200, deadline=None)
def test_each_image_is_in_one_group_and_fits_there(
    files: list[tuple[int, int]], image_size: ImageSize
):
    sizes = fitted(files, image_size)
    shapes = bucket_shapes(sizes, image_size)
    groups = bucket_groups(sizes, shapes)
    everyone = np.concatenate([group for chain in groups for group in chain])
    assert sorted(everyone.tolist()) == list(range(len(sizes)))
    for chain, members in zip(shapes, groups, strict=True):
        for shape, group in zip(chain, members, strict=True):
            assert (sizes[group] <= shape).all()
        for small, large in itertools.pairwise(chain):  # so that what fits one fits those behind it
            assert small != large
            assert small[0] <= large[0]
            assert small[1] <= large[1]


@given(FILES, IMAGE_SIZES)
@settings(max_examples=100, deadline=None)
def test_shapes_are_few_and_of_whole_steps(files: list[tuple[int, int]], image_size: ImageSize):
    shapes = bucket_shapes(fitted(files, image_size), image_size)
    assert 1 <= len(shapes) <= 2
    assert all(1 <= len(chain) <= 3 for chain in shapes)
    assert all(side % 32 == 0 for chain in shapes for shape in chain for side in shape)
    if isinstance(image_size, tuple):
        short, longest = (-(-side // 32) * 32 for side in image_size)
        assert all(min(shape) == short for chain in shapes for shape in chain)
        assert all(max(chain[-1]) == longest for chain in shapes)


@given(FILES, IMAGE_SIZES, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_fewer_lengths_hold_all_images_too(
    files: list[tuple[int, int]], image_size: ImageSize, most: int
):
    sizes = fitted(files, image_size)
    shapes = bucket_shapes(sizes, image_size, most)
    assert all(1 <= len(chain) <= most for chain in shapes)
    members = np.concatenate([group for chain in bucket_groups(sizes, shapes) for group in chain])
    assert sorted(members.tolist()) == list(range(len(sizes)))
    whole = bucket_shapes(sizes, image_size)
    assert [chain[-1] for chain in shapes] == [chain[-1] for chain in whole]
    assert padding_overhead(sizes, shapes) >= padding_overhead(sizes, whole)


@given(FILES)
@settings(max_examples=60, deadline=None)
def test_no_other_lengths_would_pad_less(files: list[tuple[int, int]]):
    sizes = fitted(files, (96, 320))
    sizes = sizes[sizes[:, 1] >= sizes[:, 0]]
    if not len(sizes):
        return
    least = min(
        sum(
            96 * min(length for length in (*two, 320) if length >= width)
            for width in sizes[:, 1].tolist()
        )
        for two in itertools.combinations_with_replacement(range(32, 321, 32), 2)
    )
    chosen = padding_overhead(sizes, bucket_shapes(sizes, (96, 320)))
    assert chosen == pytest.approx(least / sizes.prod(1).sum() - 1)


@pytest.mark.parametrize(("side", "padded"), [(256, 256), (100, 128), (33, 64), (32, 32)])
def test_a_square_has_one_shape(side: int, padded: int):
    sizes = fitted([(50, 80), (80, 50), (40, 40)], side)
    shapes = bucket_shapes(sizes, side)
    assert shapes == [[(padded, padded)]]
    assert bucket_groups(sizes, shapes)[0][0].tolist() == [0, 1, 2]
    assert padding_overhead(sizes, shapes) == pytest.approx(3 * padded**2 / sizes.prod(1).sum() - 1)


def test_an_orientation_that_is_not_there_has_no_shapes():
    lying, upright = [(480, 640), (400, 640)], [(640, 480)]
    ((landscape, *_),) = [bucket_shapes(fitted(lying, (800, 1333)), (800, 1333))]
    assert landscape == [(800, 1088), (800, 1280), (800, 1344)]
    assert bucket_shapes(fitted(upright, (800, 1333)), (800, 1333)) == [[(1088, 800), (1344, 800)]]
    both = bucket_shapes(fitted(lying + upright, (800, 1333)), (800, 1333))
    assert [len(chain) for chain in both] == [3, 2]
    assert bucket_groups(fitted(upright + lying, (800, 1333)), both)[1][0].tolist() == [0]


@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_little_of_coco_is_padding(test_data: Path, part: str):
    file = test_data / f"coco_mini/annotations/instances_{part}.json"
    images = read_instances(file.read_bytes(), str(file)).images
    sizes = fitted([(image.height, image.width) for image in images], (800, 1333))
    assert 0 < padding_overhead(sizes, bucket_shapes(sizes, (800, 1333))) <= 0.06
