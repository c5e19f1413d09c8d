"""Stores pieces of bytes in one memory-mapped file; the first process that needs a piece computes
it.

The file is sparse and has its final size from the start: a subset of a data set uses only its own
space. A checksum for each piece shows whether it is present and complete, even if the writing
process was killed.
"""

import logging
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_log = logging.getLogger(__name__)


class MemmapStore:
    """Piece i is the bytes `spans[i]` (begin, end) of `file`.

    Processes may share it, by fork or by pickle, and read and write at the same time: they all
    write the same content.
    """

    def __init__(self, file: Path, spans: Ints) -> None:
        self.file, self.spans = file, spans
        self._full = False
        self._opened: tuple[int, int, NDArray[np.uint8]] | None = (
            None  # two file descriptors, the mapped file
        )

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": None}

    def get(self, i: int, stamp: bytes = b"") -> NDArray[np.uint8] | None:
        """Piece i, read-only; None if it is missing, or was stored with another `stamp` (of its
        source).
        """
        try:
            _, checks, mapped = self._open()
        except OSError as error:  # the folder is read-only and has no such file
            self._say_full(error)
            return None
        begin, end = self.spans[i].tolist()
        piece = mapped[begin:end]
        known = os.pread(checks, 4, 4 * i)
        return piece if known != bytes(4) and known == _check(piece, stamp) else None

    def put(self, i: int, piece: NDArray[np.uint8], stamp: bytes = b"") -> None:
        """Store piece i. On a full disk nothing is stored, and a warning is logged once."""
        content = np.ascontiguousarray(piece).reshape(-1)
        if content.size != self.spans[i, 1] - self.spans[i, 0]:
            raise ValueError(
                f"piece {i} has {content.size} bytes; expected "
                f"{self.spans[i, 1] - self.spans[i, 0]}"
            )
        try:
            data, checks, _ = self._open()
            if os.pwrite(data, content.data, int(self.spans[i, 0])) == content.size:
                os.pwrite(checks, _check(content, stamp), 4 * i)
        except OSError as error:  # a full disk: missing pieces are computed every time
            self._say_full(error)

    def _say_full(self, error: OSError) -> None:
        if not self._full:
            _log.warning(
                "cannot write to %s (%s): loading continues without this cache, but slower",
                self.file,
                error,
            )
        self._full = True

    def _open(self) -> tuple[int, int, NDArray[np.uint8]]:
        """Open the file; in a read-only folder, open an existing file for reading."""
        if self._opened is None:
            other, size = self.file.with_suffix(".crc"), int(self.spans.max(initial=1))
            opened: list[int] = []
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                opened += [os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)]
                opened += [os.open(other, os.O_RDWR | os.O_CREAT, 0o644)]
                if os.fstat(opened[0]).st_size < size:
                    os.ftruncate(opened[0], size)
                data, checks = opened
            except OSError:
                for file in opened:
                    os.close(file)
                if not other.is_file() or self.file.stat().st_size < size:
                    raise
                data, checks = os.open(self.file, os.O_RDONLY), os.open(other, os.O_RDONLY)
            mapped = np.asarray(np.memmap(self.file, np.uint8, "r", shape=(size,))).view(np.ndarray)
            self._opened = data, checks, mapped
        return self._opened


def _check(piece: NDArray[np.uint8], stamp: bytes) -> bytes:
    return zlib.crc32(piece.data, zlib.crc32(stamp)).to_bytes(4, "little")
