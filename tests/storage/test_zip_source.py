import os
import pickle
import resource
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
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
    assert source.holds("val2017")
    assert not source.holds("val")
    assert not source.holds("zebra")
    assert source.local
    assert source.where == f"{official}/val2017"
    for name, content in photos.items():
        assert source.read(name) == content
        assert source.stamp(name) == (len(content), zlib.crc32(content))
    for name in ("000000000000.jpg", "z.jpg", "a" * 300, "000000000139.jpg/x"):
        assert source.stamp(name) is None
        with pytest.raises(FileNotFoundError, match=name):
            source.read(name)
    with pytest.raises(UserError, match=r"'../a.jpg' points outside of .*val2017"):
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
    assert len(sent) < 1000
    assert pickle.loads(sent).read(name) == photos[name]


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
        UserError,
        match=r"val2017.zip is not a complete zip .*: remove it, and download or copy it again",
    ):
        Zip(damaged).read(name)


def test_what_cannot_be_unpacked_is_told(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", b"a" * 100)
    with pytest.raises(
        OSError, match=r"is encrypted or uses an unsupported compression \(method 14"
    ):
        Zip(tmp_path / "a.zip").read("a.jpg")


def entry(zip_file: Path, field: int, value: int) -> None:
    """Write a number of 4 bytes into the one directory entry of a zip."""
    content = bytearray(zip_file.read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\x01\x02") + field, value)
    zip_file.write_bytes(content)


PACKED_SIZE, SIZE, OFFSET = 20, 24, 42


@pytest.mark.long
@pytest.mark.parametrize("size", [1000, 2**28], ids=["lies", "says so"])
def test_a_member_that_inflates_a_thousand_times_is_refused(tmp_path: Path, size: int):
    """256 MB of zeros: what the zip says of their number bounds the memory, and is bounded."""
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**28))
    entry(file, SIZE, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError, match=r"a\.png in .* is damaged"):
        Zip(file).read("a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("field", "value"),
    [(PACKED_SIZE, 2**31), (PACKED_SIZE, 7), (OFFSET, 2**31), (SIZE, 7), (SIZE, 2**31)],
)
def test_a_directory_that_lies_is_damage(tmp_path: Path, method: int, field: int, value: int):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.png", os.urandom(2000))
    entry(file, field, value)
    with pytest.raises((OSError, UserError), match=r"a\.(png|zip)"):
        Zip(file).read("a.png")


def test_any_damage_is_an_error_of_ours(tmp_path: Path):
    """Flips, zeros and cuts: the right content, or an OSError or UserError that names the zip."""
    file, content, rng = tmp_path / "a.zip", os.urandom(300), np.random.default_rng(0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ä/b.png", content)
        archive.writestr("c.png", content * 20)
    whole = file.read_bytes()
    for k in range(600):
        damaged, begin = bytearray(whole), int(rng.integers(len(whole)))
        if k % 3 == 0:
            damaged[begin] ^= 1 << int(rng.integers(8))
        elif k % 3 == 1:
            damaged[begin : begin + 8] = bytes(len(damaged[begin : begin + 8]))
        else:
            del damaged[begin:]
        file.write_bytes(damaged)
        for name, right in (("ä/b.png", content), ("c.png", content * 20)):
            try:
                assert Zip(file).read(name) == right
            except (OSError, UserError) as error:
                assert "a.zip" in str(error)
