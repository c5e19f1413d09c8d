"""Reads large JPEG, PNG and TIFF files in windows, from the top to the bottom: the rows of one row
of windows are in memory, and no more.

libvips decodes (package pyvips, extra `tiles`): Pillow decodes whole images only. Conversions to
RGB are those of images.py, but for samples of more than 16 bits, floats and LAB, which are refused.

Letters: H W the upright image, h w a window.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_lit.storage.images import (
    DEPTHS,
    UPRIGHT,
    TooLargeError,
    UnreadableImageError,
    image_header,
    more_than,
)
from maskrcnn_lit.storage.packages import import_package

WHOLE = 2**24  # pixels of an image that is decoded at once, as without windows: 50 MB
PREVIEW = 2048  # pixels of the longer side of a preview, at most

_FORMATS = ("JPEG", "MPO", "PNG", "TIFF")
_LOADERS = ("jpegload", "pngload", "tiffload")
_ROWS = 64  # decoded at a time: libvips keeps a few times as many

_log = logging.getLogger(__name__)

Window = tuple[int, int, int, int]  # y, x, height, width


class Strips:
    """A large image file, of which windows are read.

    Args:
        path: of a JPEG, PNG or TIFF.
        page: of a TIFF with several pages, from 1; None: the first.
        bits: the depth of samples of 16 bits; 0: by the largest one.

    Attributes:
        size: height, width, upright.
        pages: that the file has; the levels of a pyramid are one.
        preview: after `windows`, the image shrunk by a whole number to at most PREVIEW pixels a
            side, uint8 RGB; before, None.

    Raises:
        UnreadableImageError: damaged, an unknown format, no such page.
        UserError: the package pyvips is not installed.
    """

    def __init__(self, path: Path, page: int | None = None, bits: int = 0) -> None:
        self._vips = import_package("pyvips", "tiles", f"reading {path}, a large image, in tiles")
        self.path, self._page, self._bits = path, page or 1, bits
        image = self._open()
        loader = str(image.get("vips-loader"))
        if not loader.startswith(_LOADERS):
            raise UnreadableImageError(f"{loader.removesuffix('load')} is not read in tiles")
        self._turn = _orientation(image)
        height, width = int(image.height), int(image.width)
        self.size = (width, height) if self._turn >= 5 else (height, width)
        self.pages = self._count_pages(image)
        self.preview: NDArray[np.uint8] | None = None

    def windows(self, windows: Sequence[Window]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The position in `windows` and the pixels h w 3 (RGB, upright) of each, in the order in
        which the file has them.

        Raises: UnreadableImageError: the file is damaged; windows before that were given.
        """
        stored = [self._stored(window) for window in windows]
        rows = _Rows(self._samples(), max(self.size))
        for i in sorted(range(len(stored)), key=lambda i: stored[i][:2]):
            y, x, height, width = stored[i]
            pixels = rows.read(y, y + height)[:, x : x + width]
            yield i, np.array(UPRIGHT[self._turn](pixels) if self._turn > 1 else pixels)
        preview = rows.preview
        self.preview = UPRIGHT[self._turn](preview) if self._turn > 1 else preview

    def _open(self) -> Any:
        """The image, as it is stored, to be read from the top to the bottom."""
        options = {"page": self._page - 1} if self._page > 1 else {}
        try:
            return self._vips.Image.new_from_file(
                str(self.path),
                access="sequential",
                fail_on="truncated",
                revalidate=True,
                **options,
            )
        except self._vips.Error as error:
            if options:
                raise UnreadableImageError(f"it has no page {self._page}") from error
            raise UnreadableImageError(_message(error)) from error

    def _count_pages(self, image: Any) -> int:
        """The pages of the file; 1 for the levels of a pyramid, each half as large."""
        if "n-pages" not in image.get_fields() or image.get("n-pages") == 1 or self._page > 1:
            return 1
        second = self._vips.Image.new_from_file(str(self.path), page=1)
        halves = (
            abs(2 * second.width - image.width) < 2 and abs(2 * second.height - image.height) < 2
        )
        return 1 if halves else int(image.get("n-pages"))

    def _samples(self) -> "_Samples":
        image = self._open()
        shift = 0
        if image.format == "ushort":
            highest = self._checked(lambda: int(image.max()))
            if self._bits and highest >= 2**self._bits:
                raise UnreadableImageError(more_than(highest, self._bits))
            shift = (self._bits or next(depth for depth in DEPTHS if highest < 2**depth)) - 8
            image = self._open()
        elif image.format != "uchar":
            raise UnreadableImageError(
                f"its samples are of type {image.format}: a file that is read in tiles has samples "
                "of 8 or 16 bits"
            )
        if image.interpretation == "cmyk":
            image = self._checked(lambda: image.colourspace("srgb"))
        return _Samples(self, image, shift)

    def _checked(self, work: Any) -> Any:
        try:
            return work()
        except self._vips.Error as error:
            raise UnreadableImageError(_message(error)) from error

    def _stored(self, window: Window) -> Window:
        """A window of the upright image -> of the image as it is stored."""
        (y, x, height, width), (full_height, full_width) = window, self.size
        below, right = full_height - y - height, full_width - x - width
        return {
            1: (y, x, height, width),
            2: (y, right, height, width),
            3: (below, right, height, width),
            4: (below, x, height, width),
            5: (x, y, width, height),
            6: (right, y, width, height),
            7: (right, below, width, height),
            8: (x, below, width, height),
        }[self._turn]


class _Samples:
    """The rows of an image as it is stored, 8 bits RGB."""

    def __init__(self, strips: Strips, image: Any, shift: int) -> None:
        self._strips, self._shift = strips, shift
        self._region = strips._vips.Region.new(image)
        self.height, self.width, self._bands = int(image.height), int(image.width), image.bands
        self._type = np.uint16 if image.format == "ushort" else np.uint8

    def read(self, first: int, last: int) -> NDArray[np.uint8]:
        fetch = self._region.fetch
        data = self._strips._checked(lambda: fetch(0, first, self.width, last - first))
        samples: NDArray[Any] = np.frombuffer(data, self._type).reshape(
            last - first, self.width, self._bands
        )
        if self._type is np.uint16:
            samples = (samples >> self._shift).astype(np.uint8)
        return np.repeat(samples[..., :1], 3, axis=2) if self._bands < 3 else samples[..., :3]


class _Rows:
    """The rows that are in memory, and the preview of all so far."""

    def __init__(self, samples: _Samples, longest: int) -> None:
        self._samples = samples
        self._factor = -(-longest // PREVIEW)
        self._step = self._factor * max(1, _ROWS // self._factor)  # whole rows of the preview
        self._first = self._last = 0
        self._rows = np.zeros((0, samples.width, 3), np.uint8)  # from row _first on
        sides = (-(-side // self._factor) for side in (samples.height, samples.width))
        # at once: parts that stay between those that go would leave holes in memory
        self.preview = np.zeros((*sides, 3), np.uint8)

    def read(self, first: int, last: int) -> NDArray[np.uint8]:
        """Rows first to last - 1, until the next call; `first` never falls."""
        if last > self._last:
            end = min(-(-last // self._step) * self._step, self._samples.height)
            self._drop_before(first, end - first)
            for begin in range(self._last, end, self._step):
                self._add(begin, min(begin + self._step, end))
            self._last = end
        return self._rows[first - self._first : last - self._first]

    def _drop_before(self, first: int, count: int) -> None:
        """Room for `count` rows from row `first` on, which are there up to _last. In the same
        array, as `preview`.
        """
        kept = self._rows[first - self._first : max(self._last - self._first, 0)]
        if len(self._rows) < count:
            larger = np.empty((count + self._step, self._samples.width, 3), np.uint8)
            larger[: len(kept)] = kept
            self._rows = larger
        else:
            for n in range(0, len(kept), _ROWS):  # upwards, so no row is lost
                part = kept[n : n + _ROWS]
                self._rows[n : n + len(part)] = part
        self._first = first

    def _add(self, begin: int, end: int) -> None:
        part = self._samples.read(begin, end)
        picture = Image.fromarray(np.ascontiguousarray(part))
        top = begin // self._factor
        small = np.asarray(picture.reduce(self._factor))
        self.preview[top : top + len(small)] = small
        skipped = max(self._first - begin, 0)  # no window has these rows
        if skipped < len(part):
            self._rows[begin + skipped - self._first : end - self._first] = part[skipped:]


def open_strips(path: Path, page: int | None, max_pixels: int, bits: int = 0) -> Strips | None:
    """A file to be read in windows; None for one that is decoded whole: it has up to WHOLE pixels,
    or another format and up to `max_pixels`, or it is no image.

    Raises:
        UnreadableImageError: see `Strips`; another format with more than `max_pixels`.
        UserError: see `Strips`.
    """
    try:
        kind, (width, height) = image_header(path, max_pixels, page or 1)
    except TooLargeError as error:
        try:
            return Strips(path, page, bits)
        except UnreadableImageError as other:
            raise UnreadableImageError(f"{error}; {other}") from None
    except (OSError, UnreadableImageError):
        return None
    return Strips(path, page, bits) if kind in _FORMATS and width * height > WHOLE else None


def _orientation(image: Any) -> int:
    """Of EXIF or TIFF, 1 to 8."""
    value = image.get("orientation") if "orientation" in image.get_fields() else 1
    return value if value in UPRIGHT else 1


def _message(error: Exception) -> str:
    """The first line of libvips that says more than which function failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
