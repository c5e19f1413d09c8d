import os
import pickle
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.zip_source import Zip


@pytest.fixture(
    scope="module", params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"]
)
def official(
    request: pytest.FixtureRequest, test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """val2017.zip as COCO publishes it: members val2017/000000000139.jpg."""
    path = tmp_path_factory.mktemp("zips") / "val2017.zip"
    with zipfile.ZipFile(path, "w", request.param) as archive:
        archive.writestr("val2017/", b"")
        for file in (test_data / "coco_mini" / "val2017").iterdir():
            archive.write(file, f"val2017/{file.name}")
    return path


@pytest.fixture(scope="module")
def photos(test_data: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in sorted((test_data / "coco_mini" / "val2017").iterdir())
    }


def test_files_are_those_that_were_packed(official: Path, photos: dict[str, bytes]):
    source = Zip(official, "val2017/")
    assert source.holds("val2017") and not source.holds("val") and not source.holds("zebra")
    assert source.local and source.where == f"{official}/val2017"
    for name, content in photos.items():
        assert source.read(name) == content
        assert source.stamp(name) == (len(content), zlib.crc32(content))
    for name in ("000000000000.jpg", "z.jpg", "a" * 300, "000000000139.jpg/x"):
        assert source.stamp(name) is None
        with pytest.raises(FileNotFoundError, match=name):
            source.read(name)
    with pytest.raises(UserError, match=r"'../a.jpg' leaves .*val2017"):
        source.read("../a.jpg")


def test_threads_of_forked_processes_read_at_once(official: Path, photos: dict[str, bytes]):
    """Opened before the fork: a shared position in the file would mix their bytes."""
    source = Zip(official, "val2017/")
    assert source.read(next(iter(photos)))

    def all_right() -> bool:
        with ThreadPoolExecutor(8) as pool:
            return all(
                map(
                    bytes.__eq__, pool.map(source.read, list(photos) * 5), list(photos.values()) * 5
                )
            )

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if all_right() else 1)
        children.append(child)
    assert all_right()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_it_travels_as_its_path(official: Path, photos: dict[str, bytes]):
    source = Zip(official, "val2017/")
    name = next(iter(photos))
    source.read(name)
    sent = pickle.dumps(source)
    assert len(sent) < 1000 and pickle.loads(sent).read(name) == photos[name]


def test_damage_is_found(tmp_path: Path, official: Path, photos: dict[str, bytes]):
    name, content = next(iter(photos.items()))
    damaged = tmp_path / "val2017.zip"
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr(name, content)
    source = Zip(damaged)
    assert source.read(name) == content
    damaged.write_bytes(damaged.read_bytes().replace(content[100:110], bytes(10)))
    with pytest.raises(OSError, match=f"{name} in .* is damaged"):
        source.read(name)
    damaged.write_bytes(official.read_bytes()[:-1000])
    with pytest.raises(
        UserError, match=r"val2017.zip is no whole zip .*: remove it, and download or copy it again"
    ):
        Zip(damaged).read(name)


def test_what_cannot_be_unpacked_is_told(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", b"a" * 100)
    with pytest.raises(
        OSError, match=r"is encrypted or packed in a way that is not known \(method 14"
    ):
        Zip(tmp_path / "a.zip").read("a.jpg")
