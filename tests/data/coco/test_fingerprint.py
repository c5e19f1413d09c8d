"""What changes the fingerprint of data, and what does not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from local_server import Server
from tiny_commands import TRAIN_IMAGES, ground_truth, save_ground_truth

from maskrcnn_lit.data.coco import fingerprint as module
from maskrcnn_lit.data.coco.fingerprint import fingerprint
from maskrcnn_lit.data.coco.index import read_index

pytest_plugins = ("tiny_commands", "local_server")


def digests(root: Path | str, take: int | None = None) -> dict[str, str]:
    index = read_index(
        f"{root}/annotations/instances_train.json", f"{root}/train", "error", take=take, how="first"
    )
    return fingerprint(index)


def images(root: Path) -> list[Path]:
    return sorted((root / "train").iterdir())


def other_pixels(root: Path) -> None:
    """Of the same size in bytes: the last bits of the file are others."""
    file = images(root)[3]
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def larger(root: Path) -> None:
    with open(images(root)[3], "ab") as file:
        file.write(b"more")


def other_box(root: Path) -> None:
    content = ground_truth(root, "train")
    content["annotations"][0]["bbox"][2] -= 1
    save_ground_truth(root, content, "train")


def other_name(root: Path) -> None:
    """The same picture under another name, in the json too."""
    content = ground_truth(root, "train")
    file = root / "train" / content["images"][0]["file_name"]
    content["images"][0]["file_name"] = f"a{file.name}"
    file.rename(file.with_name(f"a{file.name}"))
    save_ground_truth(root, content, "train")


def later(root: Path) -> None:
    """A copy: the files have another time."""
    for file in images(root):
        os.utime(file, (1, 1))


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        (other_pixels, {"images_sha256"}),
        (larger, {"images_sha256"}),
        (other_box, {"annotations_sha256"}),
        (other_name, {"annotations_sha256", "images_sha256"}),
        (later, set()),
    ],
)
def test_a_change_moves_its_digest(
    change: Callable[[Path], None], moves: set[str], shapes: Path, tmp_path: Path
):
    root = shutil.copytree(shapes, tmp_path / "data")
    before = digests(root)
    assert before == digests(shapes), "wherever the data lie"
    change(root)
    after = digests(root)
    assert {name for name in before if before[name] != after[name]} == moves


def test_of_a_part_of_the_images_only_these_count(shapes: Path, tmp_path: Path):
    root = shutil.copytree(shapes, tmp_path / "data")
    few, all_ = digests(root, take=2), digests(root)
    assert few["annotations_sha256"] == all_["annotations_sha256"]
    assert few["images_sha256"] != all_["images_sha256"]
    larger(root)  # the fourth
    assert digests(root, take=2) == few


def test_of_many_images_some_are_read(shapes: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    monkeypatch.setattr(module, "CONTENTS", 3)
    content = module._content
    monkeypatch.setattr(module, "_content", lambda index, i: read.append(i) or content(index, i))
    digests(shapes)
    assert read == [0, 4, TRAIN_IMAGES - 1]


def test_an_image_that_is_gone_since_it_was_indexed(shapes: Path, tmp_path: Path):
    root = shutil.copytree(shapes, tmp_path / "data")
    index = read_index(root / "annotations" / "instances_train.json", root / "train", "error")
    before = fingerprint(index)
    images(root)[0].unlink()
    assert fingerprint(index)["images_sha256"] != before["images_sha256"]


def test_far_away_the_names_alone_count(shapes: Path, server: Server, tmp_path: Path):
    json = shapes / "annotations" / "instances_train.json"
    server.offer(json.read_bytes(), json.name)
    index = read_index(
        f"{server.address}/annotations/{json.name}",
        f"{server.address}/train",
        "error",
        cache=tmp_path / "cache",
    )
    server.asked.clear()
    found = fingerprint(index)
    assert server.asked == [], "nothing is fetched for it"
    assert found["annotations_sha256"] == digests(shapes)["annotations_sha256"]
    assert found["images_sha256"] != digests(shapes)["images_sha256"]
