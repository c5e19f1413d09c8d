"""What `predict` is given becomes RGB images, or one sentence says why not."""

import importlib.machinery
import io
import logging
import os
import struct
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deep_images import tiff
from local_server import Server
from PIL import Image

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage import image_inputs, images
from maskrcnn_lit.storage.image_inputs import array_to_rgb, iterate_inputs, list_inputs
from maskrcnn_lit.storage.images import write_image
from maskrcnn_lit.storage.video import VideoInput

pytest_plugins = ("local_server",)


def read_images(source: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) of each image that can be read."""
    inputs = list_inputs(source)
    return ((one.name, image) for one in inputs if (image := one.read()) is not None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders and subfolders, whose first pixel numbers them, beside files that are
    none.
    """
    names = ["b.png", "a.jpg", "deep/er/c.PNG", "deep/d.bmp", ".hidden.png", "deep/.cache/e.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number * 20, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "directory.png").mkdir()
    return tmp_path


def numbers(source: str | Path) -> dict[str, int]:
    return {name: round(int(image[0, 0, 0]) / 20) for name, image in read_images(source)}


def test_a_file(folder: Path) -> None:
    assert numbers(folder / "b.png") == {"b.png": 0}


def test_a_folder_with_its_subfolders_in_order(folder: Path) -> None:
    found = numbers(folder)
    assert found == {"a.jpg": 1, "b.png": 0, "deep/d.bmp": 3, "deep/er/c.PNG": 2}
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["b.png"]),
        ("*", ["a.jpg", "b.png"]),
        ("**/*.[Pp][Nn][Gg]", ["b.png", "deep/er/c.PNG"]),
        ("deep/*.bmp", ["d.bmp"]),
        ("d*p/*/c.PNG", ["deep/er/c.PNG"]),
    ],
)
def test_a_glob(folder: Path, pattern: str, names: list[str]) -> None:
    assert list(numbers(f"{folder}/{pattern}")) == names


def test_a_relative_glob(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert numbers("*.jpg") == {"a.jpg": 1}
    assert numbers("deep/*.bmp") == {"d.bmp": 3}


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    write_image(tmp_path / "photo[1].png", np.zeros((2, 2, 3), np.uint8))
    assert list(numbers(tmp_path / "photo[1].png")) == ["photo[1].png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jpg", "source=.*nowhere.jpg does not exist: give an image, a folder or a glob"),
        ("*.webp", r"source=.*\*.webp has no image: .* \.png.*quote a glob"),
        ("directory.png", "source=.*directory.png has no image"),
    ],
)
def test_nothing_found_is_said_at_once(folder: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_images(folder / source)


def test_of_several_files_an_unreadable_one_is_skipped_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every = [name for name, _ in read_images(folder)]
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    (folder / "c.png").write_text("text")
    for source in (folder, f"{folder}/**/*"):
        caplog.clear()
        assert [name for name, _ in read_images(source)] == [
            name for name in every if name != "a.jpg"
        ]
        for name in ("a.jpg", "c.png"):
            assert (
                f"{folder / name} is skipped, since it cannot be read as an image (" in caplog.text
            )
        assert "0x" not in caplog.text, "no address in memory"


def test_a_single_unreadable_file_is_a_mistake(folder: Path) -> None:
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    with pytest.raises(
        UserError, match=r"a\.jpg cannot be read as an image \(.+\): give another file"
    ):
        next(read_images(folder / "a.jpg"))
    (folder / "notes.md").write_text("no image")
    with pytest.raises(UserError, match=r"notes\.md cannot be read as an image \(no image\)"):
        next(read_images(folder / "notes.md"))


def test_images_are_read_one_by_one(folder: Path) -> None:
    images = read_images(folder)
    later = [name for name, _ in read_images(folder)][1:]
    (folder / "b.png").unlink()
    assert next(images)[0] == "a.jpg"
    assert [name for name, _ in images] == [name for name in later if name != "b.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "HSV"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    gray = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (10, 1))
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(np.repeat(gray[..., None], 3, 2)).convert(mode)
    path = tmp_path / (
        "a.jpg" if mode in ("CMYK", "YCbCr") else "a.tif" if mode == "HSV" else "a.png"
    )
    image = image.convert("RGB") if mode == "HSV" else image
    image.save(path)
    ((_, pixels),) = read_images(path)
    assert (pixels.shape, pixels.dtype) == ((10, 20, 3), np.uint8)
    assert pixels[:, :2].mean() < 20
    assert pixels[:, -2:].mean() > 235


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photos_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:8, :8] = 255  # the corner in which this lies tells how the image was turned
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    ((_, pixels),) = read_images(tmp_path)
    assert pixels.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    corners = {
        "top left": (0, 0),
        "top right": (0, -1),
        "bottom left": (-1, 0),
        "bottom right": (-1, -1),
    }
    lit = [name for name, (row, column) in corners.items() if pixels[row, column, 0] == 255]
    first = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left"}
    assert lit == [
        {**first, 5: "top left", 6: "top right", 7: "bottom right", 8: "bottom left"}[orientation]
    ]


def test_real_photos_with_all_that_can_be_decoded(test_data: Path) -> None:
    names = [
        "grayscale.jpg",
        "cmyk.jpg",
        "gray16.png",
        "rgb16.png",
        "exif_rotated_upright_json.jpg",
    ]
    for name in names:
        ((_, pixels),) = read_images(test_data / "corrupt" / "images" / name)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 20  # neither black nor clipped to white
    assert pixels.shape == (107, 160, 3)  # the last one, upright
    assert len(list(read_images(test_data / "coco_mini" / "val2017" / "*2.jpg"))) > 3


def test_skipped_files_of_a_folder_are_counted_by_kind(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.mp4", "deep/b.MP4", "c.heic", "README", ".hidden.mp4"):
        (folder / name).write_bytes(b"x")
    caplog.set_level(logging.INFO)
    list_inputs(folder)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message == (
        f"{folder}: skipping files that are not supported images: "
        "2 .mp4, 1 .heic, 1 .txt, 1 without an ending"
    )
    for name in ("a.jpg", "b.png", "deep"):
        (folder / "deep" / "d.bmp" if name == "deep" else folder / name).unlink()
    (folder / "deep" / "er" / "c.PNG").unlink()
    with pytest.raises(UserError, match=r"has no image but 2 \.mp4, 1 \.heic"):
        list_inputs(folder)


@pytest.mark.skipif(".avif" not in image_inputs.SUFFIXES, reason="Pillow was built without AVIF")
def test_avif_files_of_a_folder_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "a.avif")
    ((name, pixels),) = read_images(tmp_path)
    assert name == "a.avif"
    assert abs(pixels.astype(int) - (200, 0, 0)).max() < 5


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.heic", r"pip install 'maskrcnn_lit\[heic\]', or convert it"),
        ("a.psd", "give another file"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_a_way_out(
    name: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    monkeypatch.setattr(image_inputs, "SUFFIXES", (".png",))  # without a reader of HEIC
    with pytest.raises(UserError, match=f"{name} cannot be read as an image .*: {advice}"):
        list_inputs(tmp_path / name)[0].read()


@pytest.mark.parametrize("source", ["", "x" * 5000, "~nobody_of_this_name/a.jpg", "a\0b"])
def test_odd_paths_are_a_mistake_and_no_crash(source: str) -> None:
    with pytest.raises(UserError, match=r"does not exist: give an image, a folder or a glob"):
        list_inputs(source)


def test_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert list(numbers("~/deep")) == ["d.bmp", "er/c.PNG"]
    assert list(numbers("~/*.jpg")) == ["a.jpg"]


# Bytes and what is behind a URL


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_the_bytes_of_a_file(kind: Any) -> None:
    ((_, pixels),) = read_images(kind(encoded(PHOTO)))
    np.testing.assert_array_equal(pixels, PHOTO)


def test_an_open_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(PHOTO))
    with open(tmp_path / "a.png", "rb") as file:
        ((name, pixels),) = read_images(file)
    assert name == "a.png"
    np.testing.assert_array_equal(pixels, PHOTO)
    with (
        open(tmp_path / "a.png", encoding="latin-1") as file,
        pytest.raises(UserError, match="open it in binary mode"),
    ):
        list(read_images(file))


@pytest.mark.parametrize("content", [b"", b"no image", encoded(PHOTO)[:60]])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(UserError, match=f"bytes cannot be read as an image .*{len(content)} bytes"):
        list(read_images(content))


def test_a_url(server: Server) -> None:
    url, _ = server.offer(encoded(PHOTO), "my%20photo.png")
    ((name, pixels),) = read_images(url)
    assert name == "my photo.png"
    np.testing.assert_array_equal(pixels, PHOTO)


def test_a_url_that_is_no_image_or_not_there(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server.offer(b"<html>", "page.png")
    with pytest.raises(UserError, match=r"source=.*page\.png cannot be read as an image"):
        list(read_images(url))
    monkeypatch.setattr("maskrcnn_lit.storage.download.BACKOFF", 0.0)
    with pytest.raises(UserError, match=r"source=.*nothing\.png cannot be downloaded \(HTTP 404"):
        list(read_images(f"{server.address}/nothing.png"))


@pytest.mark.parametrize("source", ["s3://bucket/a.jpg", "file:///a.jpg", "ftp://me:pw@host/a.jpg"])
def test_other_urls_are_refused(source: str) -> None:
    with pytest.raises(UserError, match="cannot be read: predict reads http:// and http") as raised:
        list_inputs(source)
    assert "pw@" not in str(raised.value)


def test_videos_and_cameras_are_named_but_not_opened(folder: Path) -> None:
    (folder / "a.mp4").write_bytes(b"no video")
    (folder / "list.txt").write_text("a.mp4\nwebcam:0\na.jpg\nrtsp://camera/1\n")
    assert list_inputs("webcam:3") == [VideoInput("webcam_3", "webcam:3", live=True)]
    video, camera, image, stream = list_inputs(folder / "list.txt")
    assert (video, image.name) == (VideoInput("a.mp4", str(folder / "a.mp4")), "a.jpg")
    assert [camera.where, stream.where] == ["webcam:0", "rtsp://camera/1"]
    assert list_inputs([folder / "a.mp4", camera]) == [video, camera]
    for name in ("webcam:front", "webcam:", "webcam:-1"):
        with pytest.raises(UserError, match=f"source={name} is not a camera: give its number"):
            list_inputs(name)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://a/b/c.jpg", "c.jpg"),
        ("https://a/b/c%2Fd.jpg?x=/e.png#f", "d.jpg"),
        ("http://a", "image"),
        ("http://a/..", "image"),
        ("http://a/%2e%2e%2f%2e%2e", "image"),
        ("http://a/%00", "image"),
    ],
)
def test_the_name_of_a_url_is_a_plain_file_name(url: str, name: str) -> None:
    assert list_inputs(url)[0].name == name


# PIL images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "HSV"])
def test_a_pil_image_of_every_mode(mode: str) -> None:
    gray = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (10, 1))
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(np.repeat(gray[..., None], 3, 2)).convert(mode)
    ((name, pixels),) = read_images(image)
    assert (name, pixels.shape, pixels.dtype) == ("image", (10, 20, 3), np.uint8)
    assert pixels[:, :2].mean() < 20
    assert pixels[:, -2:].mean() > 235


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_pil_image_is_what_its_file_is(
    orientation: int, ending: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:8, :8] = 255
    path = tmp_path / f"a.{ending}"
    Image.fromarray(stored).save(path, exif=exif)
    with Image.open(path) as image:
        ((name, pixels),) = read_images(image)
    assert name == path.name
    assert pixels.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1], 0] > 128  # top left, top right, bottom ...
    assert (
        corners.tolist().index(True)
        == {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    )


# Arrays and tensors

GREY = PHOTO[..., 0]
ALPHA = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 7, np.uint8)])
FLOATS = PHOTO / np.float32(255)
THREE_TIMES = np.repeat(GREY[..., None], 3, 2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PHOTO, PHOTO),
        (PHOTO.transpose(2, 0, 1), PHOTO),
        (GREY, THREE_TIMES),
        (GREY[..., None], THREE_TIMES),
        (GREY[None], THREE_TIMES),
        (ALPHA, PHOTO),
        (ALPHA.transpose(2, 0, 1), PHOTO),
        (PHOTO[:, ::-1], PHOTO[:, ::-1]),
        (PHOTO.astype(np.uint16) * 257, PHOTO),
        ((PHOTO.astype(np.uint16) * 257).astype(">u2"), PHOTO),
        (FLOATS, PHOTO),
        (FLOATS.astype(np.float64), PHOTO),
        (FLOATS.transpose(2, 0, 1), PHOTO),
        (np.clip(FLOATS * np.float32(1.0005), 0, 2), PHOTO),
        (PHOTO.astype(np.int64), PHOTO),
        (PHOTO.astype(np.int16), PHOTO),
        (GREY > 127, np.repeat((GREY > 127)[..., None] * np.uint8(255), 3, 2)),
        (np.zeros((20, 30), np.uint16), np.zeros((20, 30, 3), np.uint8)),
        (np.zeros((20, 30), np.float32), np.zeros((20, 30, 3), np.uint8)),
    ],
)
def test_an_array_of_any_usual_kind(array: np.ndarray, expected: np.ndarray) -> None:
    pixels = array_to_rgb(array)
    assert (pixels.dtype, pixels.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(pixels, expected)
    assert not np.shares_memory(pixels, array)


def test_the_depth_of_16_bits_may_be_given(tmp_path: Path) -> None:
    samples = GREY.astype(np.uint16) << 2
    expected = np.repeat((samples >> 4).astype(np.uint8)[..., None], 3, 2)
    Image.fromarray(samples).save(tmp_path / "a.tif")
    for source in (samples, Image.fromarray(samples), tmp_path / "a.tif", [samples]):
        ((image,),) = [list_inputs(source, bits=12)]
        np.testing.assert_array_equal(image.read(), expected)
    ((image,),) = [list_inputs(samples, bits=9)]
    with pytest.raises(UserError, match=r"cannot be read: .* over the 511 of data\.bits=9"):
        image.read()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_tensor(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(FLOATS.transpose(2, 0, 1)).to(dtype).requires_grad_()
    ((name, pixels),) = read_images(tensor)
    assert name == "tensor"
    assert abs(pixels.astype(int) - PHOTO).max() <= (1 if dtype == torch.bfloat16 else 0)
    for whole in (torch.from_numpy(PHOTO), torch.from_numpy(PHOTO).permute(2, 0, 1)):
        np.testing.assert_array_equal(next(read_images(whole))[1], PHOTO)


def test_several_images_in_one_array() -> None:
    names, images = zip(*read_images(np.stack([PHOTO, 255 - PHOTO])), strict=True)
    assert names == ("array[0]", "array[1]")
    np.testing.assert_array_equal(images[1], 255 - PHOTO)
    (first, _) = read_images(torch.from_numpy(np.stack([PHOTO, PHOTO])).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(first[1], PHOTO)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, 3, 3), np.uint8),
            "of shape 3 x 3 x 3 can be H x W x C or C x H x W: give a PIL",
        ),
        (np.zeros((1, 400, 3), np.uint8), "of shape 1 x 400 x 3 can be"),
        (np.zeros((3, 40, 4), np.uint8), "of shape 3 x 40 x 4 can be"),
        (np.zeros((20, 30, 2), np.uint8), "of shape 20 x 30 x 2 has no axis of 1, 3 or 4 channels"),
        (np.zeros((5, 20, 30), np.uint8), "of shape 5 x 20 x 30 has no axis of"),
        (np.zeros(30, np.uint8), "of shape 30 is not an image: give H x W"),
        (np.zeros((2, 2, 9, 9, 3), np.uint8), "is not an image"),
        (np.array(5), r"of shape \(\) is not an image"),
        (np.zeros((0, 30, 3), np.uint8), "of shape 0 x 30 x 3 is not an image"),
        (PHOTO.astype(np.float32), "float values from 0 to 255: give floats from 0 to 1"),
        (FLOATS * 2 - 1, "float values from -1 to .*without normalization"),
        (FLOATS * 100, "float values from 0 to 100"),
        (np.where(PHOTO == 7, np.nan, FLOATS), "has NaN or infinity"),
        (np.where(PHOTO == 7, np.inf, FLOATS), "has NaN or infinity"),
        (PHOTO.astype(np.uint16), "uint16 values up to 255, which may have 8, 10, 12 or 16 bits"),
        (PHOTO.astype(np.uint16) * 16, "uint16 values up to 4080"),
        (
            PHOTO.astype(np.int32) * 257,
            "int32 values from 0 to 65535, so the value of white is unknown",
        ),
        (PHOTO.astype(np.int32) - 5, "int32 values from -5 to 250"),
        ((PHOTO > 9).astype(np.int64), "int64 values from 0 to 1"),
        (PHOTO.astype(np.complex64), "of type complex64 is not an image"),
        (np.array([["a.jpg"]]), "of type <U5 is not an image"),
    ],
)
def test_an_array_that_could_mean_several_things_is_refused(
    array: np.ndarray, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        for source in list_inputs(array):
            source.read()
    assert str(raised.value).startswith("array")
    assert "\n" not in str(raised.value)


# Several sources


def test_a_list_of_all_kinds(folder: Path) -> None:
    sources = [
        folder / "b.png",
        PHOTO,
        Image.fromarray(PHOTO),
        encoded(PHOTO),
        str(folder / "deep"),
    ]
    names = [one.name for one in list_inputs(sources)]
    assert names == ["b.png", "array[1]", "image[2]", "bytes[3]", "d.bmp", "er/c.PNG"]
    for several in (tuple(sources), iter(sources), dict.fromkeys(range(5)) and [*sources]):
        assert [one.name for one in list_inputs(several)] == names
    assert list_inputs(list_inputs(sources))[1].name == "array[1]"
    assert list_inputs([]) == []


@pytest.mark.parametrize("source", [None, 5, 0.5, object(), [None], [["a.jpg"]], [1, 2]])
def test_what_is_no_image_is_refused_by_its_type(source: Any) -> None:
    with pytest.raises(
        UserError, match=r"a source of type \w+ is not an image: give an image file"
    ):
        list_inputs(source)


def test_a_missing_file_is_told_at_once_and_a_generator_is_read_one_by_one(folder: Path) -> None:
    sources = [folder / "a.jpg", folder / "missing.jpg"]
    with pytest.raises(UserError, match=r"missing\.jpg does not exist"):
        iterate_inputs(sources)
    inputs = iterate_inputs(source for source in sources)
    assert next(inputs).name == "a.jpg"
    with pytest.raises(UserError, match=r"missing\.jpg does not exist"):
        next(inputs)


# Pictures out


@pytest.mark.parametrize("name", ["deep/a.png", "a.webp", "a.jpg", "a.JPEG"])
def test_written_pictures_read_back(tmp_path: Path, name: str) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:, 20:] = (200, 100, 50)
    write_image(tmp_path / name, picture)
    ((_, pixels),) = read_images(tmp_path)
    assert pixels.shape == picture.shape
    assert abs(pixels.astype(int) - picture).mean() < (0.01 if name.endswith("png") else 5)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_image(path, np.zeros((4, 4, 3), np.uint8))
    before = path.read_bytes()

    def killed(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, np.ones((4, 4, 3), np.uint8))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.png"]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.psd cannot be written: .* \.png, \.jpg"):
        write_image(tmp_path / "a.psd", np.zeros((4, 4, 3), np.uint8))


def test_several_pages_are_told_or_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.arange(40, dtype=np.uint8).reshape(5, 8)
    (tmp_path / "a.tif").write_bytes(tiff(samples, pages=3))
    (tmp_path / "b.tif").write_bytes(tiff(samples))
    pages = {source.name: source.read()[..., 0] for source in list_inputs(tmp_path)}
    assert np.array_equal(pages["a.tif"], samples)
    assert f"{tmp_path / 'a.tif'} has 3 pages: using the first; page=N" in caplog.text
    assert "b.tif" not in caplog.text
    caplog.clear()
    (second,) = list_inputs(tmp_path / "a.tif", page=2)
    assert np.array_equal(second.read()[..., 0], samples[::-1])
    assert caplog.text == ""
    with pytest.raises(UserError, match=r"a\.tif cannot be read .*it has no page 4"):
        list_inputs(tmp_path / "a.tif", page=4)[0].read()
    with pytest.raises(UserError, match="page=-1 must be a whole number"):
        list_inputs(tmp_path / "a.tif", page=-1)


def test_only_the_first_frame_of_an_animation_is_read_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 6), (value, 0, 0)) for value in (250, 120, 10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    (first,) = list_inputs(tmp_path / "a.gif")
    assert first.read()[0, 0, 0] == 250
    assert "a.gif has 3 pages: using the first; page=N selects another" in caplog.text
    assert list_inputs(tmp_path / "a.gif", page=3)[0].read()[0, 0, 0] == 10


def gray_png(side: int) -> bytes:
    """A whole PNG of `side` x `side` black pixels, one bit each."""
    packer, row = zlib.compressobj(1), bytes(1 + -(-side // 8))
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def test_an_image_of_30000_x_30000_pixels_is_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert image_inputs.decode(gray_png(40))[0].shape == (40, 40, 3)
    (tmp_path / "a.png").write_bytes(gray_png(30_000))
    # Pillow's own limit, which a larger max_pixels of an earlier call raises, tells the product
    message = "(900000000|30000 x 30000) pixels are more than max_pixels=178956970 allows: raise"
    with pytest.raises(UserError, match=message):
        list_inputs(tmp_path / "a.png")[0].read()
    assert list_inputs(tmp_path)[0].read() is None  # a line among others of a folder
    assert "a.png is skipped" in caplog.text


def test_heic_is_read_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = []
    reader = types.ModuleType("pillow_heif")
    reader.__spec__ = importlib.machinery.ModuleSpec("pillow_heif", None)
    reader.register_heif_opener = lambda: registered.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    images._register_heif.cache_clear()
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert np.array_equal(list_inputs(tmp_path / "a.png")[0].read(), PHOTO)
    list_inputs(tmp_path / "a.png")[0].read()
    assert registered == [True]
    images._register_heif.cache_clear()


def test_the_limit_of_pixels_can_be_raised(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png cannot be read .*more than max_pixels=47"):
        list_inputs(tmp_path / "b.png", max_pixels=47)[0].read()
    assert list_inputs(tmp_path / "b.png", max_pixels=48)[0].read().shape == (6, 8, 3)


def test_an_address_without_https_is_advised() -> None:
    with pytest.raises(UserError, match=r"if it is an address, write source=https://www\.a\.org/b"):
        list_inputs("www.a.org/b.jpg")
