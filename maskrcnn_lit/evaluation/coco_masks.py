"""Whether the masks of a COCO results json are sound. pycocotools does not ask: damaged run lengths let it read on
forever, or end the process.

Compressed counts are unpacked for a thousand masks in one go, as for each alone NumPy would be slow.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.rasterise import expand_counts
from maskrcnn_lit.errors import UserError

_AT_ONCE = 1000  # masks
_FAR = 1e5  # pixels from the origin: no corner of a polygon is farther


def check_masks(results: Sequence[dict[str, Any]], images: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raise UserError, naming the first bad one, unless every "segmentation" is RLE (compressed or not) of the size of
    its image, or polygons.

    images: id -> height and width, of all images that the results name.
    """
    numbers = iter(range(len(results)))
    while some := list(islice(numbers, _AT_ONCE)):
        entries = [results[n] for n in some]
        sizes = [(images[entry["image_id"]]["height"], images[entry["image_id"]]["width"]) for entry in entries]
        if _all_compressed([entry["segmentation"] for entry in entries], sizes):
            continue
        for n, entry, size in zip(some, entries, sizes, strict=True):
            if fault := _fault(entry["segmentation"], size):
                raise UserError(
                    f"entry {n} of the results, a mask of image {entry['image_id']}, {fault}; give RLE (size and "
                    "counts) of the whole image, or polygons"
                )


def _fault(mask: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a mask."""
    if isinstance(mask, list):
        return (
            None if mask and all(map(_is_polygon, mask)) else f"is {mask!r:.60}: no polygons [[x, y, x, y, ...], ...]"
        )
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        return f"is {mask!r:.60}"
    counts, given = mask["counts"], mask["size"]
    if not isinstance(given, (list, tuple)) or tuple(given) != size:
        return f"has size {given!r:.60} (height, width), and the image is {list(size)}"
    if isinstance(counts, (str, bytes)):
        try:
            runs = expand_counts(counts if isinstance(counts, bytes) else counts.encode()).tolist()
        except ValueError as error:
            return f"has counts {counts!r:.60}: {error}"
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        return f"has counts {counts!r:.60}: no text and no list of whole numbers"
    if min(runs, default=0) < 0:
        return f"has counts {counts!r:.60} with a negative run"
    if sum(runs) != size[0] * size[1]:
        return f"has counts {counts!r:.60} of {sum(runs)} pixels, and the image has {size[0] * size[1]}"
    return None


def _is_polygon(points: Any) -> bool:
    """Three points or more."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(type(p) in (int, float) and math.isfinite(p) and abs(p) <= _FAR for p in points)
    )


def _all_compressed(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether all are sound compressed RLE; otherwise each has to be looked at."""
    if not all(type(m) is dict and type(m.get("counts")) in (str, bytes) for m in masks):
        return False
    if not all(type(m.get("size")) in (list, tuple) for m in masks):
        return False
    if [tuple(m["size"]) for m in masks] != list(sizes):
        return False
    totals = _pixels([m["counts"] if isinstance(m["counts"], bytes) else m["counts"].encode() for m in masks])
    return totals is not None and bool((totals == np.array(sizes, dtype=np.int64).prod(1)).all())


def _pixels(counts: Sequence[bytes]) -> NDArray[np.int64] | None:
    """The sum of the run lengths of each mask, as `expand_counts` gives them; None if one of them is damaged."""
    ends = np.cumsum([len(text) for text in counts])
    begins = np.append(0, ends[:-1])
    digits = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)  # below 0 it becomes more than 63
    if (begins == ends).any() or digits.max() > 63 or (digits[ends - 1] & 32).any():
        return None
    stops = np.flatnonzero((digits & 32) == 0)
    starts = np.append(0, stops[:-1] + 1)
    lengths = stops - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any image has pixels, and the sums below stay exact
        return None
    bits = digits & 31
    values = bits[starts].astype(np.int64)
    for place in range(1, lengths.max()):
        longer = np.flatnonzero(lengths > place)
        values[longer] += bits[starts[longer] + place].astype(np.int64) << (5 * place)
    values -= np.where(digits[stops] & 16, np.int64(1) << (5 * lengths), 0)

    firsts = np.searchsorted(starts, begins)  # of each mask its first number
    totals, lowest = values[firsts], values[firsts].min()
    values[firsts] = 0
    for parity in (0, 1):  # from the fourth on a number is the difference to the one two before
        sums = np.cumsum(np.append(0, values[parity::2]))
        cuts = (firsts + 1 - parity) // 2 + 1  # where each mask begins in `sums`
        number, before = np.diff(np.append(cuts, len(sums))), sums[cuts - 1]
        sums = np.append(sums, sums[-1])  # a last mask of one number may have none here
        totals += np.where(number > 0, np.add.reduceat(sums, cuts) - number * before, 0)
        totals[-1] -= sums[-1] if number[-1] else 0
        lowest = min(lowest, (np.minimum.reduceat(sums, cuts) - before).min())
    return None if lowest < 0 else totals
