import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskrcnn_lit.storage.files import safe_path
from maskrcnn_lit.storage.images import UnreadableImageError, decode, file_fault


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    """Smooth, so that JPEG keeps it, and unlike in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) % 64], 2).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, height: int = 20, width: int = 30) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(picture(height, width)), exif=exif)


def test_every_kind_of_pixels_becomes_rgb_of_8_bits():
    rgb = picture()
    image = Image.fromarray(rgb)
    for data in (
        encoded(image),
        encoded(image.convert("RGBA")),
        encoded(
            Image.fromarray(np.dstack([rgb, rgb[..., 0]]), "RGBA")
        ),  # see-through pixels keep their colour
        encoded(image, "TIFF"),
    ):
        pixels, factor = decode(data)
        assert factor == 1 and pixels.dtype == np.uint8 and np.array_equal(pixels, rgb)
    grey = rgb[..., 0]
    for data in (
        encoded(Image.fromarray(grey)),
        encoded(Image.merge("LA", [Image.fromarray(grey)] * 2)),
    ):
        assert np.array_equal(decode(data)[0], np.repeat(grey[..., None], 3, 2))
    palette, _ = decode(encoded(image.quantize(8)))
    assert np.abs(palette.astype(int) - rgb).mean() < 40 and palette.shape == rgb.shape
    bilevel, _ = decode(encoded(Image.fromarray(grey > 100)))
    assert set(np.unique(bilevel)) == {0, 255}
    cmyk, _ = decode(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - rgb).mean() < 8


def test_16_bits_are_scaled_and_not_clipped():
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    pixels, _ = decode(encoded(Image.fromarray(deep)))
    assert np.array_equal(pixels[..., 1], (deep >> 8).astype(np.uint8)) and pixels.max() == 255


def test_real_16_bit_and_cmyk_files_look_like_their_neighbours(test_data: Path):
    """A clipped 16-bit image would be all but white: it has not the range of a photo."""
    for name in ("gray16.png", "rgb16.png", "cmyk.jpg", "grayscale.jpg", "valid.jpg"):
        pixels, _ = decode((test_data / "corrupt/images" / name).read_bytes())
        assert pixels.shape[2] == 3 and 30 < pixels.mean() < 220 and pixels.std() > 25, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation: int):
    data = turned(orientation)
    upright = {
        1: picture(),
        2: picture()[:, ::-1],
        3: picture()[::-1, ::-1],
        4: picture()[::-1],
        5: picture().transpose(1, 0, 2),
        6: np.rot90(picture(), -1),
        7: picture()[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture()),
    }[orientation]
    assert np.array_equal(decode(data)[0], upright)
    assert np.array_equal(decode(data, upright.shape[:2])[0], upright)
    if orientation > 4:  # the json describes the pixels as stored
        assert np.array_equal(decode(data, (20, 30))[0], picture())


def test_where_both_ways_fit_exif_decides():
    assert np.array_equal(decode(turned(6, 20, 20), (20, 20))[0], np.rot90(picture(20, 20), -1))


def test_the_real_turned_files(test_data: Path):
    folder = test_data / "corrupt/images"
    upright, stored = (
        folder / "exif_rotated_upright_json.jpg",
        folder / "exif_rotated_stored_json.jpg",
    )
    assert decode(upright.read_bytes(), (107, 160))[0].shape == (107, 160, 3)
    assert decode(stored.read_bytes(), (120, 160))[0].shape == (120, 160, 3)
    assert decode(stored.read_bytes())[0].shape == (160, 120, 3)
    assert file_fault(upright, 107, 160) is None and file_fault(stored, 120, 160) is None
    assert file_fault(upright, 107, 161) == (
        "size differs",
        "the json says 161 x 107, the file is 107 x 160",
    )


def test_what_cannot_be_decoded_is_told(test_data: Path):
    cut = (test_data / "corrupt/images/truncated.jpg").read_bytes()
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode(cut)
    whole = encoded(Image.fromarray(picture()))
    for data in (b"", b"no image", whole[: len(whole) // 2]):
        with pytest.raises(UnreadableImageError):
            decode(data)
    with pytest.raises(UnreadableImageError, match="30 x 20 and not as the json says"):
        decode(encoded(Image.fromarray(picture())), (20, 31))
    with pytest.raises(UnreadableImageError, match="32-bit floats"):
        decode(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_file_faults(tmp_path: Path):
    file = tmp_path / "a.png"
    assert file_fault(file, 20, 30) == ("missing file", "no such file")
    file.write_bytes(b"")
    assert file_fault(file, 20, 30) == ("empty file", "0 bytes")
    file.write_bytes(b"hello")
    kind, what = file_fault(file, 20, 30) or ("", "")
    assert (kind, what) == ("not an image", "of no known format")
    file.write_bytes(encoded(Image.fromarray(picture())))
    assert file_fault(file, 20, 30) is None
    assert file_fault(file, 30, 20) == (
        "size differs",
        "the json says 20 x 30, the file is 30 x 20",
    )
    assert (file_fault(tmp_path, 20, 30) or [""])[0] == "not an image"


def test_safe_paths(tmp_path: Path):
    assert safe_path(tmp_path, "a/b.jpg") == tmp_path / "a/b.jpg"
    for name in ("../a.jpg", "a/../../b.jpg", "/etc/passwd", "..", ".", "", "a\0.jpg", "..\\a.jpg"):
        assert safe_path(tmp_path, name) is None


def test_small_sizes_are_decoded_small(test_data: Path):
    """At half of the size or less a JPEG is decoded at 1/2, 1/4, 1/8; after the resize it looks
    like a full decode.
    """
    files = sorted((test_data / "coco_mini/val2017").glob("*.jpg"))[:12]
    means = []
    for file in files:
        data = file.read_bytes()
        whole, factor = decode(data)
        assert (
            factor == 1
            and decode(data, whole.shape[:2], (whole.shape[0] / 3.9, whole.shape[1] / 3.9))[1] == 1
        )
        height, width = whole.shape[0] // 5, whole.shape[1] // 5
        small, factor = decode(data, whole.shape[:2], (height, width))
        assert factor == 2 and small.shape[:2] == (-(-whole.shape[0] // 2), -(-whole.shape[1] // 2))
        resized = [
            F.interpolate(
                torch.from_numpy(p).permute(2, 0, 1)[None].float(),
                (height, width),
                mode="bilinear",
                antialias=True,
            )
            for p in (whole, small)
        ]
        means.append((resized[0] - resized[1]).abs().mean().item())
    assert np.mean(means) < 1 and max(means) < 2


def test_a_turned_jpeg_and_a_png_are_never_reduced():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(64, 96)), "JPEG", exif=exif)
    assert decode(data, (96, 64), (8, 8))[1] == 1
    assert decode(encoded(Image.fromarray(picture(64, 96))), (64, 96), (8, 8))[1] == 1
