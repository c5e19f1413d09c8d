import json
from pathlib import Path
from typing import Any

import pytest
from tiny_commands import run_command

from maskrcnn_lit.data.datasets import coco2017
from maskrcnn_lit.data.datasets.coco2017 import SERVER
from maskrcnn_lit.data.datasets.web_images import RECORD, WebImage

pytest_plugins = ("tiny_commands",)


@pytest.mark.long
def test_shapes_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture):
    run_command(
        "download",
        "data=shapes",
        f"data.root={tmp_path / 'set'}",
        "data.train_images=4",
        "data.val_images=2",
    )
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("train: 4 images, 0.")
    assert told[0].endswith(f" MB in {tmp_path / 'set' / 'train'}")
    assert told[1].startswith("val: 2 images, ")
    assert len(list((tmp_path / "set" / "val").iterdir())) == 2


def test_coco2017_is_prepared_with_the_options_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """What is fetched is what a run with these options would read."""
    content = {"categories": [{"id": 1, "name": "ant"}], "annotations": []}
    sizes = {"height": 4, "width": 4}
    content["images"] = [
        {"id": n, "file_name": f"{n}.jpg", "coco_url": f"{SERVER}/x/{n}.jpg", **sizes}
        for n in range(1, 9)
    ]
    told: dict[str, Any] = {}

    def fetch_annotations(root: Path, url: str, *_: object) -> None:
        told["url"] = url
        (root / "annotations").mkdir(parents=True)
        for part in ("train", "val"):
            (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))

    def fetch_images(images: list[WebImage], folder: Path) -> None:
        told[folder.name] = images
        folder.mkdir()
        (folder / "a.jpg").write_bytes(bytes(2_500_000))
        (folder / RECORD).write_bytes(bytes(2_500_000))

    monkeypatch.setattr(coco2017, "fetch_annotations", fetch_annotations)
    monkeypatch.setattr(coco2017, "fetch_images", fetch_images)
    options = (
        "data.train_images=2",
        "data.image_ids=[3,4,8]",
        "data.mirror=http://host/coco",
        "data.subset=first",
    )
    run_command(
        "download",
        "data=coco2017",
        f"data.root={tmp_path}",
        f"data.cache_dir={tmp_path}/cache",
        *options,
    )
    assert told["url"] == "http://host/coco/annotations/annotations_trainval2017.zip"
    assert told["train2017"] == [
        WebImage(f"{n}.jpg", f"http://host/coco/x/{n}.jpg", 4, 4) for n in (3, 4)
    ]
    assert [image.name for image in told["val2017"]] == ["3.jpg", "4.jpg", "8.jpg"]
    out = capsys.readouterr().out
    assert f"train: 1 image, 2.5 MB in {tmp_path / 'train2017'}" in out
    assert f"val: 1 image, 2.5 MB in {tmp_path / 'val2017'}" in out


def test_what_is_not_fetched_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    run_command("download", "data=coco2017", "data.root=s3://bucket/coco")
    assert "train: read from s3://bucket/coco/train2017 during a run" in capsys.readouterr().out
    for name in ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip"):
        (tmp_path / name).touch()
    run_command("download", "data=coco2017", f"data.root={tmp_path}", "data.download=false")
    assert f"val: read from {tmp_path / 'val2017'}.zip, in place" in capsys.readouterr().out
    run_command(
        "download", "data=coco2017", f"data.root={tmp_path / 'none'}", "data.download=false", code=2
    )
    assert "data.download=true" in capsys.readouterr().err


def test_data_without_anything_to_fetch(capsys: pytest.CaptureFixture):
    paths = [
        f"data.{part}.{key}=x" for part in ("train", "val") for key in ("images", "annotations")
    ]
    run_command("download", "data=coco_json", *paths, code=2)
    assert (
        "data=coco_json has nothing to download: it reads the files of" in capsys.readouterr().err
    )
