import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from coco_file import coco_dict, write_coco

import maskrcnn_lit.data.coco.image_files as module
from maskrcnn_lit.data.coco.arrays import Packed, open_json
from maskrcnn_lit.data.coco.image_files import sound_files
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
        found, faults = sound_files(*data, rows, 3, tmp_path / "cache")
        assert found.tolist() == [3, 0, 5] and faults == []
        assert sorted(opened) == ["00.jpg", "03.jpg", "05.jpg"]
    os.utime(data[1].path("03.jpg"), (1, 1))
    sound_files(*data, np.arange(IMAGES), IMAGES, tmp_path / "cache")
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
        found, faults = sound_files(packed, folder, np.arange(IMAGES), 2, tmp_path / "cache")
        assert found.tolist() == [3, 4]
        assert [(fault.kind, fault.image) for fault in faults] == [
            ("missing file", "00.jpg"),
            ("empty file", "01.jpg"),
            ("size differs", "02.jpg"),
        ]
    assert "05.jpg" not in opened
    assert len(sound_files(packed, folder, np.arange(IMAGES), IMAGES, tmp_path / "cache")[0]) == 3


def test_a_record_that_is_damaged_or_of_another_data_set_counts_for_nothing(
    data: tuple[Packed, Folder], tmp_path: Path
):
    for content in (b"", b"nonsense"):
        sound_files(*data, np.arange(IMAGES), IMAGES, tmp_path / "cache")
        (record,) = (tmp_path / "cache" / "sound").iterdir()
        record.write_bytes(content)
        assert len(sound_files(*data, np.arange(IMAGES), IMAGES, tmp_path / "cache")[0]) == IMAGES


def test_far_away_files_are_not_asked_for(data: tuple[Packed, Folder], tmp_path: Path):
    class Far:
        local, where = False, "s3://bucket"

    found, faults = sound_files(data[0], Far(), np.array([2, 1, 0]), 2, tmp_path / "cache")  # type: ignore[arg-type]
    assert found.tolist() == [2, 1] and faults == []
