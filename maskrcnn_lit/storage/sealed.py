"""Files that carry a digest of their own content, so that a damaged one is noticed when it is read.

JSON objects have it under the key "sha256", and bytes in front of the content. A zip has a CRC-32
for each of its members, and a checkpoint is a zip: `zip_fault` compares them, which torch does not.
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
    """The content of a file is not what was written; the message says how it shows."""


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as an indented JSON object, atomically, with its digest as the last key."""
    content = without_nan(value)
    sealed = {**content, SEAL: _digest(json.loads(json.dumps(content)))}
    atomic_write(path, json.dumps(sealed, indent=1) + "\n")


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What `write_sealed_json` wrote. A file without a digest is taken as it is: versions before
    0.2 wrote none.

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
        raise DamagedFileError(f"it has a {type(value).__name__} in place of an object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _digest(value):
        raise DamagedFileError("its content does not match its checksum")
    return value


def write_sealed_bytes(path: Path, content: bytes) -> None:
    """Write `content` behind its digest, atomically."""
    atomic_write(path, hashlib.sha256(content).digest() + content)


def read_sealed_bytes(path: Path) -> bytes | None:
    """What `write_sealed_bytes` wrote; None if there is no such file or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def zip_fault(path: Path) -> str | None:
    """What is wrong with the members of the zip `path`, or None. All of it is read, about 1 GB/s.

    A file that does not begin as a zip has no checksums to compare: None.

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
                    while content.read(_CHUNK):  # the last read compares the CRC-32
                        pass
    except _ZIP_FAULTS as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys and the layout of the file."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
