"""Flat arrays that hold every name and annotation of a json: no Python object each, so that processes can share them.

Letters: I images, N annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco_json import Columns, ImageEntry

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Names(Sequence[str]):
    """Strings in one flat array of bytes, in the order that `spans` (I 2: begin, end) says."""

    def __init__(self, text: NDArray[np.uint8], spans: Ints) -> None:
        self.text, self.spans = text, spans

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Names: ...
    def __getitem__(self, i: int | slice) -> str | Names:
        if isinstance(i, slice):
            return Names(self.text, self.spans[i])
        begin, end = self.spans[i]
        return self.text[begin:end].tobytes().decode("utf-8", "surrogatepass")


class Annotations(NamedTuple):
    """Every annotation of the json, N of them, sorted by image; subsets of the images share it."""

    ids: Ints  # N
    labels: Ints  # N, 1..K
    crowd: NDArray[np.bool_]  # N
    areas: Floats  # N
    boxes: Floats  # N 4: x y w h as in the json
    order: Ints  # N: place in the json
    part_spans: Ints  # N 2: its polygons, rows of coordinate_spans; none for an RLE
    coordinate_spans: Ints  # polygons 2: begin, end in coordinates
    coordinates: Floats  # x y x y ...
    run_spans: Ints  # N 2: begin, end in runs; none for polygons
    runs: NDArray[np.uint32]  # RLE run lengths


def pack(entries: list[ImageEntry], columns: Columns) -> dict[str, Any]:
    """The arrays of an AnnotationIndex: images by file name, the annotations of each by box, label and area.

    Ids and the order in the json decide nothing, but between equal names and equal annotations.
    """
    order = sorted(range(len(entries)), key=lambda i: entries[i].name)
    sorted_entries = [entries[i] for i in order]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    image = rank[np.frombuffer(columns.images, np.int64)] if len(columns.images) else np.zeros(0, np.int64)
    boxes = _column(columns.boxes, np.float64).reshape(-1, 4)
    labels, areas = _column(columns.labels, np.int64), _column(columns.areas, np.float64)
    by = np.lexsort((areas, labels, *boxes.T[::-1], image))  # the last key counts first
    names = [entry.name.encode("utf-8", "surrogatepass") for entry in sorted_entries]
    store = Annotations(
        ids=_column(columns.ids, np.int64)[by],
        labels=labels[by],
        crowd=_column(columns.crowd, np.int8)[by].astype(bool),
        areas=areas[by],
        boxes=boxes[by],
        order=by,
        part_spans=_spans(columns.part_ends)[by],
        coordinate_spans=_spans(columns.coordinate_ends),
        coordinates=_column(columns.coordinates, np.float64),
        run_spans=_spans(columns.run_ends)[by],
        runs=_column(columns.runs, np.uint32),
    )
    return {
        "image_ids": np.array([entry.id for entry in sorted_entries], np.int64),
        "heights": np.array([entry.height for entry in sorted_entries], np.int64),
        "widths": np.array([entry.width for entry in sorted_entries], np.int64),
        "file_names": Names(np.frombuffer(b"".join(names), np.uint8), _spans(np.cumsum([len(n) for n in names]))),
        "spans": np.searchsorted(image[by], np.arange(len(order))[:, None] + [0, 1]),
        "store": store,
    }


def _column(values: Any, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)


def _spans(ends: Any) -> Ints:
    """Begin, end of each of the pieces that lie one after the other."""
    ends = np.asarray(ends, np.int64)
    return np.stack([np.r_[np.int64(0), ends[:-1]][: len(ends)], ends], 1)
