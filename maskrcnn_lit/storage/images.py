"""Image files: is this the file that the json means, and its pixels as 8-bit RGB.

Pillow decodes: it is the one library that reads every file that COCO sets hold (CMYK, palettes, 16
bits, EXIF), names a cut file, and scales a JPEG while it decodes. torchvision's decoders, 0.5 ms
faster on a COCO photo of 2 ms, are deprecated. `decode` is the only place to change for another
one.
"""

import io
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import atomic_write

_ORIENTATION = 0x0112  # EXIF tag

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(Exception):
    """The bytes are not an image that can be decoded, or not of the size that was asked for; the
    message says which.
    """


def file_fault(file: Path | io.BytesIO, height: int, width: int) -> tuple[str, str] | None:
    """What is wrong with the image file as far as its header tells: (kind, what), or None if it is
    sound.
    """
    try:
        if (file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())) == 0:
            return "empty file", "0 bytes"
        with Image.open(file) as image:
            # the first test spares the look for EXIF, which in a PNG decodes all its pixels
            if image.size == (width, height) or _orientation(image, (height, width)) is not None:
                return None
            return (
                "size differs",
                f"the json says {width} x {height}, the file is {image.width} x {image.height}",
            )
    except (FileNotFoundError, NotADirectoryError):
        return "missing file", "no such file"
    except UnidentifiedImageError:
        return "not an image", "of no known format"
    except _FAILURES as error:
        return "not an image", str(error)


def decode(
    data: bytes, size: tuple[int, int] | None = None, at_least: tuple[float, float] | None = None
) -> tuple[NDArray[np.uint8], int]:
    """Pixels H W 3 (RGB, 8 bits) of an image file's bytes, upright, and the factor by which they
    are reduced.

    Args: size: height, width by the json. EXIF orientation is applied unless only the pixels as
        stored have this size. at_least: height, width to which the whole image will be shrunk. A
        JPEG of twice that size or more is decoded at 1/2, 1/4 or 1/8 (the factor is 2, 4, 8): each
        pixel stands for that many of the original, the last ones may reach over its right and
        bottom edge. At double size the final resize still decides the look: the result differs from
        that of a full decode by 0.5 of 255 on average.

    Raises:
        UnreadableImageError: cut, not an image, another size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = _orientation(image, size)
            if orientation is None:
                raise UnreadableImageError(
                    f"it is {image.width} x {image.height} and not as the json says"
                )
            factor = _reduce(image, at_least) if at_least and orientation == 1 else 1
            image.load()
            return to_rgb(
                image if orientation == 1 else image.transpose(_UPRIGHT[orientation])
            ), factor
    except _FAILURES as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is an address in memory
        raise UnreadableImageError(
            "no image" if unknown else str(error) or type(error).__name__
        ) from error


def _orientation(image: Image.Image, size: tuple[int, int] | None) -> int | None:
    """The EXIF orientation to apply, 1 (none) to 8, so that the image has this height and width;
    None: neither fits.
    """
    orientation = image.getexif().get(_ORIENTATION, 1)
    orientation = orientation if orientation in _UPRIGHT else 1
    upright = image.size[::-1] if orientation < 5 else image.size  # height, width once turned
    if size is None or upright == size:
        return orientation
    return 1 if image.size[::-1] == size else None


def _reduce(image: Image.Image, at_least: tuple[float, float]) -> int:
    width, height = image.size
    share = min(height / at_least[0], width / at_least[1]) / 2
    factor = next((f for f in (8, 4, 2) if share >= f), 1)
    if factor > 1:
        image.draft(image.mode, (width // factor, height // factor))  # only a JPEG obeys
    return factor if image.size == (-(-width // factor), -(-height // factor)) else 1


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a decoded image as H W 3 uint8 RGB."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise UnreadableImageError("its pixels are 32-bit floats, of which nobody knows the range")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


# Those that mark an image in a folder; Pillow is not always built with AVIF.
SUFFIXES = (
    *((".avif",) if find_spec("PIL._avif") else ()),
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
)

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an H W 3 uint8 picture as PNG, JPEG or WebP, by the suffix of `path`: the whole file or
    none.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path} cannot be written: the name of a picture ends in {', '.join(_FORMATS)}"
        )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=95)
    atomic_write(path, buffer.getvalue())
