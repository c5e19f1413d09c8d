"""Atomic file writes: readers see a complete file or none, even after a killed run."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from platformdirs import user_cache_path


def safe_path(folder: Path, name: str) -> Path | None:
    """`folder`/`name`, or None if `name` points outside of the folder, on any operating system.
    Links in the folder are followed: the user created them.
    """
    inside = os.path.normpath(name.replace("\\", "/"))
    absolute = os.path.isabs(inside) or re.match("[A-Za-z]:/", inside)
    if not name or "\0" in name or absolute or inside.split("/")[0] in ("..", "."):
        return None
    return folder / name


def default_cache() -> Path:
    """The user's cache folder; on Linux ~/.cache/maskrcnn_lit, or $XDG_CACHE_HOME/maskrcnn_lit."""
    return user_cache_path("maskrcnn_lit", appauthor=False)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`: to a temporary file in the same folder, flushed to the disk, then
    renamed over it.
    """
    with temporary_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        move_into_place(temporary, path)


@contextmanager
def temporary_file(path: Path, *, unique: bool = True) -> Iterator[Path]:
    """A name in the folder of `path` for a file that `move_into_place` gives its name once it is
    complete. A file that still has this name at the end of the block is removed. The folder is made
    where there is none. An OSError of the block names `path`.

    Args:
        unique: whether writers of one `path` at a time get different names. Otherwise a name that
            is always the same, so that the next run overwrites what a killed one left.
    """
    ending = secrets.token_hex(8) if unique else "partial"
    temporary = path.with_name(f".{path.name}.{ending}")
    with errors_with_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            with suppress(OSError):  # the folder may be read-only since a moment ago
                temporary.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Rename the complete file `temporary`, of the same folder, to `path`, replacing a file there.

    Args:
        durable: flush it to the disk first, so that after a power cut `path` is complete as well.
    """
    if durable:
        flush_to_disk(temporary)
    os.replace(temporary, path)


@contextmanager
def atomic_folder(folder: Path, *, replace: bool, durable: bool = True) -> Iterator[Path]:
    """A temporary folder beside `folder`, which gets its name at the end of the block. It is
    removed if the block raises.

    Args:
        replace: what happens to a folder that is there by then: True removes it, False leaves it
            and drops the new one, as its content is the same.
        durable: flush every file to the disk first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        new = beside / "new"
        new.mkdir()
        yield new
        for file in new.rglob("*") if durable else ():
            if file.is_file():
                flush_to_disk(file)
        if replace and folder.exists():
            folder.rename(beside / "old")
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def drop_incomplete_line(path: Path) -> None:
    """Cut off what follows the last line break of a file, which a killed process may have left;
    nothing if there is no file.
    """
    if not path.is_file():
        return
    with errors_with_path(path), open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def errors_with_path(path: Path) -> Iterator[None]:
    """Set `path` as the file name of OSErrors in the block: those of a write have none, or a
    temporary one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def config_digest(config: dict[str, Any]) -> str:
    """SHA-256 of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path, algorithm: str) -> str:
    """The digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # a file system without locks

_ATTEMPTS = 3  # to get a lock without waiting for its owner


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock `path`, an empty file that stays, for one thread of one process at a time. Others wait
    or, with `wait` False, continue at once and get False.

    On a file system without locks, no one waits; atomic writes are still correct, but may happen
    twice.
    """
    with open(path, "ab") as file:
        try:
            free = _lock(file, wait)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield True
            return
        if not free:
            yield False
            return
        try:
            yield True
        finally:  # closing the file is not enough if a forked process has it open, too
            fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: IO[bytes], wait: bool) -> bool:
    """Lock the open file; without `wait` False if another process has it. It tries several times:
    `is_locked` takes a lock for an instant.
    """
    if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(0.02)
    return False


def is_locked(path: Path) -> bool | None:
    """Whether a process has the lock `path`; nothing is written. None: unknown, since the file
    system has no locks or the file may not be read.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as JSON, atomically; NaN and infinity, which JSON does not have, become null.
    `indent` None: one line.
    """
    atomic_write(path, json.dumps(without_nan(value), indent=indent) + "\n")


def without_nan(value: Any) -> Any:
    """Plain data with None instead of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
