"""Images in (file, folder, glob; every kind of pixel) and out."""

import os
from pathlib import Path

import numpy as np
import pytest
from deep_images import tiff
from PIL import Image

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.images import read_images, write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders and subfolders, whose first pixel numbers them, beside files that are none."""
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
        ("nowhere.jpg", "source=.*nowhere.jpg does not exist; give an image, a folder or a glob"),
        ("*.webp", r"source=.*\*.webp holds no image; .* \.png.*quote a glob"),
        ("directory.png", "source=.*directory.png holds no image"),
    ],
)
def test_nothing_found_is_said_at_once(folder: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_images(folder / source)


def test_of_several_files_an_unreadable_one_is_passed_over_and_named(
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
            assert f"{folder / name} is passed over, it cannot be read as an image (" in caplog.text
        assert "0x" not in caplog.text, "no address in memory"


def test_a_single_unreadable_file_is_a_mistake(folder: Path) -> None:
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    with pytest.raises(
        UserError, match=r"a\.jpg cannot be read as an image \(.+\); give another file"
    ):
        next(read_images(folder / "a.jpg"))
    with pytest.raises(UserError, match=r"notes\.txt cannot be read as an image \(no image\)"):
        next(read_images(folder / "notes.txt"))


def test_several_pages_are_told_or_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.arange(40, dtype=np.uint8).reshape(5, 8)
    (tmp_path / "a.tif").write_bytes(tiff(samples, pages=3))
    (tmp_path / "b.tif").write_bytes(tiff(samples))
    pages = {name: image[..., 0] for name, image in read_images(tmp_path)}
    assert np.array_equal(pages["a.tif"], samples)
    assert f"{tmp_path / 'a.tif'} has 3 pages: the first is read, page=N" in caplog.text
    assert "b.tif" not in caplog.text
    caplog.clear()
    ((_, second),) = read_images(tmp_path / "a.tif", page=2)
    assert np.array_equal(second[..., 0], samples[::-1]) and caplog.text == ""
    with pytest.raises(UserError, match=r"a\.tif cannot be read .*it has no page 4"):
        next(read_images(tmp_path / "a.tif", page=4))
    with pytest.raises(UserError, match="page=-1 must be a whole number"):
        read_images(tmp_path / "a.tif", page=-1)


def test_the_limit_of_pixels_can_be_raised(folder: Path) -> None:
    with pytest.raises(UserError, match=r"b\.png cannot be read .*more than max_pixels=47"):
        next(read_images(folder / "b.png", max_pixels=47))
    assert len(list(read_images(folder / "b.png", max_pixels=48))) == 1


def test_images_are_read_one_by_one(folder: Path) -> None:
    images = read_images(folder)
    later = [name for name, _ in read_images(folder)][1:]
    (folder / "b.png").unlink()
    assert next(images)[0] == "a.jpg"
    assert [name for name, _ in images] == [name for name in later if name != "b.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "HSV"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (10, 1))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(np.repeat(grey[..., None], 3, 2)).convert(mode)
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
