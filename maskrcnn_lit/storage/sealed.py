"""Files with a digest of their own content, so that damage is detected on reading.

JSON objects store it under the key "sha256", byte files before the content. A zip, such as a
checkpoint, has a CRC-32 for each member: `zip_fault` verifies them, which torch does not.
"""

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from maskrcnn_lit.storage.files import atomic_write, without_nan

SEAL = "sha256"

_CHUNK = 2**20  # bytes

_ZIP_FAULTS = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    OverflowError,
    RuntimeError,  # "encrypted"
    struct.error,
)


class DamagedFileError(ValueError):
    """The content of a file is damaged; the message gives the evidence."""


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as an indented JSON object, atomically, with its digest as the last key."""
    content = without_nan(value)
    sealed = {**content, SEAL: _digest(json.loads(json.dumps(content)))}
    atomic_write(path, json.dumps(sealed, indent=1) + "\n")


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read a file of `write_sealed_json`. A file without a digest is accepted: versions before 0.2
    wrote none.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is not JSON, not an object, or does not match its digest.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"it is not JSON: {error}" if data else "it is empty") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"it has a {type(value).__name__} instead of an object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _digest(value):
        raise DamagedFileError("its content does not match its checksum")
    return value


def write_sealed_bytes(path: Path, content: bytes) -> None:
    """Write `content` after its digest, atomically."""
    atomic_write(path, hashlib.sha256(content).digest() + content)


def read_sealed_bytes(path: Path) -> bytes | None:
    """Read a file of `write_sealed_bytes`; None if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def zip_fault(path: Path) -> str | None:
    """The fault of the members of the zip `path`, or None. Reads the full file, about 1 GB/s.

    None for a file that is not a zip, which has no checksums.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as content:
                    while content.read(_CHUNK):  # the last read verifies the CRC-32
                        pass
    except _ZIP_FAULTS as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _digest(value: Any) -> str:
    """The digest of plain data, independent of key order and file layout."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
