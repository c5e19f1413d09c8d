import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from coco_file import coco_dict, write_coco
from PIL import Image

import maskrcnn_lit.data.coco.image_files as module
from maskrcnn_lit.data.coco.arrays import Packed, open_json
from maskrcnn_lit.data.coco.image_files import (
    RenamedFiles,
    image_size,
    other_names,
    readable_files,
)
from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sources import Folder, open_annotations

IMAGES = 6


@pytest.fixture
def data(tmp_path: Path) -> tuple[Packed, Folder]:
    annotations, images = write_coco(tmp_path, coco_dict(IMAGES))
    return open_json(*open_annotations(str(annotations), tmp_path, cache_gb=0), tmp_path), Folder(
        images
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names, real = list[str](), module.file_fault

    def noted(file: Path, *size: int) -> tuple[str, str] | None:
        names.append(file.name)
        return real(file, *size)

    monkeypatch.setattr(module, "file_fault", noted)
    return names


def test_sound_files_are_opened_once(
    data: tuple[Packed, Folder], tmp_path: Path, opened: list[str]
):
    rows = np.array([3, 0, 5])
    for _ in range(2):
        found, faults = readable_files(*data, rows, 3, tmp_path / "cache")
        assert found.tolist() == [3, 0, 5]
        assert faults == []
        assert sorted(opened) == ["00.jpg", "03.jpg", "05.jpg"]
    os.utime(data[1].path("03.jpg"), (1, 1))
    readable_files(*data, np.arange(IMAGES), IMAGES, tmp_path / "cache")
    assert sorted(opened[3:]) == [
        "01.jpg",
        "02.jpg",
        "03.jpg",
        "04.jpg",
    ]  # new ones, and what has changed


def test_a_faulty_file_is_told_and_replaced_by_the_next(
    data: tuple[Packed, Folder], tmp_path: Path, opened: list[str]
):
    packed, folder = data
    folder.path("00.jpg").unlink()
    folder.path("01.jpg").write_bytes(b"")
    shutil.copy(folder.path("03.jpg"), folder.path("02.jpg"))
    for _ in range(2):
        found, faults = readable_files(packed, folder, np.arange(IMAGES), 2, tmp_path / "cache")
        assert found.tolist() == [3, 4]
        assert [(fault.kind, fault.image) for fault in faults] == [
            ("missing file", "00.jpg"),
            ("empty file", "01.jpg"),
            ("size differs", "02.jpg"),
        ]
    assert "05.jpg" not in opened
    assert (
        len(readable_files(packed, folder, np.arange(IMAGES), IMAGES, tmp_path / "cache")[0]) == 3
    )


def test_a_record_that_is_damaged_or_of_another_data_set_counts_for_nothing(
    data: tuple[Packed, Folder], tmp_path: Path
):
    for content in (b"", b"nonsense"):
        readable_files(*data, np.arange(IMAGES), IMAGES, tmp_path / "cache")
        (record,) = (tmp_path / "cache" / "sound").iterdir()
        record.write_bytes(content)
        assert (
            len(readable_files(*data, np.arange(IMAGES), IMAGES, tmp_path / "cache")[0]) == IMAGES
        )


def test_far_away_files_are_not_asked_for(data: tuple[Packed, Folder], tmp_path: Path):
    class Far:
        local, where = False, "s3://bucket"

    found, faults = readable_files(data[0], Far(), np.array([2, 1, 0]), 2, tmp_path / "cache")  # type: ignore[arg-type]
    assert found.tolist() == [2, 1]
    assert faults == []


COMPOSED, DECOMPOSED = "Gr\u00f6\u00dfe.png", "Gro\u0308\u00dfe.png"


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("a.jpg", "/x/images", []),
        ("images\\a.jpg", "/x/photos", ["images/a.jpg"]),
        ("images/a.jpg", "/x/images", ["a.jpg"]),
        ("x/images/b/a.jpg", "/x/images", ["b/a.jpg"]),
        ("images\\a.jpg", "/x/images", ["images/a.jpg", "a.jpg"]),
        ("other/a.jpg", "/x/images", []),
        (COMPOSED, "/x/images", [DECOMPOSED]),
        (f"images/{DECOMPOSED}", "/x/images", [f"images/{COMPOSED}", DECOMPOSED, COMPOSED]),
    ],
)
def test_what_a_name_may_mean(name: str, folder: str, expected: list[str]):
    assert list(other_names(name, Path(folder))) == expected


def test_leading_folders_that_may_be_left_out():
    names = list(other_names("media\\train\\b\\a.jpg", Path("/x/photos"), 2))
    assert names == ["media/train/b/a.jpg", "train/b/a.jpg", "b/a.jpg"]


def test_folders_that_all_names_share_and_nobody_has_are_left_out(tmp_path: Path):
    content = coco_dict(4)
    annotations, images = write_coco(tmp_path, content)
    (images / "b").mkdir()
    for number, image in enumerate(content["images"]):
        name = image["file_name"] if number < 3 else f"b/{image['file_name']}"
        shutil.move(images / image["file_name"], images / name)
        image["file_name"] = f"media/train/{name}"

    def read() -> AnnotationIndex:
        annotations.write_text(json.dumps(content))
        return read_index(annotations, images, "error", cache=tmp_path / "cache")

    index = read()
    assert index.read(3) == (images / "b" / "03.jpg").read_bytes()
    assert [change.what for change in index.changes] == [
        f"the file is {name}" for name in ("00.jpg", "01.jpg", "02.jpg", "b/03.jpg")
    ]
    (tmp_path / "media").mkdir()  # the names are of another folder, beside this one
    with pytest.raises(UserError, match=r"media/train/00\.jpg: no such file"):
        read()
    (tmp_path / "media").rmdir()
    content["images"][0]["file_name"] = "own/00.jpg"  # they share none
    with pytest.raises(UserError, match=r"images/b/03\.jpg exists: write file_name=b/03\.jpg"):
        read()


def test_letters_in_another_case_are_advised(data: tuple[Packed, Folder], tmp_path: Path):
    packed, folder = data
    shutil.move(folder.path("00.jpg"), folder.path("00.JPG"))
    _, (fault,) = readable_files(packed, folder, np.arange(IMAGES), IMAGES, tmp_path / "cache")
    assert fault.what.endswith(f"{folder.folder}/00.JPG exists: write file_name=00.JPG")


def test_a_name_that_leaves_the_folder_stays_outside(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    folder = RenamedFiles(tmp_path / "images")
    assert folder.stamp("images/../../secret.jpg".replace("../..", "x/..")) is None
    assert image_size(folder, "..\\secret.jpg") is None


def test_the_size_of_a_file_is_that_of_the_upright_image(tmp_path: Path):
    picture = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    for name, orientation in (("a.jpg", 1), ("b.jpg", 6)):
        exif[0x0112] = orientation
        picture.save(tmp_path / name, exif=exif)
    (tmp_path / "c.jpg").write_bytes(b"no image")
    folder = Folder(tmp_path)
    sizes = [image_size(folder, name) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "x" * 999)]
    assert sizes == [(20, 30), (30, 20), None, None, None]


def test_a_missing_file_is_told_with_the_path_and_where_one_lies(
    data: tuple[Packed, Folder], tmp_path: Path
):
    packed, folder = data
    (folder.folder / "photos").mkdir()
    shutil.move(folder.path("00.jpg"), folder.folder / "photos" / "00.jpg")
    shutil.move(folder.path("01.jpg"), folder.folder.parent / "01.jpg")
    folder.path("02.jpg").unlink()
    _, faults = readable_files(packed, folder, np.arange(IMAGES), IMAGES, tmp_path / "cache")
    where = folder.folder
    assert [fault.what for fault in faults] == [
        f"no such file: {where}/00.jpg; {where}/photos/00.jpg exists: did you mean "
        f"images={where}/photos?",
        f"no such file: {where}/01.jpg; {where.parent}/01.jpg exists: did you mean "
        f"images={where.parent}?",
        f"no such file: {where}/02.jpg",
    ]
