"""Image files of samples that Pillow does not write: TIFF and PNG of any depth, order of bytes,
orientation and number of channels, made from the numbers that they hold.
"""

import struct
import zlib
from collections.abc import Callable

import numpy as np

# EXIF orientation -> (row, column) of a stored pixel of an H W image -> where it is to be seen, by
# the words of the standard ("6: row 0 is the visual right, column 0 the visual top").
SEEN: dict[int, Callable[[int, int, int, int], tuple[int, int]]] = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (c, h - 1 - r),
    7: lambda r, c, h, w: (w - 1 - c, h - 1 - r),
    8: lambda r, c, h, w: (w - 1 - c, r),
}


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """H W C pixels as they are to be seen, moved one by one."""
    h, w = stored.shape[:2]
    size = (w, h) if orientation > 4 else (h, w)
    seen = np.zeros((*size, *stored.shape[2:]), stored.dtype)
    for r in range(h):
        for c in range(w):
            seen[SEEN[orientation](r, c, h, w)] = stored[r, c]
    return seen


def tiff(
    samples: np.ndarray,
    order: str = "<",
    *,
    orientation: int = 1,
    bits: int | None = None,
    photometric: int | None = None,
    deflate: bool = False,
    pages: int = 1,
) -> bytes:
    """A TIFF of samples H W or H W C, one strip; `bits` 12: two samples in three bytes. Further
    pages hold the samples upside down.
    """
    order_mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    content, links = bytearray(order_mark + bytes(4)), [4]
    for page in range(pages):
        entries, strip = _page(samples[::-1] if page % 2 else samples, order, bits, deflate)
        entries[262] = ("H", [photometric if photometric is not None else 1 + (samples.ndim > 2)])
        entries[274] = ("H", [orientation])
        begin = len(content)
        content += strip + bytes(len(strip) % 2)
        entries[273] = ("I", [begin])
        struct.pack_into(f"{order}I", content, links[-1], len(content))
        links.append(_write_directory(content, entries, order))
    return bytes(content)


def _page(
    samples: np.ndarray, order: str, bits: int | None, deflate: bool
) -> tuple[dict[int, tuple[str, list[int]]], bytes]:
    h, w = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim > 2 else 1
    if bits == 12:
        values = samples.reshape(h, w // 2, 2).astype(np.uint32)
        both = values[..., 0] << 12 | values[..., 1]
        strip = np.stack([both >> 16, both >> 8 & 255, both & 255], -1).astype(np.uint8).tobytes()
    else:
        strip = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if deflate else strip
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("I", [w]),
        257: ("I", [h]),
        258: ("H", [bits or 8 * samples.dtype.itemsize] * channels),
        259: ("H", [8 if deflate else 1]),
        277: ("H", [channels]),
        278: ("I", [h]),
        279: ("I", [len(strip)]),
        339: ("H", [kind] * channels),
    }
    if channels == 4:
        entries[338] = ("H", [2])
    return entries, strip


def _write_directory(
    content: bytearray, entries: dict[int, tuple[str, list[int]]], order: str
) -> int:
    """Append it, and give the place of its link to the next one."""
    directory, begin = bytearray(struct.pack(f"{order}H", len(entries))), len(content)
    behind = begin + 2 + 12 * len(entries) + 4
    more = bytearray()
    for tag, (code, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{code}", *values)
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(values))
        if len(data) > 4:
            directory += struct.pack(f"{order}I", behind + len(more))
            more += data
        else:
            directory += data.ljust(4, b"\0")
    content += directory + bytes(4) + more
    return behind - 4


def png(samples: np.ndarray) -> bytes:
    """A PNG of uint16 samples H W, or H W 2, 3 or 4."""
    h, w = samples.shape[:2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim > 2 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
