from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.coco.rasterize import (
    clip_polygon,
    compress_runs,
    expand_counts,
    mask_crops,
    near_window,
    polygons_rle,
    visible_boxes,
)


def runs_of(mask: np.ndarray) -> np.ndarray:
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, len(flat)]).astype(np.uint32)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_pycocotools(height: int, width: int, seed: int, share: float):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    rle = coco_mask.encode(np.asfortranarray(mask))
    runs = expand_counts(rle["counts"])
    assert runs.sum() == height * width
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(values.reshape(width, height).T, mask)
    assert compress_runs(runs.astype(np.uint32), (height, width)) == {
        "size": [height, width],
        "counts": rle["counts"],
    }


def test_long_runs():
    runs = np.array([2_000_000_000, 5, 70_000, 9], np.uint32)
    size = (1, int(runs.sum()))
    assert expand_counts(compress_runs(runs, size)["counts"]).tolist() == runs.tolist()


@pytest.mark.parametrize("counts", [b"", b"\x10", b"zzz\xff", b"pppp", b"o" * 20 + b"1"])
def test_damaged_counts(counts: bytes):
    with pytest.raises(ValueError):
        expand_counts(counts)


def test_a_crop_of_its_own_size_is_that_part_of_the_mask():
    rng = np.random.default_rng(0)
    mask = (rng.random((40, 60)) < 0.5).astype(np.uint8)
    (crop,) = mask_crops([runs_of(mask)], np.array([[12.0, 5, 44, 37]]), (40, 60), 32)
    assert np.array_equal(crop, mask[5:37, 12:44])
    polygon = np.array([14.2, 6.2, 43, 10, 40.4, 36, 20, 30.4])
    (crop,) = mask_crops([[polygon]], np.array([[12.0, 5, 44, 37]]), (40, 60), 32)
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon.tolist()], 40, 60)))
    assert np.array_equal(crop, expected[5:37, 12:44])
    assert 0 < crop.sum() < 1024


def test_polygon_and_runs_of_one_shape_agree():
    outline = np.array([10.0, 8, 50, 8, 50, 20, 30, 20, 30, 33, 10, 33])  # an L, along pixel edges
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([outline.tolist()], 40, 60)))
    box = np.array([[10.0, 8, 50, 33]])
    one, other = mask_crops([[outline], runs_of(mask)], np.repeat(box, 2, 0), (40, 60), 56)
    assert (one != other).mean() < 0.01
    assert one.mean() == pytest.approx(0.74, abs=0.02)
    assert one[-1, 0] == 1
    assert one[-1, -1] == 0  # the foot is on its side


def test_parts_and_holes():
    parts = [np.array([0.0, 0, 4, 0, 4, 4, 0, 4]), np.array([6.0, 6, 10, 6, 10, 10, 6, 10])]
    ring = np.ones((10, 10), np.uint8)
    ring[3:7, 3:7] = 0
    box = np.array([[0.0, 0, 10, 10]] * 2)
    two, hole = mask_crops([parts, runs_of(ring)], box, (10, 10), 20)
    assert two.sum() == 2 * 64
    assert two[0, 0] == two[19, 19] == 1
    assert two[9, 9] == two[0, 19] == 0
    assert hole.sum() == 400 - 64
    assert hole[9, 9] == 0
    assert mask_crops([], np.zeros((0, 4)), (10, 10), 20).shape == (0, 20, 20)


def test_boxes_that_were_cut_shrink_to_what_is_left():
    crop = np.zeros((1, 100, 100), np.uint8)
    crop[0, 90:, :] = 1  # a bar at the foot,
    crop[0, :, 95:] = 1  # and one at the right
    box = np.array([[0.0, 0, 200, 200]])
    for cut, expected in (
        ([0, 0, 200, 200], [0, 0, 200, 200]),
        ([0, 0, 150, 200], [0, 180, 150, 200]),  # only the foot is in sight
        ([0, 0, 200, 100], [190, 0, 200, 100]),  # only the right
        ([50, 50, 200, 200], [50, 50, 200, 200]),
    ):
        assert visible_boxes(crop, box, np.array([cut], float)).tolist() == [expected]
    (nothing,) = visible_boxes(crop, box, np.array([[0.0, 0, 150, 150]]))
    assert nothing[0] == nothing[2]
    assert nothing[1] == nothing[3]
    sliver = visible_boxes(
        crop, box, np.array([[199.6, 10.0, 200, 20]])
    )  # narrower than a pixel of the crop
    assert sliver.tolist() == [[199.6, 10.0, 200, 20]]


def test_real_crops_against_whole_masks(test_data: Path):
    """Each crop of coco_mini, put back at the size of the file, against pycocotools' mask of the
    whole image.
    """
    index = read_index(
        test_data / "coco_mini/annotations/instances_val2017.json",
        test_data / "coco_mini/val2017",
        "error",
        take=40,
    )
    ious = []
    for i in range(len(index)):
        boxes, (height, width) = index.annotations(i)["boxes"], index.size(i)
        crops = mask_crops(
            [index.outline(i, j) for j in range(len(boxes))], boxes, (height, width), 112
        )
        for j, (crop, (x1, y1, x2, y2)) in enumerate(zip(crops, boxes, strict=True)):
            shape = index.segmentation(i, j)
            if isinstance(shape, list):
                flat = [part.ravel().tolist() for part in shape]
                shape = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
            whole = coco_mask.decode(shape).astype(bool)
            rows = np.floor((np.arange(height) + 0.5 - y1) / (y2 - y1) * 112).astype(int)
            columns = np.floor((np.arange(width) + 0.5 - x1) / (x2 - x1) * 112).astype(int)
            drawn = np.pad(crop, 1)[rows.clip(-1, 112) + 1][:, columns.clip(-1, 112) + 1].astype(
                bool
            )
            if whole.sum() > 32**2:
                ious.append((drawn & whole).sum() / (drawn | whole).sum())
    assert len(ious) > 100
    assert np.mean(ious) > 0.98
    assert np.percentile(ious, 5) > 0.95


@given(st.lists(st.tuples(*[st.floats(-300, 300)] * 2), min_size=3, max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_mask_is_that_of_pycocotools(points: list[tuple[float, float]]):
    """But for the fifth of a pixel to which it rounds points, where the polygon was clipped."""
    flat = [value for point in points for value in point]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([flat], 40, 60)))
    found = coco_mask.decode(polygons_rle([flat], 40, 60))
    clipped = near_window(np.array(flat), 40, 60).tolist() != flat
    assert (found != expected).sum() <= 40 * clipped


def test_a_polygon_of_any_size_is_clipped_to_the_window():
    square = np.array([-1e308, -1e308, 1e308, -1e308, 1e308, 1e308, -1e308, 1e308])
    clipped = clip_polygon(square, (0, 0), (20, 10)).reshape(-1, 2)
    assert clipped.min(0).tolist() == [0, 0]
    assert clipped.max(0).tolist() == [20, 10]
    assert coco_mask.area(polygons_rle([square], 10, 20)) == 200
    assert len(clip_polygon(square + 0, (1e300, 0), (1e301, 10))) == 0
    triangle = np.array([5.0, 5, 15, 5, 5, 1e9])
    inside = coco_mask.decode(polygons_rle([triangle], 40, 60))
    assert inside.sum() == 35 * 10  # its slanted side leaves the image at once
    assert coco_mask.area(polygons_rle([[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]], 40, 60)) == 0


@pytest.mark.parametrize("side", [28, 112])
@pytest.mark.parametrize("as_runs", [False, True])
def test_a_thin_mask_keeps_the_pixels_of_the_exact_one(side: int, as_runs: bool):
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(60):
        start, end = rng.uniform(5, 250, (2, 2))
        across = 0.4 * np.array([start[1] - end[1], end[0] - start[0]])
        across /= max(np.hypot(*(end - start)), 1)
        rod = np.concatenate([start - across, end - across, end + across, start + across])
        box = np.r_[rod.reshape(-1, 2).min(0), rod.reshape(-1, 2).max(0)]
        exact = coco_mask.decode(polygons_rle([rod], 256, 256))
        outline = runs_of(exact) if as_runs else [rod]
        (crop,) = mask_crops([outline], box[None], (256, 256), side)
        y, x = np.nonzero(exact)
        place = (np.stack([x, y], 1) + 0.5 - box[:2]) / (box[2:] - box[:2]) * side
        place = np.floor(place[((place >= 0) & (place < side)).all(1)]).astype(int)
        if crop.sum() < 2 * side:
            assert crop[place[:, 1], place[:, 0]].all()
            seen += len(place) > 20
        assert crop.any() == bool(len(place)) or not as_runs
    assert seen > 5


def test_a_crop_of_a_sliver_of_the_image_takes_no_far_coordinate():
    part = np.array([119.9985, 10.0, 1e6, 10, 1e6, 60, 119.9985, 60])
    (crop,) = mask_crops([[part]], np.array([[119.999, 10, 120, 60]]), (100, 120), 112)
    assert crop.all()
