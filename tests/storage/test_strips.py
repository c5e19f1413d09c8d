"""Windows of large files have the pixels that the whole file has."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage import strips
from maskrcnn_lit.storage.images import TooLargeError, UnreadableImageError, decode
from maskrcnn_lit.storage.strips import Strips, open_strips

HEIGHT, WIDTH = 300, 410
WINDOWS = [(y, x, 100, 150) for y in (0, 80, 200) for x in (0, 130, 260)]


def pixels() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and different everywhere."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([y * 255 // HEIGHT, x * 255 // WIDTH, (x + y) // 4], 2).astype(np.uint8)


def written(path: Path, image: np.ndarray | None = None, **options: object) -> Path:
    Image.fromarray(pixels() if image is None else image).save(path, **options)
    return path


def check(path: Path, tolerance: int = 0, page: int | None = None) -> Strips:
    """Each window is that part of the file as Pillow decodes it."""
    whole, _ = decode(path.read_bytes(), page=page or 1)
    opened = Strips(path, page)
    assert opened.size == whole.shape[:2]
    seen = set()
    windows = [
        w for w in WINDOWS if w[0] + w[2] <= whole.shape[0] and w[1] + w[3] <= whole.shape[1]
    ]
    for i, part in opened.windows(windows):
        y, x, height, width = windows[i]
        difference = part.astype(int) - whole[y : y + height, x : x + width]
        assert np.abs(difference).max() <= tolerance
        seen.add(i)
    assert seen == set(range(len(windows)))
    assert len(windows) >= 4
    return opened


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_windows_of_lossless_files(tmp_path: Path, name: str, options: dict):
    check(written(tmp_path / name, **options))


@pytest.mark.parametrize("progressive", [False, True])
def test_windows_of_a_jpeg(tmp_path: Path, progressive: bool):
    check(written(tmp_path / "a.jpg", quality=95, progressive=progressive), tolerance=2)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_windows_of_other_modes_of_png(tmp_path: Path, mode: str):
    Image.fromarray(pixels()).convert(mode).save(tmp_path / "a.png")
    check(tmp_path / "a.png")


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_are_scaled_by_the_depth_of_the_camera(tmp_path: Path, name: str, bits: int):
    samples = (pixels()[..., 0].astype(np.uint16) << (bits - 8)) + 1
    Image.fromarray(samples).save(tmp_path / name)
    check(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_given_depth_counts_for_every_file(tmp_path: Path, name: str):
    samples = pixels()[..., 0].astype(np.uint16) << 2  # 10 bits
    Image.fromarray(samples).save(tmp_path / name)
    ((_, part),) = Strips(tmp_path / name, bits=12).windows([(0, 0, *samples.shape)])
    assert np.array_equal(part[..., 0], samples >> 4)
    with pytest.raises(UnreadableImageError, match=r"over the 511 of data\.bits=9"):
        next(Strips(tmp_path / name, bits=9).windows([(0, 0, 9, 9)]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_of_a_turned_photo_are_upright(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    check(written(tmp_path / "a.jpg", quality=95, exif=exif), tolerance=2)


def test_a_tiled_pyramid_is_one_page_and_its_levels_are_pages(tmp_path: Path):
    import pyvips

    image = pyvips.Image.new_from_array(np.kron(pixels(), np.ones((4, 4, 1), np.uint8)))
    image.tiffsave(str(tmp_path / "a.tif"), tile=True, pyramid=True, compression="deflate")
    opened = check(tmp_path / "a.tif")
    assert (opened.size, opened.pages) == ((4 * HEIGHT, 4 * WIDTH), 1)
    assert check(tmp_path / "a.tif", page=2).size == (2 * HEIGHT, 2 * WIDTH)


def test_other_pages_of_a_tiff(tmp_path: Path):
    first, second = Image.fromarray(pixels()), Image.fromarray(255 - pixels())
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert check(tmp_path / "a.tif").pages == 2
    check(tmp_path / "a.tif", page=2)
    with pytest.raises(UnreadableImageError, match="it has no page 3"):
        Strips(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_preview_is_the_image_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
):
    monkeypatch.setattr(strips, "PREVIEW", 140)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = check(written(tmp_path / "a.jpg", quality=95, exif=exif), tolerance=2)
    whole, _ = decode((tmp_path / "a.jpg").read_bytes())
    expected = np.asarray(Image.fromarray(whole).reduce(3))
    assert opened.preview is not None
    assert opened.preview.shape == expected.shape
    if orientation == 1:
        assert np.abs(opened.preview.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("name", "options"), [("a.jpg", {}), ("a.png", {}), ("a.tif", {"compression": "tiff_lzw"})]
)
def test_a_truncated_file_is_reported(tmp_path: Path, name: str, options: dict):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    path = written(tmp_path / name, noise, **options)
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(UnreadableImageError):
        list(Strips(path).windows(WINDOWS))


def test_only_large_files_of_some_formats_are_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    png, webp = written(tmp_path / "a.png"), written(tmp_path / "a.webp", lossless=True)
    (tmp_path / "b.png").write_bytes(b"no image")
    assert open_strips(png, None, 10**6) is None
    monkeypatch.setattr(strips, "WHOLE", HEIGHT * WIDTH - 1)
    assert isinstance(open_strips(png, None, 10**6), Strips)
    assert isinstance(open_strips(png, None, 1000), Strips)  # the limit is of whole images
    assert open_strips(webp, None, 10**6) is None
    with pytest.raises(
        UnreadableImageError, match=r"max_pixels=1000 .*; webp is not read in tiles"
    ):
        open_strips(webp, None, 1000)
    assert open_strips(tmp_path / "b.png", None, 10**6) is None
    assert open_strips(tmp_path / "none.png", None, 10**6) is None


def test_pillow_refuses_a_large_image_as_before(tmp_path: Path):
    """What tiles read does not raise the limit for whole images."""
    before = Image.MAX_IMAGE_PIXELS
    path = written(tmp_path / "a.png")
    assert open_strips(path, None, 1000) is not None
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(TooLargeError, match="tile=1024"):
        decode(path.read_bytes(), max_pixels=1000)


def test_floats_are_refused(tmp_path: Path):
    Image.fromarray(pixels()[..., 0].astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="type float"):
        list(Strips(tmp_path / "a.tif").windows(WINDOWS))


def test_without_the_package_a_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(UserError, match=r"a large image, in tiles .*maskrcnn_lit\[tiles\]"):
        Strips(written(tmp_path / "a.png"))
