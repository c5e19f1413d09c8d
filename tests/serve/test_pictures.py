"""Pictures of strangers: what is no photo, too large or damaged is refused with a status."""

import io

import numpy as np
import pytest
from PIL import Image
from served import bomb, png

from maskrcnn_lit.serve.pictures import Refused, read_picture


def test_the_pixels_are_those_of_the_file():
    expected = np.asarray(Image.open(io.BytesIO(png((20, 30)))))
    assert np.array_equal(read_picture(png((20, 30)), 600), expected)


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    assert read_picture(buffer.getvalue(), 600).shape == (30, 20, 3)


def test_the_depth_of_16_bits_is_that_of_the_model():
    samples = np.arange(600, dtype=np.uint16).reshape(20, 30)
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "PNG")
    assert np.array_equal(read_picture(buffer.getvalue(), 600, 12)[..., 0], samples >> 4)


@pytest.mark.parametrize(
    ("data", "max_pixels", "status", "words"),
    [
        (
            png((20, 30)),
            599,
            413,
            "the picture has 30 x 20 pixels, and this server takes up to 599",
        ),
        (bomb(), 50_000_000, 413, "up to 50,000,000: send a smaller one"),
        (b"plain text", 600, 415, "cannot be read as an image (no image; 10 bytes)"),
        (b"", 600, 415, "(no image; 0 bytes)"),
        (png((20, 30))[:500], 600, 415, "500 bytes): send the full content of an image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 600, 415, "no image"),
    ],
)
def test_others_are_refused(data: bytes, max_pixels: int, status: int, words: str):
    with pytest.raises(Refused) as refused:
        read_picture(data, max_pixels)
    assert refused.value.status == status
    assert words in str(refused.value)
