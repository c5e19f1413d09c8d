import numpy as np
import pytest
import torch
from object_table import objects

from maskrcnn_lit.cli.data_stats import anchor_grids
from maskrcnn_lit.data.buckets import bucket_shapes
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.inspection.anchor_recall import (
    SAMPLE,
    Choice,
    Grids,
    best_iou,
    improve,
    padded_sizes,
    reach,
    recalls,
)
from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.model.boxes import iou

USUAL = Choice((32, 64, 128, 256, 512), (0.5, 1.0, 2.0))


def make(choice: Choice, padded: tuple[int, int]) -> Grids:
    return anchor_grids(Anchors(sizes=choice.sizes, ratios=choice.ratios), padded)


def random_boxes(count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    corners = rng.random((2, count, 2)) * [width, height]
    return np.concatenate([corners.min(0), corners.max(0) + 1], 1)


@pytest.mark.parametrize("padded", [(128, 128), (96, 160), (100, 100)])
@pytest.mark.parametrize(
    "options", [{}, {"round_corners": False, "offset": 0.5}, {"measured_strides": True}]
)
def test_the_nearest_anchor_of_each_shape_is_the_best_of_all(
    padded: tuple[int, int], options: dict
):
    grids = anchor_grids(Anchors(sizes=(8, 16, 32, 64, 128), ratios=(0.5, 1, 2), **options), padded)
    boxes = random_boxes(200, *padded)
    every = torch.cat([torch.tensor(grid).reshape(-1, 4) for grid in grids]).double()
    expected = iou(torch.tensor(boxes)[None], every[None])[0].amax(1)
    assert np.allclose(best_iou(boxes, grids), expected.numpy())


@pytest.mark.parametrize("image_size", [100, (100, 170)])
def test_an_image_is_padded_as_the_loader_pads_it(image_size):
    sizes = [(100, 61), (96, 100), (33, 100)]
    shapes = [shape for chain in bucket_shapes(np.array(sizes), image_size) for shape in chain]
    expected = [
        tuple(
            collate([{"images": torch.zeros(3, *s), "image_sizes": torch.tensor(s)}], shapes)[
                "images"
            ].shape[2:]
        )
        for s in sizes
    ]
    assert [tuple(s) for s in padded_sizes(np.array(sizes), image_size).tolist()] == expected


def test_each_image_has_the_anchors_of_its_padded_size():
    found = objects([[0, 0, 32, 32], [0, 0, 32, 32], [200, 200, 232, 232]], [0, 1, 1])
    asked = []

    def noted(choice: Choice, padded: tuple[int, int]) -> Grids:
        asked.append(padded)
        return make(choice, padded)

    best = reach(found, np.array([[64, 96], [256, 256]]), USUAL, noted)
    assert asked == [(64, 96), (256, 256)]
    assert best.tolist() == [1, 1, 1]


def test_recalls_are_shares_by_size():
    found = recalls(np.array([0.5, 0.69, 0.7, 0.1]), np.array([10.0, 10, 50, 50]), [0.5, 0.7])
    assert found == {
        "all": {"0.5": 0.75, "0.7": 0.25},
        "small": {"0.5": 1.0, "0.7": 0.0},
        "medium": {"0.5": 0.5, "0.7": 0.5},
    }


def crowd_of(side: float, ratio: float, count: int):
    rng = np.random.default_rng(1)
    centers, grown = rng.uniform(20, 108, (count, 2)), side * rng.uniform(0.8, 1.25, (count, 1))
    half = grown * [ratio**-0.5, ratio**0.5] / 2
    return objects(
        np.concatenate([centers - half, centers + half], 1).tolist(), [0] * count, images=1
    )


@pytest.mark.parametrize(("side", "ratio"), [(10, 1.0), (20, 4.0), (100, 1.0)])
def test_improved_anchors_meet_more_objects(side: float, ratio: float):
    found, padded = crowd_of(side, ratio, 300), np.array([[128, 128]])
    better = improve(
        found, padded, Choice((64, 128, 256, 512, 700), (1.0, 1.1, 1.2)), make, [0.5, 0.7], seed=0
    )
    now = reach(found, padded, Choice((64, 128, 256, 512, 700), (1.0, 1.1, 1.2)), make)
    best = reach(found, padded, better, make)
    assert (best >= 0.5).mean() > max(0.5, (now >= 0.5).mean()) or side == 100
    assert (best >= 0.5).sum() + (best >= 0.7).sum() > (now >= 0.5).sum() + (now >= 0.7).sum()
    assert len(better.sizes) == 5
    assert len(better.ratios) == 3
    assert list(better.sizes) == sorted(better.sizes)
    assert all(isinstance(size, int) for size in better.sizes)


def test_anchors_that_meet_everything_are_left():
    found = objects([[16, 16, 48, 48], [0, 0, 64, 64]], [0, 0], images=1)
    assert improve(found, np.array([[128, 128]]), USUAL, make, [0.5, 0.7], seed=0) == USUAL


@pytest.mark.long
def test_of_many_objects_a_seeded_sample_is_asked():
    found, padded = crowd_of(10, 1.0, SAMPLE + 500), np.array([[128, 128]])
    chosen = [improve(found, padded, USUAL, make, [0.5, 0.7], seed=seed) for seed in (0, 0)]
    assert chosen[0] == chosen[1] != USUAL
