"""A COCO json as flat arrays in memory-mapped files: written once, opened in milliseconds, shared
by processes.

A folder is named by the hash of its json, so it is never out of date. Its meta.json, which carries
its own digest, has the size, shape and block CRC-32s of every file: damaged bytes are never
returned. Files of at most _SMALL bytes and files with one row per image are checked on opening,
blocks of other files on first use.
By hand, as pycocotools and pandas hold every object in the memory of each process, and the formats
that can be mapped (npy alone, Arrow) have no checksums.

Letters: I images, N annotations.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.annotations import Columns
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.formats import describe_folder
from maskrcnn_lit.data.coco.parse import Instances, Measure, read_instances
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import atomic_folder
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json, write_sealed_json
from maskrcnn_lit.storage.sources import Remote, Source

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]

FORMAT = 7  # version of the arrays; part of the folder name


BLOCK = 2**20  # bytes that share a CRC-32

_SMALL = 2**20  # bytes: files up to this size are checked on opening


class Names(Sequence[str]):
    """Strings stored in one flat byte array, in the order of `spans` (I 2: begin, end)."""

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
    """Images sorted by file name, annotations of an image by box, label and area. Ids and the order
    in the json matter only for equal names and equal annotations.
    """

    image_ids: Ints  # I, as in the json
    image_order: Ints  # I: position in the json's list
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
    amodal_areas: Floats  # N: pixels with the hidden ones; 0: not known
    boxes: Floats  # N 4: x y w h as in the json
    order: Ints  # N: position in the json's list
    doubtful: NDArray[np.bool_]  # N: whether the mask may have no pixel in the box
    part_spans: Ints  # N 2: its polygons, rows of coordinate_spans; none for an RLE
    coordinate_spans: Ints  # polygons 2: begin, end in coordinates
    coordinates: Floats  # x y x y ...
    run_spans: Ints  # N 2: begin, end in runs; none for polygons
    runs: NDArray[np.uint32]  # RLE run lengths
    void_spans: Ints  # I 2: begin, end in void_runs; empty: no void region
    void_runs: NDArray[np.uint32]  # run lengths of void regions
    # LVIS, no rows in other jsons: the labels of the classes that are surely absent in an image,
    # and of those of which not all objects are labeled
    negative_spans: Ints  # I 2: begin, end in negatives
    negatives: Ints
    incomplete_spans: Ints  # I 2: begin, end in incompletes
    incompletes: Ints


def has_mask(arrays: Arrays) -> NDArray[np.bool_]:
    """N: whether an annotation has a mask; False: it has a box alone."""
    pieces = np.diff(arrays.part_spans[:]) + np.diff(arrays.run_spans[:])
    return pieces.reshape(len(arrays.ids)) > 0


class OriginalCategory(NamedTuple):
    """A class of the json, before `classes.choose_classes`."""

    id: int
    name: str
    chosen: str | None  # its new name; None: left out
    objects: int  # in the full json, including crowd regions
    faults: int = 0  # annotations that are faulty in themselves


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The valid entries of a json, and the faults of the others."""

    folder: Path
    categories: tuple[Category, ...]  # of labels 1..K
    faults: tuple[Fault, ...]
    changes: tuple[Fault, ...]  # corrected entries
    arrays: Arrays
    originals: tuple[OriginalCategory, ...] = ()  # empty: the classes are those of the json
    frequencies: Mapping[str, str] = field(default_factory=dict)  # LVIS: class -> r, c or f

    def __reduce__(self) -> tuple[Any, ...]:
        return open_packed, (self.folder,)  # a spawned process maps the files again

    @property
    def names(self) -> Names:
        """I file names."""
        return Names(self.arrays.name_text, self.arrays.name_spans)

    @property
    def federated(self) -> bool:
        """Whether each class is labeled in some of the images only, as in LVIS."""
        return len(self.arrays.negative_spans) > 0

    @property
    def key(self) -> str:
        """A name for the content: equal for equal json files."""
        return self.folder.name


def pack(instances: Instances) -> Arrays:
    """Sorted arrays of a json's instances."""
    columns, images = instances.annotations, instances.images
    order = sorted(range(len(images)), key=lambda i: images[i].name)
    entries = [images[i] for i in order]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    labels, areas = _column(columns.labels, np.int64), _column(columns.areas, np.float64)
    boxes = _column(columns.boxes, np.float64).reshape(-1, 4)
    owners = _column(columns.images, np.int64)
    image = rank[owners] if len(owners) else owners
    by = np.lexsort((areas, labels, *boxes.T[::-1], image))  # the last key is the primary one
    by = by[labels[by] > 0]  # 0: unknown category
    name_text, name_spans = _texts([entry.name for entry in entries])
    url_text, url_spans = _texts([entry.url for entry in entries])
    voids = [np.zeros(0, np.uint32) if e.void is None else e.void for e in entries]
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
        amodal_areas=_column(columns.amodal_areas, np.float64)[by],
        boxes=boxes[by],
        order=_column(columns.entries, np.int64)[by],
        doubtful=doubtful_masks(columns)[by],
        part_spans=_spans(columns.part_ends)[by],
        coordinate_spans=_spans(columns.coordinate_ends),
        coordinates=_column(columns.coordinates, np.float64),
        run_spans=_spans(columns.run_ends)[by],
        runs=_column(columns.runs, np.uint32),
        void_spans=_spans(np.cumsum([len(void) for void in voids])),
        void_runs=np.concatenate([np.zeros(0, np.uint32), *voids]),
        **federated_arrays(
            [entry.negatives or () for entry in entries],
            [entry.incompletes for entry in entries],
            any(entry.negatives is not None for entry in entries),
        ),
    )


def federated_arrays(
    negatives: Sequence[Sequence[int]], incompletes: Sequence[Sequence[int]], federated: bool
) -> dict[str, Ints]:
    """The labels of each image as arrays; no rows unless `federated`."""
    arrays = {}
    for name, values in (("negative", negatives), ("incomplete", incompletes)):
        some = values if federated else []
        arrays[f"{name}_spans"] = _spans(np.cumsum([len(one) for one in some])).reshape(-1, 2)
        arrays[f"{name}s"] = np.array([label for one in some for label in one], np.int64)
    return arrays


_SURE = 1.5  # px: a shape that contains a circle of this radius covers a pixel center, even

_SLACK = 0.5  # px: if it extends this far beyond its box


def doubtful_masks(columns: Columns) -> NDArray[np.bool_]:
    """N, in the order of the file: whether a mask may have no pixel in its box, because it is thin
    or extends beyond the box.

    The largest circle in a shape has a radius of its area over the length of its outline, or more.
    """
    doubtful = _column(columns.doubtful, np.int8).astype(bool)
    spans = _spans(columns.coordinate_ends) // 2  # points
    if not len(spans):
        return doubtful
    starts = spans[:, 0]
    x, y = _column(columns.coordinates, np.float64).reshape(-1, 2).T
    after = np.arange(1, len(x) + 1)
    after[-1:] = 0  # for trailing points that belong to no part
    after[spans[:, 1] - 1] = starts  # the last point connects to the first
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
    """Open the packed form of the json `name` of `source` in `cache`/index; pack it first if it is
    missing or damaged there. A json without image sizes, which are measured from the files, is read
    every time.

    Raises:
        UserError: the file does not exist, or is not a COCO instances json.
    """
    where = f"{source.where}/{name}"
    stamp = source.stamp(name)
    seen = (
        cache / "index" / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"
    )  # the key of the file
    packed = None if stamp is None else _reopen(seen, stamp)
    if packed is not None:
        return packed
    try:
        packed, measured = _pack(_read(source, name), where, cache, measure)
        if stamp is not None and not measured:
            write_sealed_json(seen, {"where": where, "stamp": stamp, "key": packed.key})
    except OSError as error:
        raise cannot_write(cache, error) from None
    except UserError:
        if not isinstance(source, Remote):
            raise
        packed = _pack_again(source, name, cache)
    return packed


def cannot_write(folder: Path, error: OSError) -> UserError:
    """The error for a folder that cannot be written."""
    return UserError(
        f"the packed annotations cannot be written to {folder} ({error}): free space there, or set "
        "another folder, data.cache_dir=DIR"
    )


def _read(source: Source, name: str) -> bytes:
    where = f"{source.where}/{name}"
    try:
        return source.read(name)
    except FileNotFoundError:
        raise UserError(
            f"there is no annotation file {where}: check the path in data.*.annotations"
        ) from None
    except IsADirectoryError:
        description = describe_folder(Path(where))
        raise UserError(f"data.*.annotations={where} is a folder: {description}") from None
    except OSError as error:
        raise UserError(
            f"{where} cannot be read ({error}): check the path in data.*.annotations"
        ) from None


def _pack(data: bytes, where: str, cache: Path, measure: Measure | None) -> tuple[Packed, bool]:
    """The packed json, and whether it depends on measured image files."""
    folder = cache / "index" / f"{hashlib.sha256(data).hexdigest()[:32]}-{FORMAT}"
    packed = open_if_intact(folder)
    if packed is not None:
        return packed, False
    instances = read_instances(data, where, measure)
    if instances.measured:
        sizes = json.dumps(instances.measured).encode()
        folder = folder.with_name(f"{hashlib.sha256(data + sizes).hexdigest()[:32]}-{FORMAT}")
        packed = open_if_intact(folder)
    if packed is None:
        write_packed(folder, instances)
        packed = open_packed(folder)
    return packed, bool(instances.measured)


def _pack_again(source: Remote, name: str, cache: Path) -> Packed:
    """As `_pack`, with a new download: the cached copy may be a proxy's error page. A copy that
    cannot be parsed is removed from the cache.
    """
    source.forget(name)
    try:
        return _pack(_read(source, name), f"{source.where}/{name}", cache, None)[0]
    except UserError:
        source.forget(name)
        raise


def _reopen(seen: Path, stamp: tuple[int, int]) -> Packed | None:
    """The packed form of the file with this `stamp`; None: unknown, changed or damaged."""
    try:
        entry = read_sealed_json(seen)
    except (OSError, DamagedFileError):
        return None
    if entry.get("stamp") != list(stamp):
        return None
    return open_if_intact(seen.parent / str(entry.get("key")))


def open_if_intact(folder: Path) -> Packed | None:
    """Open the packed json in `folder`; None if it is missing, or damaged (it is then removed)."""
    if not folder.is_dir():
        return None
    try:
        return open_packed(folder)
    except UserError:
        return None


def write_packed(folder: Path, instances: Instances) -> None:
    """Write the arrays of a json's instances, see `write_arrays`."""
    write_arrays(
        folder,
        pack(instances),
        categories=instances.categories,
        faults=instances.faults,
        changes=instances.changes,
        frequencies=instances.frequencies,
    )


def write_arrays(
    folder: Path,
    arrays: Arrays,
    *,
    categories: Sequence[Category],
    faults: Sequence[Fault],
    changes: Sequence[Fault],
    originals: Sequence[OriginalCategory] = (),
    frequencies: Mapping[str, str] | None = None,
) -> None:
    """Write the arrays to a temporary folder and rename it when it is complete. If another process
    was faster, its folder, which has the same content, is kept.
    """
    with atomic_folder(folder, replace=False) as writing:
        files = {}
        for field in fields(arrays):
            with open(writing / f"{field.name}.npy", "wb") as file:
                np.save(file, np.asarray(getattr(arrays, field.name)))
            files[field.name] = _describe(
                writing / f"{field.name}.npy", getattr(arrays, field.name)
            )
        meta = {
            "categories": categories,
            "originals": originals,
            "frequencies": dict(frequencies or {}),
            "faults": faults,
            "changes": changes,
            "files": files,
        }
        write_sealed_json(writing / "meta.json", meta)


def _describe(file: Path, array: NDArray[Any]) -> dict[str, Any]:
    """The description of a file by which `_mapped` opens and checks it."""
    with open(file, "rb") as content:
        sums = [zlib.crc32(block) for block in iter(lambda: content.read(BLOCK), b"")]
    size = file.stat().st_size
    return {
        "size": size,
        "offset": size - array.nbytes,
        "dtype": array.dtype.str,
        "shape": array.shape,
        "crc32": sums,
    }


def open_packed(folder: Path) -> Packed:
    """Memory-map the files of `write_packed`.

    Raises:
        UserError: a file is missing or damaged. The folder is then removed.
    """
    try:
        meta = read_sealed_json(folder / "meta.json")
        arrays = {
            field.name: _mapped(folder / f"{field.name}.npy", meta["files"][field.name])
            for field in fields(Arrays)
        }
        return Packed(
            folder=folder,
            categories=tuple(Category(*category) for category in meta["categories"]),
            faults=tuple(Fault(*fault) for fault in meta["faults"]),
            changes=tuple(Fault(*change) for change in meta["changes"]),
            arrays=Arrays(**arrays),
            originals=tuple(OriginalCategory(*category) for category in meta.get("originals", ())),
            frequencies=meta.get("frequencies", {}),
        )
    except (FileNotFoundError, NotADirectoryError, DamagedFileError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from None
    except OSError as error:
        raise UserError(
            f"the packed annotations in {folder} cannot be read ({error}): set another folder, "
            "data.cache_dir=DIR"
        ) from None


def _damaged(folder: Path, problem: str) -> UserError:
    """The error for a damaged folder. The folder is removed, since it can be written again."""
    shutil.rmtree(folder, ignore_errors=True)
    remedy = "remove the folder and " if folder.exists() else "the folder was removed, "
    return UserError(
        f"the packed annotations in {folder} are damaged ({problem}): {remedy}run the same command "
        "again to write it from the json"
    )


def _mapped(file: Path, meta: dict[str, Any]) -> NDArray[Any]:
    """The array in `file`. Raises OSError or DamagedFileError."""
    size = file.stat().st_size
    if size != meta["size"]:
        raise DamagedFileError(f"{file.name} has {size} bytes instead of {meta['size']}")
    mapped = np.asarray(np.memmap(file, np.uint8, "r")).view(np.ndarray)
    blocks = Blocks(file, mapped, meta["crc32"])
    # slicing a memmap object is five times slower than slicing an array
    array = mapped[meta["offset"] :].view(meta["dtype"]).reshape(meta["shape"])
    if size > _SMALL and file.stem not in _BY_IMAGE:
        return cast("NDArray[Any]", CheckedArray(array, meta["offset"], blocks))
    blocks.check(0, size)
    return array


# Arrays with one row per image: they are used in full, not by slices.
_BY_IMAGE = {
    "image_ids",
    "heights",
    "widths",
    "name_spans",
    "url_spans",
    "spans",
    "void_spans",
    "negative_spans",
    "incomplete_spans",
}


class Blocks:
    """A mapped file and the CRC-32 of each block; every block is checked once per process."""

    def __init__(self, file: Path, mapped: NDArray[np.uint8], sums: list[int]) -> None:
        self.file, self.mapped, self.sums = file, mapped, sums
        self.sound = bytearray(len(sums))  # 1: checked

    def check(self, begin: int, end: int) -> None:
        """Raises DamagedFileError if one of the blocks of the bytes begin..end is damaged."""
        for i in range(begin // BLOCK, -(-end // BLOCK)):
            if not self.sound[i]:
                block = self.mapped[i * BLOCK : (i + 1) * BLOCK]
                if zlib.crc32(block.data) != self.sums[i]:
                    raise DamagedFileError(f"{self.file.name} does not match its checksum")
                self.sound[i] = 1


class CheckedArray:
    """An array of a large file that checks each block before it returns items of it. Read it with
    `[]`, or in full with `np.asarray`.

    Raises UserError if the file is damaged; its folder is then removed.
    """

    def __init__(self, array: NDArray[Any], offset: int, blocks: Blocks) -> None:
        self.array, self.offset, self.blocks = array, offset, blocks
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self._row = array.nbytes // len(array)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            begin, end, step = key.indices(len(self.array))
            self._check(begin, end) if step == 1 else self._check(0, len(self.array))
        elif isinstance(key, (int, np.integer)):
            row = int(key) if key >= 0 else int(key) + len(self.array)
            self._check(row, row + 1)
        else:
            self._check(0, len(self.array))
        return self.array[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        self._check(0, len(self.array))
        if copy or (dtype is not None and dtype != self.dtype):
            return self.array.astype(dtype or self.dtype)
        return self.array

    def _check(self, begin: int, end: int) -> None:
        """Check the blocks of the rows begin..end."""
        if 0 <= begin < end <= len(self.array):
            try:
                first = self.offset + begin * self._row
                self.blocks.check(first, first + (end - begin) * self._row)
            except DamagedFileError as error:
                raise _damaged(self.blocks.file.parent, str(error)) from None


def _column(values: Any, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)


def _spans(ends: Any) -> Ints:
    """Begin, end of each of consecutive pieces."""
    ends = np.asarray(ends, np.int64)
    return np.stack([np.r_[np.int64(0), ends[:-1]][: len(ends)], ends], 1)


def _texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Ints]:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), _spans(
        np.cumsum([len(text) for text in encoded])
    )
