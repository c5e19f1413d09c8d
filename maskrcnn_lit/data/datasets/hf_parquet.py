"""Parquet files of Hugging Face `datasets`: one row for each image, with its bytes in the row.

    root/data/train-00000-of-00002.parquet  or root/train-*.parquet, root/default/train/0000.parquet
    root/data/validation-*.parquet          or val-*.parquet, or test-*.parquet where there is none

A row has a picture, {bytes, path}, and its objects in one of these forms, which `hf_columns` finds:

    objects: {bbox: [[x, y, w, h], ...], category: [0, ...]}    a struct of lists
    objects: [{bbox: [x, y, w, h], category: 0}, ...]           a list of structs
    bbox: [[x, y, w, h], ...]   category: [0, ...]              columns of their own
    masks: [picture, ...]   category: [0, ...]                  a mask of each object
    mask: picture                                               a label image

Rows are read by few, so that memory is bounded whatever the size of the file. The pictures are
written into the cache as they are. No name in a file becomes a path.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_lit.data.coco.categories import some
from maskrcnn_lit.data.coco.faults import BadEntryError, finite, integer_or_none, shown
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datasets.collector import (
    PARTS,
    Collector,
    one_channel,
    rles_of_labels,
    rles_of_mask,
)
from maskrcnn_lit.data.datasets.hf_columns import Columns, find_columns
from maskrcnn_lit.errors import UserError, check_choice
from maskrcnn_lit.storage.files import move_into_place, temporary_file

BOX_FORMATS = ("xywh", "xyxy", "yolo")

ROWS = 16  # read at a time

_BUFFER = 1 << 20  # bytes of a column that are read at a time

_SUFFIXES = {
    "AVIF": ".avif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
}

_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_SPLIT = re.compile(rf"({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"-of-(\d{5})")

_POINTER = b"version https://git-lfs"

_OUTSIDE = 1.0  # px by which a box may leave its image, because of rounding
_SUSPICIOUS = 0.1  # share of boxes outside of their images that shows another format

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HfParquet:
    """Reads parquet files with pictures in them.

    Args:
        image, mask: the columns of the pictures and of their masks; None: found by their names.
        box_format: "xywh" (as COCO), "xyxy", or "yolo" (center, width and height from 0 to 1).
        names: the classes of the numbers 0, 1, ...; None: those that the file states.
        class_name: the class of objects without a column of classes.
    """

    image: str | None = None
    mask: str | None = None
    box_format: str = "xywh"
    names: Sequence[str] | None = None
    class_name: str = "object"

    def parts(self, root: Path) -> Sequence[str]:
        files = _files(root)
        return [part for part in PARTS if part in files]

    def sources(self, root: Path) -> Sequence[Path]:
        return _files(root)["all"]

    def read_into(self, root: Path, part: str, pictures: Path, gigabytes: float) -> Part:
        check_choice(BOX_FORMATS, data__reader__box_format=self.box_format)
        files = _files(root)[part]
        sources = [_Source(file, root if root.is_dir() else root.parent, self) for file in files]
        _check_size(sources, root, gigabytes)
        for source in sources[1:]:
            if source.columns != sources[0].columns:
                raise UserError(
                    f"{source.file} and {files[0]} differ in their columns or classes: give the "
                    "folder of one of them as data.root"
                )
        columns = sources[0].columns
        _log.info(f"{root}: {columns.described}")
        rows = _Rows(self, columns, str(files[0]), Collector(pictures, self.names or columns.names))
        for source in sources:
            for number, row in enumerate(source.rows()):
                rows.add(row, source.name, number)
        _remove_others(pictures, rows.written)
        rows.finish()
        return rows.collector.part()


class _Source:
    """One parquet file.

    Raises:
        UserError: it cannot be read, or has other columns than are expected.
    """

    def __init__(self, file: Path, root: Path, reader: HfParquet) -> None:
        self.file = file
        self.name = file.relative_to(root).with_suffix("").as_posix()
        with _readable(file), _parquet(file) as opened:
            schema = opened.schema_arrow
            metadata = opened.metadata
            groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
            self.columns = find_columns(schema, str(file), reader.image, reader.mask)
            self.picture_bytes = sum(
                chunk.total_uncompressed_size
                for group in groups
                for chunk in (group.column(n) for n in range(group.num_columns))
                if chunk.path_in_schema.split(".")[0] == self.columns.image
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, of which few are in memory at a time."""
        with _readable(self.file), _parquet(self.file) as opened:
            for group in range(opened.num_row_groups):
                batches = opened.iter_batches(
                    batch_size=ROWS,
                    row_groups=[group],
                    columns=self.columns.read,
                    use_threads=False,
                )
                for batch in batches:
                    for n in range(batch.num_rows):
                        yield {name: batch.column(name)[n].as_py() for name in batch.schema.names}


@dataclass
class _Rows:
    """Adds rows to a collector, and their pictures to its folder."""

    reader: HfParquet
    columns: Columns
    file: str
    collector: Collector
    written: set[str] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)  # classes without a name
    boxes: int = 0
    outside: int = 0  # boxes that leave their image
    corners: int = 0  # boxes that are inside of it as x1 y1 x2 y2

    def add(self, row: dict[str, Any], file: str, number: int) -> None:
        where = f"{file}.parquet, row {number}"
        name = self._write(row[self.columns.image], file, number, where)
        image = self.collector.image(name) if name else None
        if name is None or image is None:
            return
        try:
            entries = self.columns.entries(row)
        except BadEntryError as bad:
            self.collector.fault(bad.args[0], name, bad.args[1])
            return
        for entry in entries:
            try:
                fields = self._fields(entry, image)
                self.collector.add_entry(image, self._class(entry), **fields)
            except BadEntryError as bad:
                self.collector.fault(bad.args[0], name, bad.args[1])
        if self.columns.labels:
            self._add_labels(row[self.columns.labels], image)

    def finish(self) -> None:
        """Set the classes of the collector, and check the format of the boxes.

        Raises:
            UserError: many boxes leave their images, and would not as x1 y1 x2 y2.
        """
        if self.outside > _SUSPICIOUS * self.boxes and self.corners == self.boxes:
            raise UserError(
                f"{self.outside} of {self.boxes} boxes of {self.file} leave their images "
                "as x y w h, and none does as x1 y1 x2 y2: give data.reader.box_format=xyxy"
            )
        if self.numbers:
            self.collector.change(
                "classes without names",
                self.file,
                f"the numbers {some(map(str, self.numbers))} are their names: give others with "
                "data.reader.names=[cat, dog]",
            )
        if self.collector.names is None:
            if self.numbers:
                self.collector.names = [str(number) for number in sorted(self.numbers)]
            elif not self.collector.has_objects:
                self.collector.names = [self.reader.class_name]

    def _write(self, value: Any, file: str, number: int, where: str) -> str | None:
        """Write the picture of a row, and return its name; None, and a fault, if it has none."""
        data = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        if not data:
            what = f"only the path {shown(path)}, and no bytes" if path else "no bytes"
            self.collector.fault("no picture", where, what)
            return None
        suffix = _suffix(data)
        if suffix is None:
            self.collector.fault("not an image", where, "unknown format")
            return None
        stem = PurePosixPath(str(path or "").replace("\\", "/")).stem
        plain = re.sub(r"[^A-Za-z0-9_]+", "_", stem)[:60].strip("_")
        name = f"{file}/{number:06}{f'-{plain}' if plain else ''}{suffix}"
        target = self.collector.images / name
        if not _has(target, data):
            with temporary_file(target) as temporary:
                temporary.write_bytes(data)
                move_into_place(temporary, target, durable=False)
        self.written.add(name)
        return name

    def _class(self, entry: dict[str, Any]) -> str:
        value = entry.get("category")
        if "category" not in self.columns.fields:
            return self.reader.class_name
        if isinstance(value, str) and value:
            names = self.reader.names
            if names is not None and value not in names:
                raise BadEntryError("unknown class", f"{shown(value)} is not in data.reader.names")
            return value
        number = integer_or_none(value)
        if number is None:
            raise BadEntryError("unknown class", f"class {shown(value)}, neither number nor text")
        names = self.collector.names
        if names is None:
            self.numbers.add(number)
            return str(number)
        if not 0 <= number < len(names):
            raise BadEntryError("unknown class", f"class {number} of 0 to {len(names) - 1}")
        return str(names[number])

    def _fields(self, entry: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        """The box and the mask of an object, as fields of a COCO annotation."""
        fields: dict[str, Any] = {}
        if entry.get("iscrowd") is not None:
            fields["iscrowd"] = entry["iscrowd"]
        if entry.get("bbox") is not None:
            fields["bbox"] = self._box(entry["bbox"], image)
        if "mask" in self.columns.fields:
            (fields["segmentation"],) = _rles(entry.get("mask"), image, several=False)
            return fields
        shape = _shape(entry.get("segmentation"))
        if shape:
            fields["segmentation"] = shape
        return fields

    def _box(self, value: Any, image: dict[str, Any]) -> list[float]:
        """x y w h in pixels."""
        numbers = [finite(number) for number in value] if isinstance(value, list) else []
        box = [number for number in numbers if number is not None]
        if len(box) != 4 or len(numbers) != 4:
            raise BadEntryError("broken box", f"bbox is {shown(value)}, not 4 numbers")
        a, b, c, d = box
        width, height = image["width"], image["height"]
        if self.reader.box_format == "xyxy":
            return [a, b, c - a, d - b]
        if self.reader.box_format == "yolo":
            return [(a - c / 2) * width, (b - d / 2) * height, c * width, d * height]
        right, bottom = width + _OUTSIDE, height + _OUTSIDE
        self.boxes += 1
        self.outside += a + c > right or b + d > bottom
        self.corners += a < c <= right and b < d <= bottom
        return box

    def _add_labels(self, value: Any, image: dict[str, Any]) -> None:
        try:
            for rle in _rles(value, image, several=True):
                self.collector.add(image, self.reader.class_name, rle)
        except BadEntryError as bad:
            self.collector.fault(bad.args[0], image["file_name"], bad.args[1])


def _shape(value: Any) -> Any:
    """Polygons or an RLE; None: there is neither. COCO's own checks follow."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise BadEntryError("broken segmentation", f"{shown(value)} is not JSON") from None
    if isinstance(value, dict):
        counts = value.get("counts")
        if counts is None and value.get("size") is None:
            return None
        if isinstance(counts, bytes):
            counts = counts.decode("ascii", "replace")
        return {"size": value.get("size"), "counts": counts}
    if isinstance(value, list):
        return [_flat(part) for part in value]
    return value


def _flat(part: Any) -> Any:
    """x y x y ... of [[x, y], ...]; anything else as it is."""
    if isinstance(part, list) and part and all(isinstance(p, list) and len(p) == 2 for p in part):
        return [number for point in part for number in point]
    return part


def _rles(value: Any, image: dict[str, Any], several: bool) -> list[dict[str, Any]]:
    """The objects of a mask picture: those of a label image, or one."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise BadEntryError("no mask", "its picture has no bytes")
    try:
        samples = one_channel(_samples(data))
        if samples.shape != (image["height"], image["width"]):
            height, width = samples.shape
            raise BadEntryError(
                "mask of another size",
                f"{width} x {height}, but the picture is {image['width']} x {image['height']}",
            )
        return rles_of_labels(samples) if several else rles_of_mask(samples)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        text = "unknown format" if "cannot identify" in str(error) else str(error)
        raise BadEntryError("mask cannot be used", text) from None


def _samples(data: bytes) -> NDArray[Any]:
    with Image.open(BytesIO(data)) as picture:
        return np.asarray(picture)


def _suffix(data: bytes) -> str | None:
    """The suffix of a picture's format; None: it is not a picture that can be read."""
    try:
        with Image.open(BytesIO(data)) as picture:
            return _SUFFIXES.get(picture.format or "")
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        return None


def _has(path: Path, data: bytes) -> bool:
    """Whether the file has this content."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove the pictures of rows that the files had before."""
    for where, _, files in os.walk(folder):
        for file in files:
            path = Path(where, file)
            if path.relative_to(folder).as_posix() not in names:
                path.unlink(missing_ok=True)


def _check_size(sources: Sequence[_Source], root: Path, gigabytes: float) -> None:
    total = sum(source.picture_bytes for source in sources) / 1e9
    if total > gigabytes:
        raise UserError(
            f"the pictures of {root} need {math.ceil(total * 100) / 100:g} GB in the cache, and "
            f"data.cache_gb={gigabytes:g} allows less: raise it"
        )


def _files(root: Path) -> dict[str, list[Path]]:
    """The parquet files by part: "all", and "train" and "val" where there are any. Test files are
    "val" where there are no others.

    Raises:
        UserError: there is none.
    """
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    files = [file for file in files if not _hidden(file, root)]
    if not files:
        raise UserError(
            f"{root} has no parquet file: give the folder of train-00000-of-00001.parquet"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file, root), []).append(file)
    for same in splits.values():
        _warn_of_missing(same)
    parts = {
        "train": splits.get("train", []),
        "val": splits.get("validation") or splits.get("test", []),
    }
    return {"all": files} | {part: own for part, own in parts.items() if own}


def _hidden(file: Path, root: Path) -> bool:
    inner = file.relative_to(root).parts if file != root else ()
    return any(part.startswith(".") for part in inner)


def _split_of(file: Path, root: Path) -> str:
    """The split that the name of a file states, or of a folder that it lies in; "" for none."""
    folders = file.relative_to(root).parts[:-1] if file != root else ()
    for name in (file.stem, *reversed(folders)):
        match = _SPLIT.match(name)
        if match:
            return _SPLITS[match[1].lower()]
    return ""


def _warn_of_missing(files: Sequence[Path]) -> None:
    counts = {int(match[1]) for file in files if (match := _SHARD.search(file.name))}
    if len(counts) == 1 and len(files) < min(counts):
        _log.warning(
            f"{files[0]}: {len(files)} of {min(counts)} files are here; only these are used"
        )


def _parquet(file: Path) -> Any:
    """The file, opened.

    Raises:
        UserError: the package pyarrow is missing.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "data=hf_parquet needs the package pyarrow, which is not installed: "
            "pip install 'maskrcnn_lit[hf]'"
        ) from error
    return parquet.ParquetFile(
        file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raise UserError where the block cannot read the file."""
    try:
        yield
    except (OSError, ValueError, RecursionError, NotImplementedError) as error:
        if _is_pointer(file):
            raise UserError(
                f"{file} is a pointer of Git LFS and has no data: get them with `git lfs pull`"
            ) from None
        raise UserError(
            f"{file} cannot be read as parquet ({' '.join(str(error).split())[:200]}): download it "
            "again"
        ) from error


def _is_pointer(file: Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return opened.read(len(_POINTER)) == _POINTER
    except OSError:
        return False
