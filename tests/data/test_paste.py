"""Copy-paste: what is seen afterwards is what the masks say, and the dial does what it says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from maskrcnn_lit.data.paste import Objects, Piece, paste, resized_piece, sample_source
from maskrcnn_lit.data.transforms import CopyPaste

SIDE, SIZE = 16, 96  # of crops and boxes, so that a cell is a pixel; of the image

PLACES = [(8, 8), (30, 60), (60, 20)]  # x, y of objects that do not touch


def disk() -> NDArray[np.uint8]:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return (x**2 + y**2 < (SIDE / 2) ** 2).astype(np.uint8)


def ring() -> NDArray[np.uint8]:
    mask = disk()
    mask[5:11, 5:11] = 0
    return mask


def painted(crop: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    """SIZE SIZE: the mask of an object with a box of whole pixels."""
    whole = np.zeros((3 * SIZE, 3 * SIZE), bool)
    x, y = np.round(box[:2]).astype(int) + SIZE
    whole[y : y + SIDE, x : x + SIDE] = crop > 0
    return whole[SIZE : 2 * SIZE, SIZE : 2 * SIZE]


def scene(crowd: bool = False) -> tuple[NDArray[np.uint8], Objects]:
    """Object n, of label n + 1, has the color n + 1; the background is 0."""
    boxes = np.array([[x, y, x + SIDE, y + SIDE] for x, y in PLACES], float)
    crops = np.stack([disk(), ring(), disk()])
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for n in range(3):
        image[painted(crops[n], boxes[n])] = n + 1
    flags = np.zeros(3, bool)
    objects = Objects(crops, boxes, np.arange(1, 4), flags | crowd, ~flags, flags.copy())
    return image, objects


def piece(label: int, crop: NDArray[np.uint8] | None = None) -> Piece:
    pixels = np.full((SIDE, SIDE, 3), label, np.uint8)
    return Piece(pixels, ring() if crop is None else crop, np.array([0.0, 0, SIDE, SIDE]), label)


def pasted(
    pieces: list[Piece], seed: int = 0, crowd: bool = False, **options: float
) -> tuple[NDArray[np.uint8], Objects]:
    image, objects = scene(crowd)
    options = {"p": 1.0, "visible": 0.0} | options
    rng = np.random.default_rng(seed)
    return image, paste(image, objects, pieces, None, CopyPaste(**options), rng)


@pytest.mark.parametrize("occlude", [0.0, 0.5, 1.0])
def test_each_pixel_is_of_the_object_whose_mask_has_it(occlude: float):
    covered = 0
    for seed in range(60):
        image, objects = pasted([piece(11), piece(12), piece(13)], seed, occlude=occlude)
        seen = np.zeros((SIZE, SIZE), np.uint8)
        for n, label in enumerate(objects.labels.tolist()):
            mask = painted(objects.crops[n], objects.boxes[n])
            assert not seen[mask].any(), "no pixel is of two objects"
            seen[mask] = label
        assert np.array_equal(image, np.repeat(seen[..., None], 3, 2))
        assert {11, 12, 13} <= set(objects.labels.tolist()) or occlude
        covered += int(objects.covered.sum())
    assert (covered == 0) == (occlude == 0)


def test_the_dial_is_the_share_that_covers_another_object():
    hits = {occlude: 0 for occlude in (0.0, 0.3, 1.0)}
    for occlude in hits:
        for seed in range(300):
            before, _ = scene()
            after, _ = pasted([piece(11)], seed, occlude=occlude)
            hits[occlude] += bool(((before > 0) & (after == 11)).any())
    assert hits[0.0] == 0
    assert 60 < hits[0.3] < 120
    assert hits[1.0] == 300


def test_what_remains_under_the_share_is_dropped():
    whole = np.ones((SIDE, SIDE), np.uint8)
    counts = {}
    for visible in (0.0, 0.5, 0.9):
        counts[visible] = 0
        for seed in range(40):
            image, objects = pasted([piece(11, whole)], seed, occlude=1.0, visible=visible)
            kept = objects.labels.tolist()
            assert kept.pop() == 11
            for label, full in ((1, disk()), (2, ring()), (3, disk())):
                share = (image[..., 0] == label).sum() / full.sum()
                assert (label in kept) == (share > 0 and share >= visible)
            counts[visible] += 3 - len(kept)
    assert counts[0.0] <= 4 < counts[0.5] < counts[0.9]


def test_a_crowd_region_stays_while_a_pixel_is_seen():
    for seed in range(30):
        image, objects = pasted([piece(11, disk())], seed, crowd=True, visible=1.0)
        assert all((image[..., 0] == label).any() for label in objects.labels.tolist())
        assert objects.crowd[:-1].all()
        assert not objects.crowd[-1]
        assert len(objects.labels) == 4
        for n in range(3):
            mask = painted(objects.crops[n], objects.boxes[n])
            assert np.array_equal(mask, image[..., 0] == n + 1)


def test_a_piece_that_would_hardly_be_seen_is_not_pasted():
    pieces, spared = [piece(11), piece(12, disk())], 0
    for seed in range(80):
        image, objects = pasted(pieces, seed, occlude=1.0, visible=0.8)
        assert 12 in objects.labels
        assert (image == 11).any() == (11 in objects.labels)
        spared += 11 not in objects.labels
    assert spared > 5


def test_covered_void_pixels_are_void_no_more():
    image, objects = scene()
    void = np.ones((SIZE, SIZE), np.uint8)
    paste(image, objects, [piece(11)], void, CopyPaste(p=1.0), np.random.default_rng(0))
    assert np.array_equal(void == 0, image[..., 0] == 11)


def test_a_piece_larger_than_the_image_is_cut():
    image, objects = scene()
    large = Piece(np.full((200, 150, 3), 11, np.uint8), disk(), np.array([0.0, 0, 150, 200]), 11)
    options = CopyPaste(p=1.0, occlude=0.0, visible=0.0)
    result = paste(image, objects, [large], None, options, np.random.default_rng(0))
    assert result.labels[-1] == 11
    assert (image == 11).mean() > 0.5
    assert np.allclose(result.boxes[-1, 2:] - result.boxes[-1, :2], [150, 200])


def test_without_a_piece_nothing_changes():
    image, objects = scene()
    assert paste(image, objects, [], None, CopyPaste(p=1.0), np.random.default_rng(0)) is objects
    assert np.array_equal(image, scene()[0])


@pytest.mark.long
def test_the_source_depends_on_seed_and_key_alone():
    candidates = np.array([3, 5, 8])

    def sources(seed: int, epoch: int) -> list[int | None]:
        sampled = [sample_source(seed, (epoch, i), candidates, 0.5) for i in range(400)]
        return [None if one is None else one[0] for one in sampled]

    drawn = sources(1, 0)
    assert drawn == sources(1, 0)
    assert drawn != sources(2, 0)
    assert drawn != sources(1, 1)
    counts = [drawn.count(value) for value in (None, 3, 5, 8)]
    assert 160 < counts[0] < 240
    assert all(40 < count < 95 for count in counts[1:])
    assert sample_source(1, (0, 0), candidates[:0], 1.0) is None
    assert sample_source(1, (0, 0), candidates, 0.0) is None


@pytest.mark.parametrize("own", [3, 4, 5, 8, 9])
def test_an_image_is_not_its_own_source(own: int):
    candidates = np.array([3, 5, 8])
    drawn = [sample_source(1, (epoch, own), candidates, 1.0) for epoch in range(60)]
    assert {one and one[0] for one in drawn} == {3, 5, 8} - {own}
    assert sample_source(1, (0, 5), candidates[1:2], 1.0) is None


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_piece_is_resized_and_mirrored_with_its_box(mirrored: bool):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[2:8, 1:7] = 255
    box = np.array([1.0, 2, 7, 8])
    made = resized_piece(pixels, np.ones((4, 4), np.uint8), box, 3, np.array([2.0, 3.0]), mirrored)
    assert made.pixels.shape == (30, 40, 3)
    expected = [26, 6, 38, 24] if mirrored else [2, 6, 14, 24]
    assert made.box.tolist() == expected
    x1, y1, x2, y2 = expected
    assert made.pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() == 255
    white = made.pixels[..., 0] > 127
    assert np.flatnonzero(white[(y1 + y2) // 2]).tolist() == list(range(x1, x2))
    assert np.flatnonzero(white[:, (x1 + x2) // 2]).tolist() == list(range(y1, y2))
    assert made.label == 3
