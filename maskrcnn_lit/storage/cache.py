"""A bounded disk cache of remote files, and a thread pool that fills it ahead of the readers.

    folder/ab/cdef...   one file for each entry, named by the hash of its key: _HEADER and content
    folder/locks/abc    one lock for all keys with this prefix of the hash: a file is fetched once
    folder/size         bytes of all entries, under its own lock

Any number of processes and threads may share a folder. Entries are created atomically by a rename;
a process with an open entry can read it to its end, even if it is evicted meanwhile. The time of
an entry's last use is the modification time of its file.

By hand, as the common disk cache package (diskcache) unpickles what it reads and is no longer
maintained.
"""

import hashlib
import logging
import os
import queue
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from maskrcnn_lit.storage.files import locked, move_into_place, temporary_file

_HEADER = struct.Struct("<4sIQ")  # magic bytes, the CRC-32 of the content, its length

_MARK = b"mrl1"

_DIGITS = 20  # of the total

# share of the limit that remains after an eviction, so that it is not needed at every write
_ROOM = 0.9

_log = logging.getLogger(__name__)

Batch = TypeVar("Batch")


class Cache:
    """A disk cache of remote content, at most `gigabytes`, with least-recently-used eviction.

    If the disk is full or read-only, writing stops with one warning; reading continues.
    """

    def __init__(self, folder: Path, gigabytes: float) -> None:
        self.folder, self.limit = folder, int(gigabytes * 1e9)
        self._writes = self.limit > 0

    def read(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """The content of `key`: the cached copy, or the result of `fetch`, which is then cached."""
        path = self._path(key)
        if (content := _read(path)) is not None:
            return content
        with self._one_at_a_time(path):
            if (content := _read(path)) is not None:  # fetched by another process meanwhile
                return content
            data = fetch()
            if self._writes:
                try:
                    self._write(path, data)
                except OSError as error:
                    self._stop(error)
            return data

    def fill(self, key: str, fetch: Callable[[], bytes]) -> None:
        """Make sure that `key` is cached, and mark it as used now. Does not fetch if the cache
        cannot be written.
        """
        if self._writes and not _touch(self._path(key)):
            self.read(key, fetch)

    def forget(self, key: str) -> None:
        """Remove the copy of `key`, because its content is wrong."""
        with suppress(OSError):  # not cached, or the disk is read-only
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    @contextmanager
    def _one_at_a_time(self, path: Path) -> Iterator[None]:
        with ExitStack() as stack:
            if self._writes:
                lock = self.folder / "locks" / f"{path.parent.name}{path.name[0]}"
                try:
                    lock.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(lock))
                except OSError as error:
                    self._stop(error)
            yield

    def _write(self, path: Path, data: bytes) -> None:
        size = _HEADER.size + len(data)
        if size > self.limit:
            return
        with temporary_file(path) as temporary:
            temporary.write_bytes(_HEADER.pack(_MARK, zlib.crc32(data), len(data)) + data)
            with locked(self.folder / "locks" / "size"):
                total = self._total() - _size(path) + size
                if total > self.limit:
                    total = self._throw_out(int(self.limit * _ROOM) - size) + size
                (self.folder / "size").write_text(f"{total:0{_DIGITS}}")
                # not flushed to the disk: the header shows what a crash has cut
                move_into_place(temporary, path, durable=False)

    def _total(self) -> int:
        file = self.folder / "size"
        text = file.read_text() if file.is_file() else ""
        if len(text) == _DIGITS and text.isdecimal():
            return int(text)
        return sum(size for _, size, _ in self._entries())  # a new folder, or after a crash

    def _throw_out(self, allowed: int) -> int:
        """Evict least recently used entries until at most `allowed` bytes remain; return the
        remaining bytes.
        """
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= allowed:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Last use, size and path of every entry."""
        for part in os.scandir(self.folder):
            if part.is_dir() and len(part.name) == 2:
                for entry in os.scandir(part):
                    stat = entry.stat()
                    if (
                        not entry.name.startswith(".") or stat.st_mtime < time.time() - 3600
                    ):  # left by a crash
                        yield stat.st_mtime_ns, stat.st_size, entry.path

    def _stop(self, error: OSError) -> None:
        if self._writes:
            self._writes = False
            _log.warning(
                "%s cannot be written (%s): downloads are no longer cached there (set another "
                "folder with data.cache_dir=DIR)",
                self.folder,
                error.strerror or error,
            )


def _read(path: Path) -> bytes | None:
    """The content of an entry; None if missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # evicted meanwhile, or owned by another user
        os.utime(path)
    content = data[_HEADER.size :]
    if len(data) < _HEADER.size or _HEADER.unpack_from(data) != (
        _MARK,
        zlib.crc32(content),
        len(content),
    ):
        return None
    return content


def _touch(path: Path) -> bool:
    """Whether the entry exists with the right length; if so, mark it as used now."""
    try:
        with open(path, "rb") as file:
            mark, _, length = _HEADER.unpack(file.read(_HEADER.size))
            if mark != _MARK or os.fstat(file.fileno()).st_size != _HEADER.size + length:
                return False
        os.utime(path)
        return True
    except (OSError, struct.error):
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Prefetch:
    """Threads that call `fill` for keys ahead of their readers, to fill a `Cache`.

    Errors are ignored here; the reader will see them. The threads do not survive a fork and do not
    delay the exit.

    Args:
        fill: called with each key.
        in_flight: number of parallel calls.
        waiting: maximum number of queued keys; further keys are dropped.
    """

    def __init__(
        self, fill: Callable[[str], object], in_flight: int = 8, waiting: int = 4096
    ) -> None:
        self._fill = fill
        self._keys: queue.Queue[str | None] = queue.Queue(max(waiting, in_flight))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(in_flight)]
        for thread in self._threads:
            thread.start()

    def submit(self, keys: Iterable[str]) -> None:
        """Queue keys; return at once."""
        for key in keys:
            try:
                self._keys.put_nowait(key)
            except queue.Full:
                return

    def close(self) -> None:
        """Drop queued keys. Do not wait for hanging requests."""
        while True:
            try:
                self._keys.get_nowait()
            except queue.Empty:
                break
        for _ in self._threads:
            self._keys.put_nowait(None)

    def _work(self) -> None:
        while (key := self._keys.get()) is not None:
            try:
                self._fill(key)
            except Exception as error:
                _log.debug("%s cannot be prefetched: %s", key, error)


def lookahead(
    batches: Iterable[Batch], tell: Callable[[Batch], object], lookahead: int
) -> Iterator[Batch]:
    """Yield the batches; call `tell` with each batch `lookahead` positions before it is yielded."""
    waiting: deque[Batch] = deque()
    for batch in batches:
        tell(batch)
        waiting.append(batch)
        if len(waiting) > lookahead:
            yield waiting.popleft()
    yield from waiting
