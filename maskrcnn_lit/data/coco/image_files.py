"""Checks by their headers that the image files of an index exist and match the json, and finds
files whose names were written for another folder or operating system.
"""

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_lit.data.coco.arrays import Packed
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import safe_path
from maskrcnn_lit.storage.images import MAX_PIXELS, file_fault
from maskrcnn_lit.storage.sealed import read_sealed_bytes, write_sealed_bytes
from maskrcnn_lit.storage.sources import Folder, Source

Ints = NDArray[np.int64]

_CHUNK = 256  # files per task

_HINTS = 20  # missing files to search elsewhere

_ORIENTATION = 0x0112  # EXIF tag; values from 5 on swap height and width


class RenamedFiles(Folder):
    """A folder that searches missing files under `other_names`.

    Args:
        extra: leading folders of all names that may be left out.
    """

    def __init__(self, folder: Path, extra: int = 0) -> None:
        super().__init__(folder)
        self._extra = extra

    def path(self, name: str) -> Path:
        if safe_path(Path(), name) is None:
            ends = (other for end in inner_names(name) for other in spellings(end))
            inner = (super(RenamedFiles, self).path(other) for other in ends)
            there = next((path for path in inner if path.is_file()), None)
            return there or super().path(name)  # raises
        path = super().path(name)
        if not path.is_file():
            for other in other_names(name, self.folder, self._extra):
                if safe_path(Path(), other) and super().path(other).is_file():
                    return super().path(other)
        return path

    def name_on_disk(self, name: str) -> str:
        """The name of the file on disk."""
        path = self.path(name)
        if safe_path(Path(), name) is None:
            return path.relative_to(self.folder).as_posix()
        return path.relative_to(self.folder).as_posix() if path != super().path(name) else name


def other_names(name: str, folder: Path, extra: int = 0) -> Iterator[str]:
    """Other names for `name`: with slashes instead of Windows backslashes, without leading folders
    that `folder` already ends with, without up to `extra` leading folders, and each with composed
    and with decomposed letters (macOS writes an umlaut as two characters).
    """
    parts, own = name.replace("\\", "/").split("/"), folder.absolute().parts
    repeated = [n for n in range(len(parts) - 1, 0, -1) if tuple(parts[:n]) == own[-n:]]
    for start in dict.fromkeys((0, *repeated, *range(1, extra + 1))):
        end = "/".join(parts[start:])
        yield from (other for other in spellings(end) if other != name)


def spellings(name: str) -> list[str]:
    """A name as it is, with composed letters, and with decomposed ones; each once."""
    return list(dict.fromkeys((name, composed(name), unicodedata.normalize("NFD", name))))


def composed(name: str) -> str:
    """A name with composed letters, the same for all `spellings`."""
    return unicodedata.normalize("NFC", name)


def inner_names(name: str) -> Iterator[str]:
    """The ends of a name: of /data/1/a.jpg data/1/a.jpg, 1/a.jpg, a.jpg."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    first = 1 if parts and re.fullmatch("[A-Za-z]:", parts[0]) else 0  # a drive of Windows
    yield from ("/".join(parts[start:]) for start in range(first, len(parts)))


def with_renamed_files(packed: Packed, source: Source) -> Source:
    """`source`, or one that also searches `other_names`, if a name of the json has any."""
    if not isinstance(source, Folder):
        return source
    text = packed.arrays.name_text.tobytes()
    doubled = f"{source.folder.absolute().name}/".encode("utf-8", "surrogateescape")
    begins, ends = packed.arrays.name_spans.T
    first = packed.arrays.name_text[begins[begins < ends]]
    written_elsewhere = (
        any(mark in text for mark in (b"\\", b"..", b":", doubled))
        or not text.isascii()
        or (first == ord("/")).any()
    )
    extra = _extra_folders(packed, source)
    return RenamedFiles(source.folder, extra) if written_elsewhere or extra else source


def _extra_folders(packed: Packed, source: Folder) -> int:
    """How many leading folders all names share, if the first of these is neither in the folder nor
    beside it: an annotation tool wrote them. 0 where the first file lies at its name.
    """
    if not len(packed.names) or _is_file(source.folder / packed.names[0]):
        return 0
    folders = [name.replace("\\", "/").split("/")[:-1] for name in packed.names]
    first, last = min(folders), max(folders)  # the others share what these two share
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shared = [name for name, _ in alike]
    folder = source.folder.absolute()
    if not shared or any((parent / shared[0]).exists() for parent in (folder, folder.parent)):
        return 0
    return len(shared)


def renamed(packed: Packed, source: Source, rows: Ints) -> list[Fault]:
    """The files of images `rows` that were found under another name, as changes."""
    if not isinstance(source, RenamedFiles):
        return []
    pairs = ((packed.names[int(row)], int(row)) for row in rows)
    names = ((name, source.name_on_disk(name)) for name, _ in pairs)
    return [
        Fault("file name", name, None, f"the file is {other}")
        for name, other in names
        if other != name
    ]


def image_size(source: Source, name: str) -> tuple[int, int] | None:
    """Height and width of an image file from its header, after EXIF rotation; None without a
    readable header.
    """
    if safe_path(Path(), name) is None:
        return None
    try:
        file = source.path(name) if isinstance(source, Folder) else io.BytesIO(source.read(name))
        with Image.open(file) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        return None


def readable_files(
    packed: Packed,
    source: Source,
    rows: Ints,
    wanted: int,
    cache: Path,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Ints, list[Fault]]:
    """The first `wanted` of `rows` with a valid file, and the faults of the invalid ones before.

    Valid files are recorded in `cache` with size and time, so next time only changed files are
    opened. Remote files are not checked: that would download all of them.
    """
    if not source.local:
        return rows[:wanted], []
    key = f"{source.where} {max_pixels}"
    file = cache / "sound" / f"{packed.key}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.bin"
    stamps = _read_stamps(file, len(packed.arrays.image_ids))
    before = stamps.copy()

    def check(part: Ints) -> list[Fault | None]:
        return [_check(packed, source, int(row), stamps, max_pixels) for row in part]

    sound: list[Ints] = []
    count, bad = 0, list[Fault]()
    with ThreadPoolExecutor(
        min(16, 4 * (os.cpu_count() or 1))
    ) as pool:  # mostly waits for the disk
        while count < wanted and len(rows):
            part, rows = np.split(rows, [wanted - count])
            pieces = [part[k : k + _CHUNK] for k in range(0, len(part), _CHUNK)]
            faults = [fault for piece in pool.map(check, pieces) for fault in piece]
            bad += [fault for fault in faults if fault is not None]
            sound.append(part[[fault is None for fault in faults]])
            count += len(sound[-1])
    if not np.array_equal(stamps, before):
        write_sealed_bytes(file, stamps.tobytes())
    return np.concatenate([rows[:0], *sound]), _with_hints(bad, source)


def _check(packed: Packed, source: Source, row: int, stamps: Ints, max_pixels: int) -> Fault | None:
    arrays = packed.arrays
    name = packed.names[row]
    if safe_path(Path(), name) is None and not _is_inside(source, name):
        return Fault(
            "file name outside of the folder", name, None, f"never read, it leaves {source.where}"
        )
    try:
        stamp = source.stamp(name)
    except OSError as error:  # a name that is too long, a folder without read permission
        return Fault("missing file", name, None, f"{error.strerror or error}")
    if stamp is not None and stamps[row].tolist() == list(stamp):
        return None
    if stamp is None:
        return Fault("missing file", name, None, f"no such file: {source.where}/{name}")
    size = int(arrays.heights[row]), int(arrays.widths[row])
    try:
        file = source.path(name) if isinstance(source, Folder) else io.BytesIO(source.read(name))
    except OSError as error:  # a damaged member of a zip
        return Fault("file cannot be read", name, None, str(error))
    fault = file_fault(file, *size, max_pixels)
    if fault is None:
        stamps[row] = stamp
    return Fault(fault[0], name, None, fault[1]) if fault else None


def _is_inside(source: Source, name: str) -> bool:
    """Whether the end of a name that leaves the folder is a file in it."""
    try:
        return isinstance(source, RenamedFiles) and source.path(name).is_file()
    except (OSError, ValueError, UserError):
        return False


def _with_hints(faults: list[Fault], source: Source) -> list[Fault]:
    """The faults; the first missing files get a hint where a file of that name exists."""
    if not isinstance(source, Folder):
        return faults
    missing = [n for n, fault in enumerate(faults) if fault.kind == "missing file"][:_HINTS]
    if not missing:
        return faults
    folder = source.folder.absolute()
    below = [path for path in folder.iterdir() if path.is_dir()]
    for n in missing:
        name = faults[n].image.replace("\\", "/")
        base = name.rsplit("/", 1)[-1]
        for root in (folder.parent, *below):
            if base and _is_file(root / name):
                faults[n] = _hinted(faults[n], f"{root / name} exists: did you mean images={root}?")
                break
        else:
            other = _other_file(folder, name) if base else None
            if other:
                faults[n] = _hinted(faults[n], f"{folder / other} exists: write file_name={other}")
    return faults


def _other_file(folder: Path, name: str) -> str | None:
    """A file in `folder` with an end of this name, or with its letters in another case."""
    end = next((end for end in inner_names(name) if _is_file(folder / end)), None)
    if end is not None:
        return end
    parent, _, base = name.rpartition("/")
    with suppress(OSError, ValueError):
        for other in sorted(os.listdir(folder / parent)):
            if other.casefold() == base.casefold():
                return f"{parent}/{other}" if parent else other
    return None


def _hinted(fault: Fault, hint: str) -> Fault:
    return fault._replace(what=f"{fault.what}; {hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read_stamps(file: Path, count: int) -> Ints:
    """I 2: size, and modification time or another content stamp, of each file when it was last
    valid; 0: unknown.
    """
    data = read_sealed_bytes(file)
    if data is None or len(data) != 16 * count:
        return np.zeros((count, 2), np.int64)
    return np.frombuffer(data, np.int64).reshape(count, 2).copy()
