"""Which image files of an index are there and are what the json says, as far as their headers tell."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.arrays import Packed
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.storage.files import safe_path
from maskrcnn_lit.storage.images import MAX_PIXELS, file_fault
from maskrcnn_lit.storage.sealed import read_sealed_bytes, write_sealed_bytes
from maskrcnn_lit.storage.sources import Folder, Source

Ints = NDArray[np.int64]

_CHUNK = 256  # files a task


def sound_files(
    packed: Packed,
    source: Source,
    rows: Ints,
    wanted: int,
    cache: Path,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Ints, list[Fault]]:
    """The first `wanted` of `rows` whose file is sound, and the faults of those before that are
    not.

    What was found sound is kept in `cache` with size and time of the file: next time only those
    that have changed are opened. Files that are far away are not looked at: that would fetch them
    all.
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
    found, bad = 0, list[Fault]()
    with ThreadPoolExecutor(
        min(16, 4 * (os.cpu_count() or 1))
    ) as pool:  # mostly waiting for the disk
        while found < wanted and len(rows):
            part, rows = np.split(rows, [wanted - found])
            pieces = [part[k : k + _CHUNK] for k in range(0, len(part), _CHUNK)]
            faults = [fault for piece in pool.map(check, pieces) for fault in piece]
            bad += [fault for fault in faults if fault is not None]
            sound.append(part[[fault is None for fault in faults]])
            found += len(sound[-1])
    if not np.array_equal(stamps, before):
        write_sealed_bytes(file, stamps.tobytes())
    return np.concatenate([rows[:0], *sound]), bad


def _check(packed: Packed, source: Source, row: int, stamps: Ints, max_pixels: int) -> Fault | None:
    arrays = packed.arrays
    name = packed.names[row]
    if safe_path(Path(), name) is None:
        return Fault(
            "file name outside of the folder", name, None, f"never read, it leaves {source.where}"
        )
    stamp = source.stamp(name)
    if stamp is not None and stamps[row].tolist() == list(stamp):
        return None
    if stamp is None:
        return Fault("missing file", name, None, "no such file")
    size = int(arrays.heights[row]), int(arrays.widths[row])
    try:
        file = source.path(name) if isinstance(source, Folder) else io.BytesIO(source.read(name))
    except OSError as error:  # a damaged member of a zip
        return Fault("file cannot be read", name, None, str(error))
    fault = file_fault(file, *size, max_pixels)
    if fault is None:
        stamps[row] = stamp
    return Fault(fault[0], name, None, fault[1]) if fault else None


def _read_stamps(file: Path, count: int) -> Ints:
    """I 2: size, and time or what else changes with the content, of each file when it was found
    sound; 0: unknown.
    """
    data = read_sealed_bytes(file)
    if data is None or len(data) != 16 * count:
        return np.zeros((count, 2), np.int64)
    return np.frombuffer(data, np.int64).reshape(count, 2).copy()
