"""Reads pictures that strangers send: the format and the size are checked before the pixels are
decoded.
"""

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.storage.images import (
    TooLargeError,
    UnreadableImageError,
    decode,
    photo_formats,
)


class Refused(Exception):
    """A request that is not answered as it is.

    Attributes:
        status: of HTTP, 400 or more.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


def read_picture(data: bytes, max_pixels: int, bits: int = 0) -> NDArray[np.uint8]:
    """The bytes of an image file as H W 3 uint8 RGB, upright. bits: the depth of samples of more
    than 8 bits; 0: by the file.

    Raises:
        Refused: 413: more than `max_pixels`; 415: not a photo, or damaged.
    """
    formats = photo_formats()
    try:
        return decode(data, max_pixels=max_pixels, formats=formats, bits=bits)[0]
    except TooLargeError as error:
        size = str(error).partition(" pixels")[0]
        raise Refused(
            413,
            f"the picture has {size} pixels, and this server takes up to {max_pixels:,}: send a "
            "smaller one",
        ) from error
    except UnreadableImageError as error:
        raise Refused(
            415,
            f"the body cannot be read as an image ({error}; {len(data)} bytes): send the full "
            f"content of an image file, {', '.join(formats)}",
        ) from error
