"""Reads files of a zip in place, so that official archives need not be unpacked."""

import os
import posixpath
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.download import AbandonedError, check_inflated
from maskrcnn_lit.storage.files import safe_path

# Exceptions of zipfile for a damaged directory.
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    NotImplementedError,
    OverflowError,
    ValueError,
    EOFError,
    struct.error,
)

_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def inside(name: str, where: str) -> str:
    """`name` normalized; UserError if it points outside of its folder."""
    if safe_path(Path(), name) is None:
        raise UserError(
            f"file name {name!r} points outside of {where}: fix the json, or drop the image with "
            "data.on_bad=skip"
        )
    return posixpath.normpath(name)


class Directory(NamedTuple):
    """The F files of a zip, by name. Arrays, since 118,287 objects of zipfile need 60 MB."""

    names: NDArray[np.bytes_]  # F, normalized and sorted
    files: NDArray[
        np.int64
    ]  # F 6: offset of its header, bytes in the zip, bytes, CRC-32, method, flags


class Zip:
    """A Source (sources.py). Each process opens the file itself, and reads are positional, so that
    no two share a file position. `prefix` is prepended to every name: "train2017/".
    """

    local = True

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.file, self.prefix = path, prefix
        self.where = f"{path}/{prefix}".rstrip("/")
        self._directory: Directory | None = None
        self._opened: dict[int, Any] = {}  # by process

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_directory": None, "_opened": {}}

    def read(self, name: str) -> bytes:
        entry = self._find(name)
        if entry is None:
            raise FileNotFoundError(f"there is no {name} in {self.where}")
        offset, packed, size, crc, method, flags = entry
        if flags & 1 or method not in (_STORED, _DEFLATED):
            raise OSError(
                f"{name} in {self.where} is encrypted or uses an unsupported compression (method "
                f"{method})"
            )
        header = self._bytes(name, offset, 30)
        begin = (
            offset
            + 30
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:30], "little")
        )
        data = self._bytes(name, begin, packed)
        try:
            data = self._inflated(data, size) if method == _DEFLATED else data
        except (zlib.error, AbandonedError) as error:
            raise OSError(f"{name} in {self.where} is damaged: {error}") from None
        if len(data) != size or zlib.crc32(data) != crc:
            raise OSError(f"{name} in {self.where} is damaged: its CRC-32 does not match")
        return data

    def stamp(self, name: str) -> tuple[int, int] | None:
        entry = self._find(name)
        return None if entry is None else (entry[2], entry[3])

    def holds(self, folder: str) -> bool:
        """Whether the zip has files in this folder."""
        names, start = self._read_directory().names, folder.encode() + b"/"
        i = int(np.searchsorted(names, start))
        return i < len(names) and bytes(names[i]).startswith(start)

    def names(self) -> list[str]:
        """The names of its files, normalized and sorted."""
        return [bytes(name).decode() for name in self._read_directory().names]

    def _find(self, name: str) -> list[int] | None:
        names, files = self._read_directory()
        wanted = (self.prefix + inside(name, self.where)).encode()
        i = int(np.searchsorted(names, wanted))
        return files[i].tolist() if i < len(names) and names[i] == wanted else None

    def _read_directory(self) -> Directory:
        if self._directory is None:
            try:
                with zipfile.ZipFile(self.file) as archive:
                    entries = {
                        posixpath.normpath(e.filename).encode(): e
                        for e in archive.infolist()
                        if not e.filename.endswith("/")
                    }
            except _ZIP_FAULTS as error:
                raise UserError(
                    f"{self.file} is not a complete zip ({error}): remove it, and download or copy "
                    "it again"
                ) from None
            rows = [
                (e.header_offset, e.compress_size, e.file_size, e.CRC, e.compress_type, e.flag_bits)
                for _, e in sorted(entries.items())
            ]
            names = np.array(sorted(entries), dtype=bytes)
            self._directory = Directory(names, np.array(rows, np.int64).reshape(-1, 6))
        return self._directory

    def _inflated(self, packed: bytes, size: int) -> bytes:
        """Decompress `packed` to at most `size` + 1 bytes, where `size` is the stated one."""
        check_inflated(len(packed), size)
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)

    def _bytes(self, name: str, offset: int, count: int) -> bytes:
        """`count` bytes of the zip. OSError: the zip is too short."""
        process = os.getpid()
        file = self._opened.get(
            process
        )  # keep a reference: another thread may also open the file and replace this one
        if file is None:
            file = open(self.file, "rb", buffering=0)  # noqa: SIM115
            self._opened = {process: file}
        if not 0 <= offset <= offset + count <= os.fstat(file.fileno()).st_size:
            raise OSError(
                f"{name} in {self.where} is damaged: it extends beyond the end of the zip"
            )
        return os.pread(file.fileno(), count, offset)
