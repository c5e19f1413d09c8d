"""A COCO json as flat arrays in memory-mapped files: written once, opened in milliseconds, shared
by processes.

A folder is named by the hash of the json that it was made from, so it is never out of date.
Letters: I images, N annotations.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.annotations import Columns
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.parse import Instances, Measure, read_instances
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.sources import Source

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]

_HEADER = 128  # bytes before the data of an .npy

FORMAT = 2  # of the arrays; another number makes other folders


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


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Images by file name, the annotations of each by box, label and area: ids and the order in the
    json decide nothing, but between equal names and equal annotations.
    """

    image_ids: Ints  # I, as in the json
    image_order: Ints  # I: place in the json's list
    heights: Ints  # I
    widths: Ints  # I
    name_text: NDArray[np.uint8]
    name_spans: Ints  # I 2: begin, end in name_text
    url_text: NDArray[np.uint8]
    url_spans: Ints  # I 2: its coco_url, empty if there is none
    spans: Ints  # I 2: begin, end in the annotations
    ids: Ints  # N
    labels: Ints  # N, 1..K
    crowd: NDArray[np.bool_]  # N
    areas: Floats  # N
    boxes: Floats  # N 4: x y w h as in the json
    order: Ints  # N: place in the json's list
    doubtful: NDArray[np.bool_]  # N: its mask may have no pixel in its box
    part_spans: Ints  # N 2: its polygons, rows of coordinate_spans; none for an RLE
    coordinate_spans: Ints  # polygons 2: begin, end in coordinates
    coordinates: Floats  # x y x y ...
    run_spans: Ints  # N 2: begin, end in runs; none for polygons
    runs: NDArray[np.uint32]  # RLE run lengths


@dataclass(frozen=True, kw_only=True)
class Packed:
    """All that is sound in a json, and the faults of the rest."""

    folder: Path
    categories: tuple[Category, ...]  # of labels 1..K
    faults: tuple[Fault, ...]
    changes: tuple[Fault, ...]  # what is read otherwise than it is written
    arrays: Arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return open_packed, (self.folder,)  # a process that is not forked maps the files, too

    @property
    def names(self) -> Names:
        """I file names."""
        return Names(self.arrays.name_text, self.arrays.name_spans)

    @property
    def key(self) -> str:
        """Names what was packed: equal for equal json files."""
        return self.folder.name


def pack(found: Instances) -> Arrays:
    """Sorted arrays of what a json holds."""
    columns, images = found.annotations, found.images
    order = sorted(range(len(images)), key=lambda i: images[i].name)
    entries = [images[i] for i in order]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    labels, areas = _column(columns.labels, np.int64), _column(columns.areas, np.float64)
    boxes = _column(columns.boxes, np.float64).reshape(-1, 4)
    owners = _column(columns.images, np.int64)
    image = rank[owners] if len(owners) else owners
    by = np.lexsort((areas, labels, *boxes.T[::-1], image))  # the last key counts first
    by = by[labels[by] > 0]  # 0: of no category
    name_text, name_spans = _texts([entry.name for entry in entries])
    url_text, url_spans = _texts([entry.url for entry in entries])
    return Arrays(
        image_ids=np.array([entry.id for entry in entries], np.int64),
        image_order=np.array([entry.entry for entry in entries], np.int64),
        heights=np.array([entry.height for entry in entries], np.int64),
        widths=np.array([entry.width for entry in entries], np.int64),
        name_text=name_text,
        name_spans=name_spans,
        url_text=url_text,
        url_spans=url_spans,
        spans=np.searchsorted(image[by], np.arange(len(order))[:, None] + [0, 1]),
        ids=_column(columns.ids, np.int64)[by],
        labels=labels[by],
        crowd=_column(columns.crowd, np.int8)[by].astype(bool),
        areas=areas[by],
        boxes=boxes[by],
        order=_column(columns.entries, np.int64)[by],
        doubtful=doubtful_masks(columns)[by],
        part_spans=_spans(columns.part_ends)[by],
        coordinate_spans=_spans(columns.coordinate_ends),
        coordinates=_column(columns.coordinates, np.float64),
        run_spans=_spans(columns.run_ends)[by],
        runs=_column(columns.runs, np.uint32),
    )


_SURE = 1.5  # px: a shape that holds a circle of this radius covers the centre of a pixel, and

_SLACK = 0.5  # px: still does where it reaches this far beyond its box


def doubtful_masks(columns: Columns) -> NDArray[np.bool_]:
    """N, in the order of the file: whether a mask may have no pixel inside of its box, since it is
    thin, or reaches beyond the box.

    The largest circle in a shape has a radius of its area over the length of its outline, or more.
    """
    doubtful = _column(columns.doubtful, np.int8).astype(bool)
    spans = _spans(columns.coordinate_ends) // 2  # points
    if not len(spans):
        return doubtful
    starts = spans[:, 0]
    x, y = _column(columns.coordinates, np.float64).reshape(-1, 2).T
    after = np.arange(1, len(x) + 1)
    after[spans[:, 1] - 1] = starts  # behind the last point comes the first
    areas = np.abs(np.add.reduceat(x * y[after] - x[after] * y, starts)) / 2
    lengths = np.add.reduceat(np.hypot(x[after] - x, y[after] - y), starts)
    boxes = _column(columns.boxes, np.float64).reshape(-1, 4)
    owners = np.repeat(np.arange(len(boxes)), np.diff(columns.part_ends, prepend=0))
    low, high = boxes[owners, :2] - _SLACK, boxes[owners, :2] + boxes[owners, 2:] + _SLACK
    inside = areas >= _SURE * lengths
    for axis, values in enumerate((x, y)):
        inside &= np.minimum.reduceat(values, starts) >= low[:, axis]
        inside &= np.maximum.reduceat(values, starts) <= high[:, axis]
    doubtful[owners[inside]] = False
    return doubtful


def open_json(source: Source, name: str, cache: Path, measure: Measure | None = None) -> Packed:
    """The packed form of the json `name` of `source`, in `cache`/index; the first time it is read
    and written there. What depends on image files that were measured is read each time.

    Raises:
        UserError: there is no such file, or it is no COCO instances json.
    """
    where = f"{source.where}/{name}"
    stamp = source.stamp(name)
    seen = (
        cache / "index" / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"
    )  # which key the file had
    if stamp is not None and seen.is_file():
        known = json.loads(seen.read_text())
        if known["stamp"] == list(stamp) and (cache / "index" / known["key"]).is_dir():
            return open_packed(cache / "index" / known["key"])
    try:
        data = source.read(name)
    except FileNotFoundError:
        raise UserError(
            f"there is no annotation file {where}: check the path in data.*.annotations"
        ) from None
    except IsADirectoryError:
        raise UserError(
            f"{where} is a folder: give the COCO json itself in data.*.annotations"
        ) from None
    folder = cache / "index" / f"{hashlib.sha256(data).hexdigest()[:32]}-{FORMAT}"
    found = None if folder.is_dir() else read_instances(data, where, measure)
    if found is not None and found.measured:
        sizes = json.dumps(found.measured).encode()
        folder = folder.with_name(f"{hashlib.sha256(data + sizes).hexdigest()[:32]}-{FORMAT}")
        stamp = None
    if found is not None and not folder.is_dir():
        write_packed(folder, found)
    if stamp is not None:
        write_json(seen, {"where": where, "stamp": stamp, "key": folder.name})
    return open_packed(folder)


def write_packed(folder: Path, found: Instances) -> None:
    """Write the arrays under another name and rename the folder once it is whole. Where another
    process was faster, its folder, which has the same content, stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        arrays = pack(found)
        for field in fields(arrays):
            with open(writing / f"{field.name}.npy", "wb") as file:
                np.save(file, getattr(arrays, field.name))
                file.flush()
                os.fsync(file.fileno())
        meta = {"categories": found.categories, "faults": found.faults, "changes": found.changes}
        write_json(writing / "meta.json", meta)
        writing.chmod(0o755)
        try:
            os.rename(writing, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def open_packed(folder: Path) -> Packed:
    """What `write_packed` wrote, mapped and not read."""
    meta = json.loads((folder / "meta.json").read_text())
    arrays = {field.name: _mapped(folder / f"{field.name}.npy") for field in fields(Arrays)}
    return Packed(
        folder=folder,
        categories=tuple(Category(*category) for category in meta["categories"]),
        faults=tuple(Fault(*fault) for fault in meta["faults"]),
        changes=tuple(Fault(*change) for change in meta["changes"]),
        arrays=Arrays(**arrays),
    )


def _mapped(file: Path) -> NDArray[Any]:
    array = (
        np.load(file, mmap_mode="r") if file.stat().st_size > _HEADER else np.load(file)
    )  # an empty one has no map
    return array.view(np.ndarray)  # slices of a memmap object cost five times as much


def _column(values: Any, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)


def _spans(ends: Any) -> Ints:
    """Begin, end of each of the pieces that lie one after the other."""
    ends = np.asarray(ends, np.int64)
    return np.stack([np.r_[np.int64(0), ends[:-1]][: len(ends)], ends], 1)


def _texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Ints]:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), _spans(
        np.cumsum([len(text) for text in encoded])
    )
