"""Reads image files: checks them against the json, and decodes them to 8-bit RGB.

Pillow decodes: it is the only library that reads all files in COCO sets (CMYK, palettes, 16 bits,
EXIF), detects truncated files, and scales a JPEG while decoding. torchvision's decoders, 0.5 ms
faster on a COCO photo of 2 ms, are deprecated. `decode` is the only place to change the decoder.
Its conversions, by Pillow mode and sample depth:

    8 bits or fewer (1, L, LA, P, PA, RGB, RGBA, RGBX, CMYK, YCbCr, HSV)   converted to RGB; alpha
        is dropped, not blended
    more bits, unsigned (I;16, I, and RGB, RGBA, LA of 16 bits)   the values of cameras with 10, 12
        or 14 bits lie unscaled in files of 16: the depth that a TIFF states, if it is no whole
        number of bytes, else `bits`, else the smallest of DEPTHS that holds the largest value of
        the file, is taken as the depth, and its 8 highest bits are the pixel
    floats (F)   scaled likewise, from 0..1, or from 0 to the largest value of `bits` or, without
        it, of a depth up to 16 bits
    values below 0, floats over 65535 or NaN, LAB   refused: nobody knows their range
    EXIF or TIFF orientation   applied, unless only the pixels as stored have the json's size
    several pages (TIFF, GIF)   one is read, the first unless `page` says another
    more than `max_pixels` pixels   refused
"""

import io
import re
import struct
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import atomic_write
from maskrcnn_lit.storage.sources import Remote, Source

# Maximum pixels of an image file: 13,377 x 13,377, also Pillow's own limit. They need 0.5 GB
# decoded.
MAX_PIXELS = 178_956_970

DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits of a sample

_ORIENTATION = 0x0112  # EXIF tag

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # TIFF tags

Pixels = NDArray[Any]

# EXIF orientation -> function that rotates stored pixels, H W ..., upright.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
_BACK = {6: 8, 8: 6}  # the inverse orientation, if it differs

# Pillow keeps the high byte of 16-bit samples in these raw modes; the other byte order gives the
# low byte.
_WIDE = re.compile(r"(?:RGB|RGBA|RGBX);16[BLN]")
_LOW = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    IndexError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(Exception):
    """The bytes cannot be decoded as an image, or the image has an unexpected size; see the
    message.
    """


class TooLargeError(UnreadableImageError):
    """The image has more pixels than are allowed."""


class Decoded(NamedTuple):
    """pixels: H W 3 (RGB, 8 bits), upright; factor: of the downscaling; bits: the assumed depth of
    its samples.
    """

    pixels: NDArray[np.uint8]
    factor: int
    bits: int


def file_fault(
    file: Path | io.BytesIO, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> tuple[str, str] | None:
    """The fault of an image file by its header: (kind, detail), or None if it is valid."""
    try:
        if (file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())) == 0:
            return "empty file", "0 bytes"
        with _open(file, max_pixels) as image:
            # the first test avoids reading EXIF, which decodes all pixels of a PNG
            if image.size == (width, height) or _turn(image, (height, width)) is not None:
                return None
            return (
                "size differs",
                f"the json says {width} x {height}, the file is {image.width} x {image.height}",
            )
    except (FileNotFoundError, NotADirectoryError):
        return "missing file", "no such file"
    except UnidentifiedImageError:
        return "not an image", "unknown format"
    except TooLargeError as error:
        return "image too large", str(error)
    except (*_FAILURES, UnreadableImageError) as error:
        return "not an image", str(error)


def decode(
    data: bytes,
    size: tuple[int, int] | None = None,
    at_least: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    page: int = 1,
    formats: tuple[str, ...] | None = None,
    bits: int = 0,
) -> tuple[NDArray[np.uint8], int]:
    """Pixels H W 3 (RGB, 8 bits) of an image file's bytes, upright, and the factor of the
    downscaling. See the table above.

    Args: size: height, width by the json. EXIF orientation is applied unless only the pixels as
        stored have this size. at_least: height, width to which the full image will be shrunk. A
        JPEG of twice that size or more is decoded at 1/2, 1/4 or 1/8 (factor 2, 4, 8); the last
        pixels may extend beyond the right and bottom edge of the original. The final result differs
        from that of a full decode by 0.5 of 255 on average. max_pixels: limit for the image. page:
        of a file with several pages, from 1. formats: Pillow's names of the formats that are read;
        None: all that Pillow knows. bits: the depth of samples of more than 8 bits; 0: by the
        file.

    Raises:
        UnreadableImageError: truncated, not an image, another size, too large, no such page,
            samples of more than `bits`.
    """
    decoded = decode_deep(data, size, at_least, max_pixels, page, formats, bits)
    return decoded.pixels, decoded.factor


def decode_deep(
    data: bytes,
    size: tuple[int, int] | None = None,
    at_least: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    page: int = 1,
    formats: tuple[str, ...] | None = None,
    bits: int = 0,
) -> Decoded:
    """As `decode`, with the depth of the samples."""

    def opened() -> Image.Image:
        return _open(io.BytesIO(data), max_pixels, page, formats)

    try:
        with opened() as image:
            raw = _raw_mode(image)  # first, since reading EXIF decodes a PNG
            turn = _turn(image, size)
            if turn is None:
                raise UnreadableImageError(
                    f"it is {image.width} x {image.height}, unlike the size in the json"
                )
            factor = _reduce(image, at_least) if at_least and turn == 1 else 1
            pixels, depth = _rgb(image, raw, opened, bits)
            if turn != 1:
                pixels = np.ascontiguousarray(UPRIGHT[turn](pixels))
            return Decoded(pixels, factor, depth)
    except MemoryError:
        raise UnreadableImageError("it does not fit into memory") from None
    except _FAILURES as error:
        unknown = isinstance(error, UnidentifiedImageError)  # its text contains a memory address
        raise UnreadableImageError(
            "no image" if unknown else str(error) or type(error).__name__
        ) from error


def to_rgb(image: Image.Image, bits: int = 0) -> NDArray[np.uint8]:
    """The pixels of a decoded image as H W 3 uint8 RGB, by the table above. (If Pillow has kept one
    byte of 16-bit samples, that byte.)
    """
    return _rgb(image, "", lambda: image, bits)[0]


def read_pixels(
    source: Source,
    name: str,
    size: tuple[int, int],
    at_least: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    bits: int = 0,
) -> tuple[NDArray[np.uint8], int]:
    """The pixels of a file of `source`, see `decode`. A remote file that does not match the json is
    downloaded again and not cached: a proxy may have replied.

    Raises:
        OSError: it cannot be read.
        UnreadableImageError: see `decode`.
    """
    if not isinstance(source, Remote):
        return decode(source.read(name), size, at_least, max_pixels, bits=bits)
    try:
        return decode(source.read(name), size, at_least, max_pixels, bits=bits)
    except TooLargeError:
        raise
    except UnreadableImageError:
        source.forget(name)
    try:
        return decode(source.read(name), size, at_least, max_pixels, bits=bits)
    except UnreadableImageError:
        source.forget(name)
        raise


def page_count(data: bytes) -> int:
    """The number of pages or frames of an image file, 1 for most formats. Additional pictures in a
    JPEG are not counted.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except _FAILURES:
        return 1


def image_header(path: Path, max_pixels: int, page: int = 1) -> tuple[str, tuple[int, int]]:
    """The format and the width and height of an image file, as stored.

    Raises:
        OSError: it cannot be read.
        UnreadableImageError: not an image, too large, no such page.
    """
    try:
        with _open(path, max_pixels, page) as image:
            return str(image.format), image.size
    except _FAILURES as error:
        raise UnreadableImageError("no image") from error


def _open(
    file: Path | io.BytesIO,
    max_pixels: int,
    page: int = 1,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """The header of one page. Raises UnreadableImageError, or one of _FAILURES."""
    # Pillow's process-wide limit warns at its value and refuses at twice that; it must not trigger
    # before ours.
    _register_heif()
    if Image.MAX_IMAGE_PIXELS is not None and 2 * max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = 2 * max_pixels
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(pixels[0] if pixels else "its", max_pixels) from None
    try:
        if page > 1:
            image.seek(page - 1)
    except EOFError:
        raise UnreadableImageError(f"it has no page {page}") from None
    if image.width * image.height > max_pixels:
        image.close()
        raise _too_large(f"{image.width} x {image.height}", max_pixels)
    return image


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC, if the package of the extra heic is installed."""
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()


def _too_large(pixels: str, max_pixels: int) -> TooLargeError:
    return TooLargeError(
        f"{pixels} pixels are more than max_pixels={max_pixels} allows: raise data.max_pixels, or "
        "max_pixels of predict, or let predict read it in tiles with tile=1024"
    )


def _turn(image: Image.Image, size: tuple[int, int] | None) -> int | None:
    """The orientation, 1 (none) to 8, to apply to the pixels that Pillow loads, so that the image
    has this height and width; None: no orientation fits.

    Pillow itself rotates only TIFFs upright.
    """
    orientation = _orientation(image)
    tags = getattr(image, "tag_v2", None)
    stored = image.size[::-1] if tags is None else (tags[257], tags[256])  # height, width
    upright = stored if orientation < 5 else stored[::-1]
    if size is None or upright == size:
        return orientation if tags is None else 1
    if stored == size:
        return 1 if tags is None else _BACK.get(orientation, orientation)
    return None


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _FAILURES:  # damaged EXIF: the pixels may be valid
        return 1
    return orientation if orientation in UPRIGHT else 1


def _reduce(image: Image.Image, at_least: tuple[float, float]) -> int:
    width, height = image.size
    share = min(height / at_least[0], width / at_least[1]) / 2
    factor = next((f for f in (8, 4, 2) if share >= f), 1)
    if factor > 1:
        image.draft(image.mode, (width // factor, height // factor))  # only works for JPEGs
    return factor if image.size == (-(-width // factor), -(-height // factor)) else 1


def _rgb(
    image: Image.Image, raw: str, again: Callable[[], Image.Image], bits: int
) -> tuple[NDArray[np.uint8], int]:
    """H W 3, and the depth. `again` opens the same image once more."""
    if image.mode[0] in "IF":
        pixels, depth = _to_8_bits(_samples(image), _stated(image) or bits)
        return np.repeat(pixels[..., None], 3, axis=2), depth
    if _WIDE.fullmatch(raw):
        with again() as other:
            low = np.asarray(_with_raw_mode(other, raw[:-1] + _LOW[raw[-1]]))
        return _to_8_bits(_joined(np.asarray(image), low)[..., :3], bits)
    if raw == "LA;16B":  # read as four bytes, which are not colors
        with again() as other:
            both = np.asarray(_with_raw_mode(other, "RGBA"))
        pixels, depth = _to_8_bits(_joined(both[..., :1], both[..., 1:2]), bits)
        return np.repeat(pixels, 3, axis=2), depth
    return np.array(image if image.mode == "RGB" else image.convert("RGB")), 8


def _joined(high: Pixels, low: Pixels) -> Pixels:
    return high.astype(np.uint16) << 8 | low


def _raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode of the samples in the file, "RGB;16B", known before loading."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0].args
    return str(args if isinstance(args, str) else args[0]) if args else ""


def _with_raw_mode(image: Any, raw: str) -> Image.Image:
    """The image, read with another raw mode."""
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in image.tile
    ]
    return image


def _stated(image: Image.Image) -> int:
    """The bit depth that a TIFF states, if it is not a multiple of 8; else 0."""
    bits = getattr(image, "tag_v2", {}).get(_BITS, (0,))[0]
    return bits if bits % 8 else 0


def _samples(image: Image.Image) -> Pixels:
    """H W, the samples of the file, inverted if 0 means white."""
    tags = dict(getattr(image, "tag_v2", {}))
    samples = np.asarray(image)
    if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        samples = samples.view(np.uint32)
    if image.mode == "I;16" and tags.get(_PHOTOMETRIC) == 0:
        samples = np.uint16(65535) - samples
    return samples


def _to_8_bits(samples: Pixels, bits: int) -> tuple[NDArray[np.uint8], int]:
    """Convert samples of any type to 8 bits; return also their assumed depth.

    Args:
        bits: their depth; 0: by the largest sample.
    """
    low, high = samples.min(), samples.max()
    if not (np.isfinite(high) and low >= 0):
        raise UnreadableImageError(f"its pixels go from {low} to {high}, an unknown range")
    if bits and high > 2**bits - 1:
        raise UnreadableImageError(more_than(float(high), bits))
    if samples.dtype.kind == "f":
        return _from_floats(samples, float(high), bits)
    bits = bits or next(depth for depth in DEPTHS if int(high) < 2**depth)
    return (samples >> (bits - 8)).astype(np.uint8), bits


def more_than(high: float, bits: int) -> str:
    """What is wrong with an image of this largest value, for messages."""
    return f"its largest value is {high:g}, over the {2**bits - 1} of data.bits={bits}"


def _from_floats(samples: Pixels, high: float, bits: int) -> tuple[NDArray[np.uint8], int]:
    if high <= 1:
        return np.rint(samples * 255).astype(np.uint8), 8
    bits = bits or next((depth for depth in DEPTHS if high <= 2**depth - 1), 32)
    if bits > 16:
        raise UnreadableImageError(f"its pixels are floats up to {high:g}, an unknown range")
    return np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8), bits


# Suffixes of images in a folder; Pillow is not always built with AVIF, and reads no HEIC by itself.
SUFFIXES = (
    *((".avif",) if find_spec("PIL._avif") else ()),
    *((".heic", ".heif") if find_spec("pillow_heif") else ()),
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
)

# Pillow's formats of photos. The others include programs (EPS, which Ghostscript would run) and
# formats that nobody has looked at for years.
PHOTOS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")


def photo_formats() -> tuple[str, ...]:
    """Those of PHOTOS that this Pillow reads."""
    _register_heif()
    Image.init()
    return tuple(name for name in PHOTOS if name in Image.OPEN)


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an H W 3 uint8 picture as PNG, JPEG or WebP, by the suffix of `path`, atomically."""
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path} cannot be written: use a file name that ends in {', '.join(_FORMATS)}"
        )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=95)
    atomic_write(path, buffer.getvalue())
