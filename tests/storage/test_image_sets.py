"""A zip, a list in a text file and a COCO json name images."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.image_inputs import ImageInput, list_inputs
from maskrcnn_lit.storage.image_sets import coco_images, read_list, read_member, zip_names
from maskrcnn_lit.storage.zip_source import Zip


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def first_pixels(source: Any) -> dict[str, int]:
    inputs = list_inputs(source)
    read = {one.name: one.read() for one in inputs}
    return {name: int(pixels[0, 0, 0]) for name, pixels in read.items() if pixels is not None}


def test_a_damaged_image_of_a_list_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "list.txt").write_text("a.png\nbad.png\nb.png\n")
    assert first_pixels(tmp_path / "list.txt") == {"a.png": 1, "b.png": 2}
    assert "bad.png is skipped, since it cannot be read as an image" in caplog.text
    assert [one.file for one in list_inputs(tmp_path / "list.txt") if isinstance(one, ImageInput)][
        :1
    ] == [tmp_path / "a.png"]


# A zip


def test_the_images_of_a_zip_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    files = {
        "b.png": png(2),
        "deep/a.PNG": png(1),
        "__MACOSX/._b.png": b"x",
        "notes.md": b"x",
        "broken.png": b"no image",
    }
    path = zipped(tmp_path / "a.zip", files)
    assert first_pixels(path) == {"b.png": 2, "deep/a.PNG": 1}
    assert f"{path}: skipping files that are not supported images: 1 .md" in caplog.text
    assert f"{path}/broken.png is skipped, since it cannot be read as an image" in caplog.text


def test_names_of_a_zip_are_normalized(tmp_path: Path):
    files = {"./a.png": png(1), "x//b.png": png(2), "./.hidden/c.png": png(3), "y/../d.png": png(4)}
    expected = {"a.png": 1, "d.png": 4, "x/b.png": 2}
    assert first_pixels(zipped(tmp_path / "a.zip", files)) == expected


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "a/../../b.png", "./../a.png", "..\\a.png"]
)
def test_a_name_that_points_out_of_the_zip_is_refused(name: str, tmp_path: Path):
    path = zipped(tmp_path / "a.zip", {"good.png": png(), name: png()})
    with pytest.raises(UserError, match=r"a\.zip has a file '.*', which points outside of the zip"):
        list_inputs(path)


def test_a_bomb_in_a_zip_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = zipped(tmp_path / "a.zip", {"bomb.png": bytes(2**26 + 2**20), "good.png": png(7)})
    assert first_pixels(path) == {"good.png": 7}
    (line,) = caplog.messages
    assert f"{path}/bomb.png is skipped" in line
    assert "rejected as a decompression bomb" in line


def test_a_huge_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = Zip(zipped(tmp_path / "a.zip", {"a.png": png()}))
    assert read_member(archive, "a.png") == png()
    monkeypatch.setattr(archive, "stamp", lambda name: (2**29 + 1, 0))
    with pytest.raises(OSError, match="it has 537 MB, more than 537 MB"):
        read_member(archive, "a.png")


def test_an_empty_or_damaged_zip_is_one_sentence(tmp_path: Path):
    assert zip_names(Zip(zipped(tmp_path / "a.zip", {}))) == []
    with pytest.raises(UserError, match=r"a\.zip has no image: give"):
        list_inputs(tmp_path / "a.zip")
    with pytest.raises(
        UserError, match=r"b\.zip has no image but 1 \.mp4: give .*; name each video, or"
    ):
        list_inputs(zipped(tmp_path / "b.zip", {"a.mp4": b"x"}))
    whole = (tmp_path / "b.zip").read_bytes()
    for content in (b"", b"no zip", whole[:-30]):
        (tmp_path / "c.zip").write_bytes(content)
        with pytest.raises(UserError, match=r"c\.zip is not a complete zip"):
            list_inputs(tmp_path / "c.zip")


# A list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "deep/b.png", "deep/c.png"), start=1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "lists").mkdir()
    return tmp_path


def test_a_list_names_images_from_its_own_folder(folder: Path):
    lines = ["\ufeff# comment", "", "a.png", f"  {folder}/deep/b.png  ", "deep", "deep/c.png"]
    (folder / "list.txt").write_text("\r\n".join(lines), "utf-8")
    names = [one.name for one in list_inputs(folder / "list.txt")]
    assert names == ["a.png", "b.png", "b.png", "c.png", "deep/c.png"]
    (folder / "lists" / "up.txt").write_text("../a.png\n")
    assert first_pixels(folder / "lists" / "up.txt") == {"a.png": 1}  # a name inside of a folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list\.txt names no image: write one image"),
        (b"# only this\n\n", r"list\.txt names no image"),
        (b"\xff\xfe\x00\xd8", r"list\.txt cannot be read as a list \('utf-8'"),
        (b"a.png\n\nnone.png\n", r"list\.txt, line 3: source=.*none\.png does not exist"),
        (b"a.png\nlist.txt\n", r"list\.txt, line 2: list\.txt is a list itself"),
        (b"~nobody_of_this_name/a.png", r"list\.txt, line 1: "),
    ],
)
def test_a_bad_list_is_one_sentence_with_the_line(content: bytes, message: str, folder: Path):
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        list_inputs(folder / "list.txt")
    assert "\n" not in str(raised.value)


def test_a_list_of_a_gigabyte_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "list.txt").write_text("a.png\n")
    assert read_list(folder / "list.txt") == [(1, "a.png")]
    monkeypatch.setattr("maskrcnn_lit.storage.image_sets._LONGEST_LIST", 5)
    with pytest.raises(UserError, match=r"cannot be read as a list \(6 bytes\)"):
        read_list(folder / "list.txt")


# A COCO json


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


IMAGES = [{"id": 70, "file_name": "b.png"}, {"id": 5, "file_name": "c.png"}]


@pytest.mark.parametrize(
    "json_name",
    ["deep/val.json", "annotations/instances_deep.json"],
)
def test_a_coco_json_gives_its_images_with_their_ids(json_name: str, folder: Path):
    path = written(folder / json_name, {"images": IMAGES, "annotations": []})
    assert [(one.id, one.name) for one in coco_images(path)] == [(70, "b.png"), (5, "c.png")]
    assert [(one.name, one.id) for one in list_inputs(path)] == [("b.png", 70), ("c.png", 5)]
    assert first_pixels(path) == {"b.png": 2, "c.png": 3}


def test_a_missing_image_of_a_coco_json_is_a_line(folder: Path, caplog: pytest.LogCaptureFixture):
    images = [*IMAGES, {"id": 6, "file_name": "missing.png"}]
    path = written(folder / "deep" / "val.json", {"images": images})
    assert first_pixels(path) == {"b.png": 2, "c.png": 3}
    assert "missing.png is skipped" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has no list of images: give a COCO json"),
        ({"images": 5}, "has no list of images"),
        ({"images": ["a.png"]}, "has no list of images"),
        ({"images": []}, "lists no images"),
        ({"images": [{"file_name": "a.png"}]}, r"images\[0\] has no file_name and id"),
        ({"images": [{"file_name": "a.png", "id": True}]}, r"images\[0\] has no file_name and id"),
        (
            {"images": [*IMAGES, {"file_name": "../a.png", "id": 1}]},
            r"images\[2\] has the file name '\.\./a\.png', which points outside",
        ),
        ({"images": [{"file_name": "none.png", "id": 1}]}, r"its first image none\.png is in none"),
    ],
)
def test_another_json_is_one_sentence(content: Any, message: str, folder: Path):
    path = written(folder / "deep" / "val.json", content)
    with pytest.raises(UserError, match=message) as raised:
        list_inputs(path)
    assert "\n" not in str(raised.value)


def test_a_damaged_json_is_one_sentence(folder: Path):
    (folder / "a.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"a\.json cannot be read as JSON"):
        list_inputs(folder / "a.json")


def test_an_image_of_one_pixel_is_an_image(tmp_path: Path):
    zipped(tmp_path / "a.zip", {"a.png": png()})
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "one.png")
    pixels = list_inputs(tmp_path / "one.png")[0].read()
    assert np.array_equal(pixels, np.full((1, 1, 3), 9))
