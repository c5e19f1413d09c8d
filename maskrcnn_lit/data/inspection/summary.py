"""Statistics of a data set: classes, sizes after the resize, crowding.

Letters: I images, N annotations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.sizes import LIMITS, SIZES
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.inspection.crowding import covered_shares
from maskrcnn_lit.data.transforms import map_boxes, sample_transform

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]


MOST = 100  # detections per image that COCO's AP counts

TINY = 16.0  # pixels: smaller objects cover few cells of p2 (stride 4)

CROWDING = (0.1, 0.4)  # limits for the share of a box under other boxes


class Objects(NamedTuple):
    """Annotations of I images, with boxes resized as in validation."""

    file_sizes: Ints  # I 2: height, width
    sizes: Ints  # I 2: the same after the resize
    image: Ints  # N: index of the image
    labels: Ints  # N, 1..K
    crowd: NDArray[np.bool_]  # N
    boxes: Floats  # N 4: x1 y1 x2 y2 in pixels after the resize
    areas: Floats  # N: of the masks, in square pixels of the files

    def without_crowd(self) -> "Objects":
        """Without crowd regions; the images stay."""
        keep = ~self.crowd
        fields = {
            name: getattr(self, name)[keep]
            for name in ("image", "labels", "crowd", "boxes", "areas")
        }
        return self._replace(**fields)

    def sides(self) -> Floats:
        """N: sqrt(width x height) of the boxes, in pixels after the resize."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(1))


def read_objects(index: AnnotationIndex, image_size: ImageSize) -> Objects:
    """All annotations of `index`, without reading image files."""
    rng = np.random.default_rng(0)  # no effect without augmentation
    views = [sample_transform(*index.size(i), image_size, None, rng) for i in range(len(index))]
    annotations = [index.annotations(i) for i in range(len(index))]
    return Objects(
        file_sizes=np.array([index.size(i) for i in range(len(index))], np.int64).reshape(-1, 2),
        sizes=np.array([view.size for view in views], np.int64).reshape(-1, 2),
        image=np.repeat(np.arange(len(index)), [len(one["labels"]) for one in annotations]),
        labels=_joined([one["labels"] for one in annotations], np.int64),
        crowd=_joined([one["crowd"] for one in annotations], bool),
        boxes=_joined(
            [
                map_boxes(one["boxes"], view.matrix)
                for one, view in zip(annotations, views, strict=True)
            ],
            np.float64,
        ).reshape(-1, 4),
        areas=_joined([one["areas"] for one in annotations], np.float64),
    )


def _joined(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return (
        np.concatenate([np.zeros((0, *arrays[0].shape[1:]), dtype), *arrays]).astype(dtype)
        if arrays
        else np.zeros(0)
    )


def summarize(objects: Objects, names: Sequence[str]) -> dict[str, Any]:
    """Plain numbers for a table or a json; `names[l - 1]` is the class of label l. Shares are 0..1
    of the objects, lengths are in pixels. Crowd regions are counted, but excluded from all other
    numbers.
    """
    alone = objects.without_crowd()
    counts = np.bincount(alone.image, minlength=len(objects.sizes))
    classes = np.bincount(alone.labels, minlength=len(names) + 1)[1:]
    boxes, sides = alone.boxes, alone.sides()
    ratios = (boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])
    return {
        "images": len(objects.sizes),
        "objects": len(sides),
        "crowd_regions": int(objects.crowd.sum()),
        "images_without_objects": int((counts == 0).sum()),
        "objects_per_image": {
            "mean": float(counts.mean()) if len(counts) else 0.0,
            "median": float(np.median(counts)) if len(counts) else 0.0,
            "max": int(counts.max(initial=0)),
            f"share_of_images_over_{MOST}": _share(counts > MOST),
        },
        "classes": dict(zip(names, classes.tolist(), strict=True)),
        "file_height": quantiles(objects.file_sizes[:, 0]),
        "file_width": quantiles(objects.file_sizes[:, 1]),
        "height": quantiles(objects.sizes[:, 0]),
        "width": quantiles(objects.sizes[:, 1]),
        "side": quantiles(sides),
        "sizes": shares_by_size(sides),
        "sizes_in_file": shares_by_size(np.sqrt(alone.areas.clip(0))),
        "height_by_width": quantiles(ratios),
        "crowding": _by_limits(_covered(alone), CROWDING, ("under 0.1", "0.1 to 0.4", "over 0.4")),
    }


def quantiles(values: NDArray[Any]) -> dict[str, float] | None:
    """Minimum, 5 %, 25 %, median, 75 %, 95 %, maximum; None without values."""
    if not len(values):
        return None
    at = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
    return dict(zip(at, np.quantile(values, list(at.values())).tolist(), strict=True))


def size_names(sides: Floats) -> NDArray[np.str_]:
    """N: small, medium or large by COCO's limits, for sides in pixels."""
    return np.array(list(SIZES))[np.digitize(sides, LIMITS)]


def shares_by_size(sides: Floats) -> dict[str, float]:
    """The shares of small, medium and large."""
    return _by_limits(sides, LIMITS, list(SIZES))


def _by_limits(values: Floats, limits: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    bins = np.digitize(values, limits)
    return {name: _share(bins == n) for n, name in enumerate(names)}


def _share(of: NDArray[np.bool_]) -> float:
    return float(of.mean()) if len(of) else 0.0


def _covered(objects: Objects) -> Floats:
    """N, 0..1: the share of each box under other boxes of its image."""
    shares = np.zeros(len(objects.image))
    order = np.argsort(objects.image, kind="stable")
    ends = np.cumsum(np.bincount(objects.image, minlength=len(objects.sizes)))
    for rows in np.split(order, ends[:-1]):
        shares[rows] = covered_shares(objects.boxes[rows])
    return shares
