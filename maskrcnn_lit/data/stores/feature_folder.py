"""The folder of stored feature maps: which of its files are in use, and which are removed when it
would become too large.

    KEY.raw, KEY.crc   the maps of one json for one backbone (feature_maps.py)
    KEY.used           a file that every run with these maps has locked, shared; in it are the bytes
                       that they will take (`reserve`)
    KEY.fill           an empty file that the run that computes them has locked
    room.lock          an empty file that a run has locked while it makes room
"""

import fcntl
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from maskrcnn_lit.storage.files import flush_to_disk, locked

SHARE_OF_DISK = 0.8  # of the free space, that may be used

# NFS locks a file for several processes only if it is open for reading, and for one only if it is
# open for writing.
_FOR_LOCKS = "a+b"


def mark_used(file: Path) -> IO[Any]:
    """Lock the maps in `file` (KEY.raw) against their removal by other runs, until the process ends
    or the result is closed. The time of this use is recorded.
    """
    mark = file.with_suffix(".used")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    opened = mark.open(_FOR_LOCKS)
    with suppress(OSError):  # a file system without locks: nothing is removed there
        fcntl.flock(opened, fcntl.LOCK_SH)
    return opened


def disk_bytes(files: Iterable[Path]) -> int:
    """The space that files take on the disk: sparse ones take less than their size."""
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            flush_to_disk(file)  # before, some file systems do not count what was just written
            total += file.stat().st_blocks * 512
    return total


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Between `room` and `reserve`, no other run takes the same room."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "room.lock"):
        yield


def reserve(file: Path, needed: int) -> None:
    """Record that the maps in `file`, which `mark_used` has locked, will take `needed` bytes. A
    larger number of another run with these maps stays.
    """
    if needed > _reserved(file):
        file.with_suffix(".used").write_text(str(needed))


def room(folder: Path, own: Iterable[Path], gigabytes: float) -> int:
    """The bytes that the maps `own` may take in `folder`, if all others are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    there = disk_bytes(folder.glob("*.raw"))
    free = shutil.disk_usage(folder).free + there
    in_use = sum(_taken(file) for file in _others(folder, own) if _is_used(file))
    return int(min(gigabytes * 1e9, SHARE_OF_DISK * free) - in_use)


def make_room(folder: Path, own: Iterable[Path], needed: int, gigabytes: float) -> list[Path]:
    """Remove the maps that were not used for the longest time, until `own` may grow to `needed`
    bytes; return what was removed. Maps that a run uses stay.
    """
    sizes = {
        file: _taken(file) if _is_used(file) else disk_bytes([file])
        for file in sorted(_others(folder, own), key=_last_use)
    }
    total, removed = sum(sizes.values()) + needed, []
    free = shutil.disk_usage(folder).free + disk_bytes(folder.glob("*.raw"))
    limit = min(gigabytes * 1e9, SHARE_OF_DISK * free)
    for file, size in sizes.items():
        if total <= limit:
            break
        if _remove(file):
            total -= size
            removed.append(file)
    return removed


def _others(folder: Path, own: Iterable[Path]) -> set[Path]:
    """The maps in `folder` but `own`, also those of which nothing is stored yet."""
    marks = {mark.with_suffix(".raw") for mark in folder.glob("*.used")}
    return {*folder.glob("*.raw"), *marks} - set(own)


def _taken(file: Path) -> int:
    """The bytes that maps in use take, or will take when all of them are stored."""
    return max(disk_bytes([file]), _reserved(file))


def _reserved(file: Path) -> int:
    """0 where the mark is missing, empty or damaged, or is being written."""
    with suppress(OSError, ValueError):
        return max(0, int(file.with_suffix(".used").read_text()))
    return 0


def _last_use(file: Path) -> float:
    mark = file.with_suffix(".used")
    return mark.stat().st_mtime if mark.is_file() else 0.0


def _is_used(file: Path) -> bool:
    mark = file.with_suffix(".used")
    if not mark.is_file():
        return False
    try:
        with open(mark, _FOR_LOCKS) as opened:
            return not _locked_alone(opened)
    except PermissionError:  # of another user
        return True


def _remove(file: Path) -> bool:
    """Remove maps and their checksums, unless a run uses them or they are of another user. The mark
    stays, empty, as another process may have opened it. False: nothing was there to remove.
    """
    try:
        with open(file.with_suffix(".used"), _FOR_LOCKS) as opened:
            if not _locked_alone(opened):
                return False
            opened.truncate(0)
            file.with_suffix(".crc").unlink(missing_ok=True)
            file.unlink()
    except (FileNotFoundError, PermissionError):
        return False
    return True


def _locked_alone(opened: IO[Any]) -> bool:
    """Whether no other process has locked the file; it is locked until it is closed."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another, or a file system without locks
        return False
    return True
