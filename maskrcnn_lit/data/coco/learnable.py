"""The objects of an index that training cannot learn, and why.

Letters: I images, N annotations.
"""

from collections.abc import Iterator

import numpy as np

from maskrcnn_lit.data.coco.faults import Fault, describe
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.rasterize import mask_crops
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes

LEAST = 1.0  # px after the resize: minimum side of an object's box

BEYOND = 2.0  # px by which the box of a sound label may reach beyond its image

TOO_SMALL, NO_MASK = "too small to be learned", "mask without a pixel in its box"


def unlearnable(index: AnnotationIndex, image_size: ImageSize, side: int) -> list[Fault]:
    """The objects that training drops from images resized as in validation, image by image; crowd
    regions do not count. Augmentation may enlarge or cut off others.

    Only masks that may be empty are rasterized; a COCO set has few.

    Args:
        image_size: see `image_size.ImageSize`.
        side: M, of the mask crops.
    """
    arrays = index.packed.arrays
    counts = index.spans[:, 1] - index.spans[:, 0]
    image = np.repeat(np.arange(len(index)), counts)  # N
    positions = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = positions + np.repeat(index.spans[:, 0], counts)
    sizes = index.sizes[image]
    shapes = fitted_sizes(index.sizes, image_size)[image]
    boxes = arrays.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, sizes[:, [1, 0, 1, 0]])
    sides = (boxes[:, 2:] - boxes[:, :2]) * (shapes / sizes)[:, ::-1]  # N 2: width, height
    objects = ~arrays.crowd[rows]
    small = (sides < LEAST).any(1)
    empty = np.zeros(len(rows), bool)
    for n in np.flatnonzero(objects & ~small & arrays.doubtful[rows]).tolist():
        i = int(image[n])
        outline = index.outline(i, int(positions[n]))
        empty[n] = not mask_crops([outline], boxes[n : n + 1], index.size(i), side).any()
    faults = []
    for n in np.flatnonzero(objects & (small | empty)).tolist():
        name, number = index.file_name(int(image[n])), int(arrays.ids[rows[n]])
        if small[n]:
            width, height = sides[n]
            detail = f"{width:.2g} x {height:.2g} px after the resize"
            faults.append(Fault(TOO_SMALL, name, number, detail))
        else:
            detail = "its outline covers no pixel there"
            faults.append(Fault(NO_MASK, name, number, detail))
    return faults


def count_objects(index: AnnotationIndex) -> int:
    """The number of annotations that are not crowd regions."""
    return int(sum((~index.packed.arrays.crowd[a:b]).sum() for a, b in index.spans.tolist()))


def describe_partial(index: AnnotationIndex) -> Iterator[str]:
    """Lines on objects without a mask, on void regions, and on boxes in another form than COCO's;
    none if there are none.
    """
    if _are_corners(index):
        yield (
            "every bbox looks like x1 y1 x2 y2, but is read as x y width height, with which boxes "
            "reach beyond their images: write x1, y1, x2 - x1, y2 - y1"
        )
    bare, objects = len(index.without_mask), count_objects(index)
    if bare and bare == objects:
        yield f"no object has a mask ({objects} have boxes): the mask head learns nothing"
    elif bare:
        yield (
            f"{bare} of {objects} objects have a box and no mask: they have box losses and no mask "
            "loss, and are not scored for masks"
        )
    void = [i for i in range(len(index)) if len(index.void(i))]
    if void:
        shares = [int(index.void(i)[1::2].sum()) / np.prod(index.size(i)) for i in void]
        use = (
            "no mask loss and no metric counts them"
            if index.ignore_void
            else "they count as background (data.ignore_void=false)"
        )
        yield (
            f"{len(void)} of {len(index)} images have void pixels "
            f"({np.mean(shares):.1%} of them on average): {use}"
        )


def _are_corners(index: AnnotationIndex) -> bool:
    """Whether a tenth of the boxes reach beyond their images, and none would as x1 y1 x2 y2."""
    if not index.spans.size:
        return False
    rows = np.concatenate([np.arange(a, b) for a, b in index.spans.tolist()])
    sides = np.repeat(index.sizes[:, ::-1], index.spans[:, 1] - index.spans[:, 0], axis=0)  # N 2
    first, last = np.split(index.packed.arrays.boxes[rows], 2, axis=1)
    beyond = (first + last > sides + BEYOND).any(1)
    inside = (last > first) & (last <= sides + BEYOND)
    return bool(len(rows) and inside.all() and beyond.mean() >= 0.1)


def describe_unlearnable(
    index: AnnotationIndex, lost: list[Fault], image_size: ImageSize
) -> Iterator[str]:
    """Lines with the number of objects that cannot be learned, by kind, and advice; empty if all
    can be.
    """
    objects, annotations = count_objects(index), int((index.spans[:, 1] - index.spans[:, 0]).sum())
    if not annotations:
        yield "no image has an object to learn from"
    elif not objects:
        yield (
            f"no object to learn from: all {annotations} annotations are crowd regions (set "
            "iscrowd to 0 where they are single objects)"
        )
    if not lost:
        return
    share = "all" if len(lost) == objects else f"{len(lost)} of"
    yield f"{share} {objects} objects cannot be learned; training ignores them:"
    yield from (f"  {line}" for line in describe(lost))
    if any(fault.kind == TOO_SMALL for fault in lost):
        size = image_size if isinstance(image_size, int) else list(image_size)
        yield f"  a larger data.image_size (now {size}) keeps more of the small ones"
