import os
import pickle
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.memory
import pytest
from local_server import Server

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.cache import Cache
from maskrcnn_lit.storage.download import AbandonedError, Bounds
from maskrcnn_lit.storage.sources import Folder, Remote, Source, join, open_annotations, open_images
from maskrcnn_lit.storage.zip_source import Zip

pytest_plugins = ("local_server",)

NAME, CONTENT = "a b#c.jpg", bytes(range(256)) * 50
OUTSIDE = ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "", "a\0b"]


@pytest.fixture(params=["folder", "zip", "http", "memory"])
def source(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Source:
    """The same file in each kind."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / NAME).write_bytes(CONTENT)
    if request.param == "folder":
        return open_images(str(tmp_path / "images"), tmp_path / "cache", 1)
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            archive.write(tmp_path / "images" / NAME, f"images/{NAME}")
        shutil.rmtree(tmp_path / "images")
        return open_images(str(tmp_path / "images"), tmp_path / "cache", 1)
    if request.param == "http":
        server.files["a%20b%23c.jpg"] = CONTENT
        return open_images(f"{server.address}/images", tmp_path / "cache", 1)
    fsspec.filesystem("memory").pipe(f"/images/{NAME}", CONTENT)
    return open_images("memory://images/", tmp_path / "cache", 1)


def test_every_source_does_the_same(source: Source):
    assert source.read(NAME) == CONTENT == source.read(f"x/../{NAME}")
    assert pickle.loads(pickle.dumps(source)).read(NAME) == CONTENT
    assert (source.stamp(NAME) or (len(CONTENT), 0))[0] == len(CONTENT)
    assert (source.stamp(NAME) is not None) is source.local
    for missing in ("b.jpg", f"{NAME}/b.jpg"):
        assert source.stamp(missing) is None
        with pytest.raises(FileNotFoundError):
            source.read(missing)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_the_folder_is_refused(source: Source, name: str):
    with pytest.raises(
        UserError,
        match=r"points outside of .*: fix the json, or drop the image with data.on_bad=skip",
    ) as error:
        source.read(name)
    assert repr(name) in str(error.value)
    assert source.where in str(error.value)


def test_a_source_works_in_a_forked_process(source: Source):
    source.read(NAME)
    child = os.fork()
    if child == 0:
        os._exit(source.read(NAME) != CONTENT)
    assert os.waitpid(child, 0)[1] == 0


def test_a_stamp_changes_with_the_file(tmp_path: Path):
    (tmp_path / NAME).write_bytes(CONTENT)
    before = Folder(tmp_path).stamp(NAME)
    os.utime(tmp_path / NAME, ns=(1, 1))
    assert before == (len(CONTENT), before[1])
    assert Folder(tmp_path).stamp(NAME) == (len(CONTENT), 1)


def test_remote_files_are_asked_for_once(server: Server, tmp_path: Path):
    server.offer(CONTENT, "a.jpg")
    remote = Remote(f"{server.address}/folder/", Cache(tmp_path, 1))
    remote.fill("a.jpg")
    assert [remote.read("a.jpg") for _ in range(3)] == [CONTENT] * 3
    assert server.asked == ["/folder/a.jpg"]
    assert Remote(remote.where, Cache(tmp_path, 1)).read("a.jpg") == CONTENT
    assert len(server.asked) == 1
    assert Remote(remote.where, Cache(tmp_path / "none", 0)).read("a.jpg") == CONTENT
    assert len(server.asked) == 2


def test_a_remote_file_that_is_forgotten_is_asked_for_again(server: Server, tmp_path: Path):
    server.offer(CONTENT, "a.jpg")
    server.fail("html", times=1)
    remote = Remote(server.address, Cache(tmp_path, 1))
    assert remote.read("a.jpg").startswith(b"<html>")
    assert remote.read("a.jpg") != CONTENT
    for _ in range(2):
        remote.forget("a.jpg")
        assert remote.read("a.jpg") == CONTENT
    assert len(server.asked) == 3


def test_a_signature_stays_at_the_end(server: Server, tmp_path: Path):
    server.offer(CONTENT, "a.jpg?key=1")
    assert Remote(f"{server.address}/x?key=1", Cache(tmp_path, 1)).read("a.jpg") == CONTENT
    found, name = open_annotations(f"{server.address}/x/a.jpg?key=1", tmp_path, 1)
    assert found.read(name) == CONTENT
    assert set(server.asked) == {"/x/a.jpg?key=1"}


def test_errors_of_a_server_are_os_errors(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.offer(CONTENT, "a.jpg")
    server.fail("500", times=100)
    remote = Remote(server.address, Cache(tmp_path, 1))
    with pytest.raises(OSError, match="HTTP 500 Internal Server Error"):
        remote.read("a.jpg")

    def refuse(*_: object, **__: object) -> bytes:
        raise RuntimeError("no credentials")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", refuse)
    with pytest.raises(OSError, match=r"memory://images/a.jpg cannot be read: no credentials"):
        Remote("memory://images", Cache(tmp_path, 1)).read("a.jpg")


def test_an_answer_of_a_bucket_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fsspec.filesystem("memory").pipe("/bounded/a.jpg", b"x" * 101)
    asked = []

    def cat_file(self: Any, path: str, start: int, end: int) -> bytes:
        asked.append((start, end))
        return plain(self, path, start, end)

    plain = fsspec.implementations.memory.MemoryFileSystem.cat_file
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", cat_file)
    cache = Cache(tmp_path, 1)
    assert len(Remote("memory://bounded", cache, Bounds(101, 10)).read("a.jpg")) == 101
    with pytest.raises(AbandonedError, match=r"memory://bounded/a\.jpg has more than"):
        Remote("memory://bounded", Cache(tmp_path / "b", 1), Bounds(100, 10)).read("a.jpg")
    assert asked == [(0, 102), (0, 101)]


def test_an_answer_of_a_bucket_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ended = threading.Event()
    monkeypatch.setattr(
        "fsspec.implementations.memory.MemoryFileSystem.cat_file",
        lambda *_, **__: ended.wait(60),
    )
    began = time.monotonic()
    with pytest.raises(AbandonedError, match=r"not complete after 0.2 s"):
        Remote("memory://endless", Cache(tmp_path, 1), Bounds(100, 0.2)).read("a.jpg")
    assert time.monotonic() - began < 30
    ended.set()


def test_a_missing_package_or_an_unknown_protocol_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(
        UserError, match=r"sftpx://a/b uses the unknown protocol sftpx://: use http"
    ):
        open_images("sftpx://a/b", tmp_path, 1)
    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"s3://a/b needs .*: pip install 'maskrcnn_lit\[cloud\]'"):
        open_images("s3://a/b", tmp_path, 1)


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        (None, "a/b", "a/b"),
        ("/data", "a/b", "/data/a/b"),
        (Path("/data"), "/b", "/b"),
        ("s3://bucket/coco/", "train2017", "s3://bucket/coco/train2017"),
        ("http://host", "/local", "/local"),
        ("/data", "http://host/a", "http://host/a"),
    ],
)
def test_join(root: str | Path | None, path: str, expected: str):
    assert join(root, path) == expected


def test_what_a_path_is(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"neither the image folder .*a nor .*a.zip exists: check the path in data"
    ):
        open_images(str(tmp_path / "a"), tmp_path, 1)
    for name, member in (("a", "a/x.jpg"), ("b", "x.jpg")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(member, CONTENT)
        for where in (tmp_path / name, tmp_path / f"{name}.zip"):
            found = open_images(str(where), tmp_path, 1)
            assert isinstance(found, Zip)
            assert found.read("x.jpg") == CONTENT
    (tmp_path / "a").mkdir()
    assert isinstance(open_images(str(tmp_path / "a"), tmp_path, 1), Folder), "a folder comes first"


def test_annotations_in_a_folder_or_in_the_official_archive(tmp_path: Path):
    where = tmp_path / "annotations" / "instances_val2017.json"
    with pytest.raises(
        UserError, match=r"there is no annotation file .*instances_val2017.json: check the path"
    ):
        open_annotations(str(where), tmp_path, 1)
    with zipfile.ZipFile(
        tmp_path / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED
    ) as archive:
        archive.writestr("annotations/instances_val2017.json", b"in the zip")
    source, name = open_annotations(str(where), tmp_path, 1)
    assert source.read(name) == b"in the zip"
    assert source.stamp(name) is not None
    with pytest.raises(UserError, match="there is no annotation file"):
        open_annotations(str(where.with_name("captions.json")), tmp_path, 1)
    where.parent.mkdir()
    where.write_bytes(b"in the folder")
    source, name = open_annotations(str(where), tmp_path, 1)
    assert source.read(name) == b"in the folder"
