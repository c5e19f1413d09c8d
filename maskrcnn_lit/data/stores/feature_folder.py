"""The folder of stored feature maps: which of its files are in use, and which are removed when it
would become too large.

    KEY.raw, KEY.crc   the maps of one json for one backbone (feature_maps.py)
    KEY.used           an empty file that every run with these maps has locked, shared
    KEY.fill           an empty file that the run that computes them has locked
"""

import fcntl
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from maskrcnn_lit.storage.files import flush_to_disk

SHARE_OF_DISK = 0.8  # of the free space, that may be used


def mark_used(file: Path) -> IO[Any]:
    """Lock the maps in `file` (KEY.raw) against their removal by other runs, until the process ends
    or the result is closed. The time of this use is recorded.
    """
    mark = file.with_suffix(".used")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    opened = mark.open("ab")
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


def room(folder: Path, own: Iterable[Path], gigabytes: float) -> int:
    """The bytes that the maps `own` may take in `folder`, if all others are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    there = disk_bytes(folder.glob("*.raw"))
    free = shutil.disk_usage(folder).free + there
    in_use = disk_bytes(f for f in folder.glob("*.raw") if f not in set(own) and _is_used(f))
    return int(min(gigabytes * 1e9, SHARE_OF_DISK * free) - in_use)


def make_room(folder: Path, own: Iterable[Path], needed: int, gigabytes: float) -> list[Path]:
    """Remove the maps that were not used for the longest time, until `own` may grow to `needed`
    bytes; return what was removed. Maps that a run uses stay.
    """
    own = set(own)
    others = [file for file in folder.glob("*.raw") if file not in own]
    total, removed = disk_bytes(others) + needed, []
    limit = min(gigabytes * 1e9, SHARE_OF_DISK * (shutil.disk_usage(folder).free + total - needed))
    for file in sorted(others, key=_last_use):
        if total <= limit:
            break
        size = disk_bytes([file])
        if _remove(file):
            total -= size
            removed.append(file)
    return removed


def _last_use(file: Path) -> float:
    mark = file.with_suffix(".used")
    return mark.stat().st_mtime if mark.is_file() else 0.0


def _is_used(file: Path) -> bool:
    mark = file.with_suffix(".used")
    if not mark.is_file():
        return False
    with open(mark, "rb") as opened:
        return not _locked_alone(opened)


def _remove(file: Path) -> bool:
    """Remove maps and their checksums, unless a run uses them. The mark stays, as another process
    may have opened it.
    """
    with open(file.with_suffix(".used"), "ab") as opened:
        if not _locked_alone(opened):
            return False
        file.with_suffix(".crc").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
    return True


def _locked_alone(opened: IO[Any]) -> bool:
    """Whether no other process has locked the file; it is locked until it is closed."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another, or a file system without locks
        return False
    return True
