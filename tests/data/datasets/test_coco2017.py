import hashlib
import json
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_server import Server, offer_archive

from maskrcnn_lit.data.datasets.coco2017 import (
    ANNOTATIONS_MD5,
    ANNOTATIONS_URL,
    fetch_annotations,
    mirrored,
    prepare,
)
from maskrcnn_lit.data.datasets.web_images import RECORD
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sources import ANNOTATION_ARCHIVE, open_annotations, open_images

pytest_plugins = ("local_server",)


@pytest.fixture
def coco(server: Server, test_data: Path, tmp_path: Path) -> Callable[..., None]:
    """`prepare` on a server that has all of coco_mini under /mirror."""
    mini = test_data / "coco_mini"
    for file in [*(mini / "train2017").iterdir(), *(mini / "val2017").iterdir()]:
        server.offer(file.read_bytes(), file.name)
    options: dict[str, Any] = {
        "root": tmp_path / "coco",
        "train_images": 5,
        "val_images": 3,
        "subset": "random",
        "seed": 1,
        "image_ids": None,
        "keep_empty": True,
        "download": True,
        "mirror": f"{server.address}/mirror/",
        "archive_md5": offer_archive(server, mini, tmp_path),
        "cache_dir": tmp_path / "cache",
    }
    return lambda **more: prepare(**(options | more))


def images(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.jpg"))


@pytest.mark.long
def test_from_nothing_for_both_parts(coco: Callable[..., None], server: Server, tmp_path: Path):
    coco()
    root = tmp_path / "coco"
    assert len(images(root / "train2017")) == 5
    assert len(images(root / "val2017")) == 3
    assert server.asked[0] == f"/mirror/annotations/{ANNOTATION_ARCHIVE}"
    train, val = (
        [f"/mirror/{part}2017/{name}" for name in images(root / f"{part}2017")]
        for part in ("train", "val")
    )
    assert sorted(server.asked[1:]) == sorted(train + val)
    assert open_images(str(root / "train2017"), tmp_path, 0).read(images(root / "train2017")[0])
    server.asked.clear()
    coco()
    coco(train_images=2)
    assert server.asked == [], "nothing twice"
    coco(train_images=7)
    assert len(server.asked) == 2
    assert len(images(root / "train2017")) == 7
    coco(train_images=None, val_images=None)
    assert len(images(root / "train2017")) == 86
    assert len(images(root / "val2017")) == 111
    assert len(server.asked) == 86 + 111 - 5 - 3


def test_one_part(coco: Callable[..., None], server: Server, tmp_path: Path):
    coco(parts=["val"])
    assert not (tmp_path / "coco" / "train2017").exists()
    assert len(images(tmp_path / "coco" / "val2017")) == 3


def test_what_is_there_is_not_fetched(
    coco: Callable[..., None], server: Server, test_data: Path, tmp_path: Path
):
    """The user's own folder, in the official layout."""
    for folder in ("annotations", "train2017", "val2017"):
        (tmp_path / "own" / folder).mkdir(parents=True)
        for file in (test_data / "coco_mini" / folder).iterdir():
            (tmp_path / "own" / folder / file.name).symlink_to(file)
    coco(root=tmp_path / "own", train_images=None, val_images=None)
    assert server.asked == []


def test_the_official_zips_are_read_in_place(
    coco: Callable[..., None], server: Server, tmp_path: Path
):
    root = tmp_path / "coco"
    root.mkdir()
    (root / ANNOTATION_ARCHIVE).write_bytes(server.files[ANNOTATION_ARCHIVE])
    for part in ("train", "val"):
        with zipfile.ZipFile(root / f"{part}2017.zip", "w"):
            pass
    coco()
    assert server.asked == []
    assert not (root / "train2017").exists()


@pytest.mark.parametrize("root", ["http://host.invalid/coco", "s3://bucket/coco"])
def test_from_a_url_nothing_is_fetched(coco: Callable[..., None], server: Server, root: str):
    coco(root=root)
    coco(root=root, download=False)
    assert server.asked == []


def test_without_download_no_request_is_made(
    coco: Callable[..., None], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "coco"
    url = f"{server.address}/{ANNOTATION_ARCHIVE}"
    archive_md5 = hashlib.md5(server.files[ANNOTATION_ARCHIVE]).hexdigest()
    cases: list[tuple[str, Callable[[], object]]] = [
        (
            f"neither {root}/annotations/instances_train2017.json nor {root / ANNOTATION_ARCHIVE}",
            lambda: None,
        ),
        (
            f"neither {root}/train2017 nor {root}/",
            lambda: fetch_annotations(root, url, archive_md5),
        ),
        (f"neither {root}/val2017 nor {root}/val2017.zip", lambda: coco(parts=["train"])),
    ]
    for message, before in cases:
        before()
        server.asked.clear()
        with monkeypatch.context() as patch, pytest.raises(UserError) as error:
            patch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was made"))
            coco(download=False)
        assert message in str(error.value)
        assert "data.download=true" in str(error.value)
        assert server.asked == []
    coco()
    server.asked.clear()
    (root / "val2017" / images(root / "val2017")[0]).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was made"))
        coco(download=False, mirror="http://host.invalid")  # trains on what there is
    assert server.asked == []


def test_an_archive_that_broke_off_is_resumed(server: Server, test_data: Path, tmp_path: Path):
    md5 = offer_archive(server, test_data / "coco_mini", tmp_path)
    root, url, half = tmp_path / "coco", f"{server.address}/{ANNOTATION_ARCHIVE}", 20_000
    root.mkdir()
    (root / f"{ANNOTATION_ARCHIVE}.part").write_bytes(server.files[ANNOTATION_ARCHIVE][:half])
    server.fail("breaks_in_the_body", times=2)
    fetch_annotations(root, url, md5)
    assert server.ranges_asked[0] == f"bytes={half}-"
    assert len(server.asked) == 3
    source, name = open_annotations(
        str(root / "annotations" / "instances_val2017.json"), tmp_path, 0
    )
    assert source.read(name) == (test_data / "coco_mini" / "annotations" / name).read_bytes()
    fetch_annotations(root, url, md5)
    assert len(server.asked) == 3


def test_another_archive_is_refused(server: Server, test_data: Path, tmp_path: Path):
    md5 = offer_archive(server, test_data / "coco_mini", tmp_path)
    with pytest.raises(UserError, match=f"expected md5 {ANNOTATIONS_MD5}, got {md5}; try again"):
        fetch_annotations(
            tmp_path / "coco", f"{server.address}/{ANNOTATION_ARCHIVE}", ANNOTATIONS_MD5
        )
    assert not (tmp_path / "coco" / ANNOTATION_ARCHIVE).exists()


@pytest.mark.long
def test_images_that_cannot_be_fetched_are_one_message(
    coco: Callable[..., None], server: Server, tmp_path: Path
):
    coco(parts=["val"])
    server.files.pop(
        next(
            name for name in sorted(server.files) if not (tmp_path / "coco/val2017" / name).exists()
        )
    )
    with pytest.raises(
        UserError,
        match=r"1 of \d+ images could not be downloaded: .*jpg \(HTTP 404 Not Found\); the oth",
    ):
        coco(train_images=None, val_images=None)


@pytest.mark.parametrize(
    ("url", "mirror", "expected"),
    [
        (
            ANNOTATIONS_URL,
            None,
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        ),
        (
            "http://images.cocodataset.org/val2017/a.jpg",
            "http://host/coco/",
            "http://host/coco/val2017/a.jpg",
        ),
        ("http://elsewhere/val2017/a.jpg", "http://host/coco", "http://elsewhere/val2017/a.jpg"),
    ],
)
def test_a_mirror_takes_the_place_of_the_server(url: str, mirror: str | None, expected: str):
    assert mirrored(url, mirror) == expected


def test_the_record_of_sound_files_is_in_the_folder(coco: Callable[..., None], tmp_path: Path):
    coco(parts=["val"])
    record = json.loads((tmp_path / "coco" / "val2017" / RECORD).read_text())
    for name in images(tmp_path / "coco" / "val2017"):
        assert record[name][0] == (tmp_path / "coco" / "val2017" / name).stat().st_size
