"""Copy-paste (Ghiasi et al. 2021, arXiv:2012.07177): objects of another training image are put on
an image, and what they cover is taken from the masks and boxes below.

Coordinates are continuous, as in transforms.py. Letters: H W of the training image, N instances, M
mask crop side, h w of one pasted piece.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from maskrcnn_lit.data.transforms import CopyPaste

LARGEST_SHARE = 0.25  # of its image: an object with a larger box would hide most of the other one

_PIXEL = np.dtype("V3")  # numpy copies whole pixels thirty times as fast as their channels

_TRIES = 8  # places of which the one that covers least is taken


class Objects(NamedTuple):
    """The objects of a training image before those out of sight are dropped."""

    crops: NDArray[np.uint8]  # N M M of 0 or 1, over `boxes`
    boxes: NDArray[np.float64]  # N 4, x1 y1 x2 y2; may extend beyond the image
    labels: NDArray[np.int64]  # N
    crowd: NDArray[np.bool_]  # N
    masked: NDArray[np.bool_]  # N: whether the object has a mask
    covered: NDArray[np.bool_]  # N: whether the mask lost a part, so that the box must shrink

    def at(self, chosen: NDArray[np.bool_]) -> "Objects":
        """Those of the N objects for which `chosen` is True."""
        return Objects(**{name: values[chosen] for name, values in self._asdict().items()})


class Piece(NamedTuple):
    """An object cut out of another image, in its size on the training image."""

    pixels: NDArray[np.uint8]  # h w 3
    crop: NDArray[np.uint8]  # M M of 0 or 1
    box: NDArray[np.float64]  # 4: the area of the crop, in pixels of the piece
    label: int


def sample_source(
    seed: int, key: tuple[int, int], candidates: NDArray[np.int64], probability: float
) -> tuple[int, np.random.Generator] | None:
    """The position of another image, whose objects are pasted on that of `key` (draw, position),
    and the generator of all that is sampled for this; None: nothing is pasted. Both depend on the
    arguments alone, and not on the random numbers of the image itself. A digest decides, since a
    generator for every image would cost a tenth of the whole. candidates: ascending.
    """
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=16).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn >= probability:
        return None
    own = slice(*np.searchsorted(candidates, [key[1], key[1] + 1]).tolist())
    others = len(candidates) - (own.stop - own.start)
    if not others:
        return None
    rng = np.random.default_rng(int.from_bytes(digest[8:], "big"))
    number = int(rng.integers(others))
    if number >= own.start:
        number += own.stop - own.start
    return int(candidates[number]), rng


def paste(
    image: NDArray[np.uint8],
    objects: Objects,
    pieces: Sequence[Piece],
    void: NDArray[np.uint8] | None,
    options: CopyPaste,
    rng: np.random.Generator,
) -> Objects:
    """Paste `pieces`, the last on top, into `image` (H W 3, contiguous); the objects afterwards.
    `image`, `void` (H W) and the crops of `objects` are changed in place.

    A share `options.occlude` of the pieces is put on another object: a random pixel of the piece's
    mask on a random pixel of the other one's. The others are put inside the image where, of a few
    places, they cover the least of other boxes. An object of which less than `options.visible`
    remains is dropped, and a piece of which less would be seen is not pasted. A crowd region is
    dropped when nothing of it remains.
    """
    masks = [_pixel_mask(piece) for piece in pieces]
    places = _places(image.shape[:2], objects, pieces, masks, options.occlude, rng)
    covered = np.zeros(image.shape[:2], bool)
    colors = image.view(_PIXEL)[..., 0]
    pasted = []
    for piece, mask, (top, left) in reversed(list(zip(pieces, masks, places, strict=True))):
        rows, columns, part = _inside(mask.shape, (top, left), image.shape[:2])
        below = covered[rows, columns]
        seen = mask[part] & ~below
        count = np.count_nonzero(seen)
        if not count or count < options.visible * np.count_nonzero(mask[part]):
            continue
        crop, box = piece.crop.copy(), piece.box + np.array([left, top] * 2)
        hidden = bool((mask[part] & below).any()) and _uncover(crop, box, covered)[0] > 0
        pixels = piece.pixels.view(_PIXEL)[..., 0]
        np.copyto(colors[rows, columns], pixels[part], where=seen)
        below |= mask[part]
        pasted.append((crop, box, piece.label, hidden))
    if not pasted:
        return objects
    if void is not None:
        void[covered] = 0
    boxes = np.stack([box for _, box, _, _ in pasted])
    remain = _uncover_all(objects, covered, boxes, options.visible)
    objects = objects if remain.all() else objects.at(remain)
    return _joined(objects, pasted)


def _joined(
    objects: Objects, pasted: list[tuple[NDArray[np.uint8], NDArray[np.float64], int, bool]]
) -> Objects:
    crops, boxes, labels, hidden = zip(*pasted, strict=True)
    count = len(pasted)
    return Objects(
        crops=np.concatenate([objects.crops, np.stack(crops)]),
        boxes=np.concatenate([objects.boxes, np.stack(boxes)]),
        labels=np.concatenate([objects.labels, np.array(labels, np.int64)]),
        crowd=np.concatenate([objects.crowd, np.zeros(count, bool)]),
        masked=np.concatenate([objects.masked, np.ones(count, bool)]),
        covered=np.concatenate([objects.covered, np.array(hidden)]),
    )


def _uncover_all(
    objects: Objects, covered: NDArray[np.bool_], pasted: NDArray[np.float64], visible: float
) -> NDArray[np.bool_]:
    """Take what is covered by objects in the boxes `pasted` (P 4) from the crops, mark those that
    lose a part, and return N: which remain.
    """
    remain = np.ones(len(objects.crops), bool)
    low, high = pasted.min(0)[:2], pasted.max(0)[2:]
    near = (objects.boxes[:, :2] < high).all(1) & (objects.boxes[:, 2:] > low).all(1)
    for n in np.flatnonzero(near).tolist():
        lost, before = _uncover(objects.crops[n], objects.boxes[n], covered)
        if lost:
            objects.covered[n] = True
            needed = 0 if objects.crowd[n] else visible * before
            remain[n] = before > lost and before - lost >= needed
    return remain


def _uncover(
    crop: NDArray[np.uint8], box: NDArray[np.float64], covered: NDArray[np.bool_]
) -> tuple[int, int]:
    """Set the cells of a crop (M M) over `box` to 0 whose centers are `covered` (H W). Returns how
    many that are, and how many cells inside the image the mask had before.
    """
    x, y = _cells(box, crop.shape[0])
    (left, right), (top, bottom) = (
        np.searchsorted(values, [0, limit])
        for values, limit in ((x, covered.shape[1]), (y, covered.shape[0]))
    )
    inside = crop[top:bottom, left:right]
    before = int(np.count_nonzero(inside))
    inside[covered[y[top:bottom]][:, x[left:right]]] = 0
    return before - int(np.count_nonzero(inside)), before


def _cells(box: NDArray[np.float64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The columns and the rows of pixels in which the centers of a crop's cells lie, M each."""
    steps = (np.arange(side) + 0.5) / side
    points = np.floor(box[:2, None] + (box[2:] - box[:2])[:, None] * steps).astype(np.int64)
    return points[0], points[1]


def _pixel_mask(piece: Piece) -> NDArray[np.bool_]:
    """h w: the piece's mask at the centers of its pixels."""
    side = piece.crop.shape[0]
    height, width, _ = piece.pixels.shape
    mask = np.zeros((height, width), bool)
    cells, parts = [], []
    for axis, count in ((1, height), (0, width)):
        start, end = piece.box[axis], piece.box[axis + 2]
        cell = np.floor((np.arange(count) + (0.5 - start)) * (side / (end - start)))
        first, last = np.searchsorted(cell, [0, side])
        cells.append(cell[first:last].astype(np.int64))
        parts.append(slice(first, last))
    mask[parts[0], parts[1]] = piece.crop.view(bool)[cells[0]][:, cells[1]]
    return mask


def _places(
    size: tuple[int, ...],
    objects: Objects,
    pieces: Sequence[Piece],
    masks: Sequence[NDArray[np.bool_]],
    occlude: float,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Top and left of each piece."""
    boxes = objects.boxes
    targets = [
        (objects.crops[n], boxes[n]) for n in np.flatnonzero(~objects.crowd & objects.masked)
    ]
    places = []
    for piece, mask in zip(pieces, masks, strict=True):
        place = _on_another(size, targets, mask, rng) if rng.random() < occlude else None
        if place is None:
            place = _beside_others(size, boxes, piece, rng)
        box = piece.box + np.array(place[::-1] * 2)
        boxes = np.concatenate([boxes, box[None]])
        targets.append((piece.crop, box))
        places.append(place)
    return places


def _on_another(
    size: tuple[int, ...],
    targets: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64]]],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """A place where a pixel of `mask` (h w) covers one of an object; None if no object is seen."""
    own = np.flatnonzero(mask)
    for t in rng.permutation(len(targets)).tolist() if len(own) else ():
        crop, box = targets[t]
        x, y = _cells(box, crop.shape[0])
        there = ((y >= 0) & (y < size[0]))[:, None] & ((x >= 0) & (x < size[1]))
        cells = np.flatnonzero(crop.view(bool) & there)
        if len(cells):
            row, column = divmod(int(cells[rng.integers(len(cells))]), len(x))
            down, across = divmod(int(own[rng.integers(len(own))]), mask.shape[1])
            return int(y[row]) - down, int(x[column]) - across
    return None


def _beside_others(
    size: tuple[int, ...], boxes: NDArray[np.float64], piece: Piece, rng: np.random.Generator
) -> tuple[int, int]:
    """Of a few random places inside the image, the one that covers the least of `boxes`."""
    room = np.array(size) - piece.pixels.shape[:2]  # negative for a piece larger than the image
    low, high = np.minimum(room, 0), np.maximum(room, 0) + 1
    places = rng.integers(low, high, (_TRIES, 2))
    if not len(boxes):
        return int(places[0, 0]), int(places[0, 1])
    own = piece.box + np.tile(places[:, ::-1], 2)  # tries 4
    sides = np.minimum(own[:, None, 2:], boxes[:, 2:]) - np.maximum(own[:, None, :2], boxes[:, :2])
    best = int(sides.clip(0).prod(-1).sum(1).argmin())
    return int(places[best, 0]), int(places[best, 1])


def _inside(
    shape: tuple[int, ...], place: tuple[int, int], size: tuple[int, ...]
) -> tuple[slice, slice, tuple[slice, slice]]:
    """The rows and columns of the image that a piece of `shape` covers at `place`, and the part of
    the piece there.
    """
    cut = []
    for start, side, limit in zip(place, shape, size, strict=True):
        begin, end = max(start, 0), max(min(start + side, limit), max(start, 0))
        cut.append((slice(begin, end), slice(begin - start, end - start)))
    return cut[0][0], cut[1][0], (cut[0][1], cut[1][1])


def resized_piece(
    pixels: NDArray[np.uint8],
    crop: NDArray[np.uint8],
    box: NDArray[np.float64],
    label: int,
    scale: NDArray[np.float64],
    mirrored: bool,
) -> Piece:
    """The piece of a cutout (h w 3), resized by `scale` (x, y), and mirrored left to right, as its
    `crop` already is; `box`: the area of the crop in the cutout.
    """
    height, width = pixels.shape[:2]
    size = [max(round(side * by), 1) for side, by in ((height, scale[1]), (width, scale[0]))]
    if mirrored:  # before the resize, which often enlarges
        pixels = pixels[:, ::-1]
        box = np.array([width - box[2], box[1], width - box[0], box[3]])
    part = torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2)
    part = F.interpolate(part, size=size, mode="bilinear", antialias=True)
    box = box * np.array([size[1] / width, size[0] / height] * 2)
    pixels = np.ascontiguousarray(part[0].permute(1, 2, 0).numpy())
    return Piece(pixels, crop, box, label)
