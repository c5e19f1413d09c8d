import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deep_images import png, tiff, upright
from local_server import Server
from PIL import Image
from torchvision.io import decode_png

from maskrcnn_lit.storage.cache import Cache
from maskrcnn_lit.storage.files import safe_path
from maskrcnn_lit.storage.images import (
    DEPTHS,
    TooLargeError,
    UnreadableImageError,
    decode,
    decode_deep,
    file_fault,
    page_count,
    read_pixels,
)
from maskrcnn_lit.storage.sources import Remote

pytest_plugins = ("local_server",)


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
        ),  # see-through pixels keep their color
        encoded(image, "TIFF"),
    ):
        pixels, factor = decode(data)
        assert factor == 1
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, rgb)
    gray = rgb[..., 0]
    for data in (
        encoded(Image.fromarray(gray)),
        encoded(Image.merge("LA", [Image.fromarray(gray)] * 2)),
    ):
        assert np.array_equal(decode(data)[0], np.repeat(gray[..., None], 3, 2))
    palette, _ = decode(encoded(image.quantize(8)))
    assert np.abs(palette.astype(int) - rgb).mean() < 40
    assert palette.shape == rgb.shape
    bilevel, _ = decode(encoded(Image.fromarray(gray > 100)))
    assert set(np.unique(bilevel)) == {0, 255}
    cmyk, _ = decode(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - rgb).mean() < 8


def test_16_bits_are_scaled_and_not_clipped():
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    pixels, _ = decode(encoded(Image.fromarray(deep)))
    assert np.array_equal(pixels[..., 1], (deep >> 8).astype(np.uint8))
    assert pixels.max() == 255


def test_real_16_bit_and_cmyk_files_look_like_their_neighbors(test_data: Path):
    """A clipped 16-bit image would be all but white: it has not the range of a photo."""
    for name in ("gray16.png", "rgb16.png", "cmyk.jpg", "grayscale.jpg", "valid.jpg"):
        pixels, _ = decode((test_data / "corrupt/images" / name).read_bytes())
        assert pixels.shape[2] == 3, name
        assert 30 < pixels.mean() < 220, name
        assert pixels.std() > 25, name


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
    assert file_fault(upright, 107, 160) is None
    assert file_fault(stored, 120, 160) is None
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
    with pytest.raises(UnreadableImageError, match="30 x 20, unlike the size in the json"):
        decode(encoded(Image.fromarray(picture())), (20, 31))


def test_file_faults(tmp_path: Path):
    file = tmp_path / "a.png"
    assert file_fault(file, 20, 30) == ("missing file", "no such file")
    file.write_bytes(b"")
    assert file_fault(file, 20, 30) == ("empty file", "0 bytes")
    file.write_bytes(b"hello")
    kind, what = file_fault(file, 20, 30) or ("", "")
    assert (kind, what) == ("not an image", "unknown format")
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
        assert factor == 1
        assert decode(data, whole.shape[:2], (whole.shape[0] / 3.9, whole.shape[1] / 3.9))[1] == 1
        height, width = whole.shape[0] // 5, whole.shape[1] // 5
        small, factor = decode(data, whole.shape[:2], (height, width))
        assert factor == 2
        assert small.shape[:2] == (-(-whole.shape[0] // 2), -(-whole.shape[1] // 2))
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
    assert np.mean(means) < 1
    assert max(means) < 2


def test_a_turned_jpeg_and_a_png_are_never_reduced():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(64, 96)), "JPEG", exif=exif)
    assert decode(data, (96, 64), (8, 8))[1] == 1
    assert decode(encoded(Image.fromarray(picture(64, 96))), (64, 96), (8, 8))[1] == 1


def gray(bits: int, dtype: type = np.uint16) -> np.ndarray:
    """20 x 30 samples from 0 to the largest of `bits`."""
    return (np.arange(600).reshape(20, 30) * (2**bits - 1) // 599).astype(dtype)


def eight(samples: np.ndarray, bits: int) -> np.ndarray:
    """The 8 highest bits of samples H W or H W C, as H W 3."""
    high = (samples.astype(np.int64) >> (bits - 8)).astype(np.uint8)
    return np.repeat(high[..., None], 3, 2) if high.ndim == 2 else high[..., :3]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(6, 10), (8, 8)], ids=["wide", "square"])
def test_a_tiff_is_turned_once(order: str, deflate: bool, orientation: int, shape: tuple[int, int]):
    for samples, bits in (
        (picture(*shape), 8),
        (picture(*shape)[..., 0], 8),
        (picture(*shape).astype(np.uint16) * 257, 16),
        (picture(*shape)[..., 0].astype(np.uint16) * 257, 16),
    ):
        data = tiff(samples, order, orientation=orientation, deflate=deflate)
        stored = eight(samples, bits)
        seen = upright(stored, orientation)
        assert np.array_equal(decode(data)[0], seen)
        assert np.array_equal(decode(data, seen.shape[:2])[0], seen)
        assert file_fault(io.BytesIO(data), *seen.shape[:2]) is None
        if seen.shape != stored.shape:  # the json describes the pixels as stored
            assert np.array_equal(decode(data, stored.shape[:2])[0], stored)
            assert file_fault(io.BytesIO(data), *stored.shape[:2]) is None
        assert file_fault(io.BytesIO(data), 11, 6) is not None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_by_its_tag(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(16, 32)
    data = encoded(Image.fromarray(stored), kind, exif=exif, quality=95)
    seen = upright(stored, orientation)
    pixels, _ = decode(data)
    assert pixels.shape == seen.shape
    assert np.abs(pixels.astype(int) - seen).mean() < 12
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_pixels():
    data = encoded(Image.fromarray(picture()), exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert np.array_equal(decode(data)[0], picture())


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_camera_of_fewer_bits_in_a_16_bit_file(bits: int, order: str):
    samples = gray(bits)
    rgb = np.stack([samples, samples[::-1], samples // 2], 2)
    rgba = np.dstack([rgb, samples[:, ::-1]])
    for data in (tiff(samples, order), tiff(samples, order, deflate=order == "<"), png(samples)):
        decoded = decode_deep(data)
        assert decoded.bits == bits
        assert np.array_equal(decoded.pixels, eight(samples, bits))
    for several in (rgb, rgba):
        for data in (tiff(several, order), tiff(several, order, deflate=True), png(several)):
            decoded = decode_deep(data)
            assert decoded.bits == bits
            assert np.array_equal(decoded.pixels, eight(several, bits))
    with_alpha = png(np.dstack([samples, np.full_like(samples, 7)]))
    assert np.array_equal(decode(with_alpha)[0], eight(samples, bits))


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_a_given_depth_counts_for_every_file(bits: int):
    samples = gray(bits)
    rgb = np.stack([samples, samples[::-1], samples // 2], 2)
    with_alpha = np.dstack([samples, np.full_like(samples, 7)])
    for data in (tiff(samples), png(samples), png(with_alpha)):
        decoded = decode_deep(data, bits=12)
        assert decoded.bits == 12
        assert np.array_equal(decoded.pixels, eight(samples, 12))
    assert np.array_equal(decode_deep(png(rgb), bits=12).pixels, eight(rgb, 12))
    assert np.array_equal(decode(tiff(samples, bits=12), bits=16)[0], eight(samples, 12))  # stated
    floats = encoded(Image.fromarray(samples.astype(np.float32)), "TIFF")
    expected = np.rint(samples * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(decode(floats, bits=12)[0][..., 0], expected)
    eight_bits = encoded(Image.fromarray(gray(8).astype(np.uint8)))
    assert np.array_equal(decode(eight_bits, bits=12)[0], decode(eight_bits)[0])


def test_samples_over_the_given_depth_are_refused():
    floats = encoded(Image.fromarray(gray(14).astype(np.float32)), "TIFF")
    for data in (tiff(gray(14)), png(gray(14)), floats):
        with pytest.raises(UnreadableImageError, match=r"is 16383, over the 4095 of data\.bits=12"):
            decode(data, bits=12)


@pytest.mark.filterwarnings("ignore")  # it is deprecated
def test_16_bits_are_those_of_another_reader():
    """torchvision's libpng."""
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        data = png(rng.integers(0, 65536, (9, 14, channels)).astype(np.uint16))
        theirs = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8)).numpy()
        assert theirs.dtype == np.uint16
        assert theirs.shape == (channels, 9, 14)
        theirs = theirs[:1].repeat(3, 0) if channels < 3 else theirs[:3]
        assert np.array_equal(decode(data)[0], (theirs >> 8).astype(np.uint8).transpose(1, 2, 0))


def test_a_stated_depth_counts_whatever_the_values():
    dark = gray(9)
    assert np.array_equal(decode(tiff(dark, bits=12))[0], eight(dark, 12))


@pytest.mark.parametrize(
    ("order", "dtype", "depths"),
    [
        ("<", np.int16, (8, 12, 15)),
        (">", np.int16, (8, 12, 15)),
        ("<", np.int32, (8, 12, 15, 24, 31)),
        (">", np.int32, (8, 12, 15, 24, 31)),
        ("<", np.uint32, (8, 12, 15, 24, 31, 32)),
    ],
)
def test_other_whole_numbers(order: str, dtype: type, depths: tuple[int, ...]):
    for bits in depths:
        samples = gray(bits, dtype)
        depth = next(depth for depth in DEPTHS if bits <= depth)
        assert np.array_equal(decode(tiff(samples, order))[0], eight(samples, depth))


def test_white_as_zero_is_turned_round():
    for dtype, bits in ((np.uint8, 8), (np.uint16, 16)):
        samples = gray(bits, dtype)
        assert np.array_equal(decode(tiff(samples, photometric=0))[0], 255 - eight(samples, bits))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("largest", [1.0, 255.0, 1023.0, 4095.0, 65535.0])
def test_floats_are_scaled_from_the_range_that_holds_them(order: str, largest: float):
    samples = np.linspace(0, largest, 600).reshape(20, 30).astype(np.float32)
    expected = np.rint(samples / largest * 255)
    pixels, _ = decode(tiff(samples, order))
    assert np.abs(pixels[..., 0] - expected).max() <= 1
    assert pixels.max() == 255
    assert pixels.min() == 0


@pytest.mark.parametrize(
    "samples",
    [
        np.float32([[0, -1]]),
        np.float32([[0, np.nan]]),
        np.float32([[0, np.inf]]),
        np.float32([[0, 1e6]]),
        np.int32([[5, -1024]]),
        np.int16([[5, -1024]]),
    ],
)
def test_a_range_that_nobody_knows_is_refused(samples: np.ndarray):
    with pytest.raises(UnreadableImageError, match="an unknown range"):
        decode(tiff(samples))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_what_pillow_makes_of_them(mode: str):
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    image = Image.fromarray(picture()).convert(mode)
    data = encoded(image, kind)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == mode
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(decode(data)[0], expected)


def test_too_many_pixels_are_refused_with_the_option():
    data = encoded(Image.new("1", (14000, 13000)))
    kind, what = file_fault(io.BytesIO(data), 13000, 14000) or ("", "")
    assert kind == "image too large"
    assert "14000 x 13000 pixels" in what
    assert "raise data.max_pixels" in what
    assert file_fault(io.BytesIO(data), 13000, 14000, max_pixels=182_000_000) is None
    with pytest.raises(TooLargeError, match=r"max_pixels=178956970 allows: raise data\.max_pixels"):
        decode(data)
    small = encoded(Image.fromarray(picture()))
    assert decode(small, max_pixels=600)[0].shape == (20, 30, 3)
    with pytest.raises(TooLargeError, match="30 x 20 pixels are more than max_pixels=599"):
        decode(small, max_pixels=599)


def test_no_warning_of_pillow_comes_before_ours(recwarn: pytest.WarningsRecorder):
    data = encoded(Image.new("1", (14000, 13000)))
    file_fault(io.BytesIO(data), 1, 1)
    file_fault(io.BytesIO(data), 1, 1, max_pixels=10**9)
    assert not recwarn.list


def test_the_page_that_is_asked_for():
    samples = picture(8, 12)
    data = tiff(samples, pages=3)
    assert page_count(data) == 3
    assert np.array_equal(decode(data)[0], samples)
    assert np.array_equal(decode(data, page=2)[0], samples[::-1])
    assert np.array_equal(decode(data, page=3)[0], samples)
    with pytest.raises(UnreadableImageError, match="it has no page 4"):
        decode(data, page=4)
    frames = [Image.fromarray(np.full((8, 12), value, np.uint8)) for value in (0, 255)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert page_count(gif) == 2
    assert [decode(gif, page=page)[0].max() for page in (1, 2)] == [0, 255]
    jpeg = encoded(frames[0], "JPEG")
    assert page_count(jpeg) == 1
    with pytest.raises(UnreadableImageError, match="it has no page 2"):
        decode(jpeg, page=2)


def test_orientation_and_depth_of_a_later_page():
    samples = gray(12)[:, :20]
    data = tiff(samples, orientation=6, pages=2)
    assert np.array_equal(decode(data, page=2)[0], upright(eight(samples[::-1], 12), 6))


def test_a_page_of_a_proxy_does_not_stay_in_the_cache(server: Server, tmp_path: Path):
    """Nor a cut image, nor one of another size; the true one is asked for again."""
    right = encoded(Image.fromarray(picture()))
    server.offer(encoded(Image.fromarray(picture(10, 10))), "b.png")
    remote = Remote(server.address, Cache(tmp_path, 1))
    with pytest.raises(UnreadableImageError, match="10 x 10, unlike the size in the json"):
        read_pixels(remote, "b.png", (20, 30))
    server.offer(right, "b.png")
    assert np.array_equal(read_pixels(remote, "b.png", (20, 30))[0], picture())
    for fault in ("html", "cut"):
        server.offer(right, f"{fault}_a.png")
        server.fail(fault, times=2)
        with pytest.raises(UnreadableImageError):
            read_pixels(remote, f"{fault}_a.png", (20, 30))
        assert np.array_equal(read_pixels(remote, f"{fault}_a.png", (20, 30))[0], picture())
        server.offer(right, f"once_{fault}.png")
        server.fail(fault, times=1)
        assert np.array_equal(read_pixels(remote, f"once_{fault}.png", (20, 30))[0], picture())


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, of damaged tags
def test_random_bytes_are_an_error_of_ours():
    """Flips in the header of every format: pixels, or UnreadableImageError."""
    rng = np.random.default_rng(0)
    kinds = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP")
    files = [encoded(Image.fromarray(picture()), kind) for kind in kinds]
    files += [png(gray(12)), tiff(picture().astype(np.uint16) * 9), tiff(gray(12), bits=12)]
    for data in files * 40:
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 300), 3):
            damaged[position] = int(rng.integers(256))
        try:
            assert decode(bytes(damaged))[0].shape[2] == 3
        except UnreadableImageError as error:
            assert str(error)
        file_fault(io.BytesIO(bytes(damaged)), 20, 30)
        page_count(bytes(damaged))
