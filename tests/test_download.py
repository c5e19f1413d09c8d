from pathlib import Path
from typing import Any

import pytest
from tiny_verbs import verb

from maskrcnn_lit.data import coco2017

pytest_plugins = ("tiny_verbs",)


def test_shapes_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture):
    verb("download", "data=shapes", f"data.root={tmp_path / 'set'}", "data.train_images=4", "data.val_images=2")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("train: 4 images, 0.") and told[0].endswith(f" MB in {tmp_path / 'set' / 'train'}")
    assert told[1].startswith("val: 2 images, ") and len(list((tmp_path / "set" / "val").iterdir())) == 2


def test_coco2017_is_prepared_with_the_options_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    told: dict[str, Any] = {}

    def fetch_annotations(root: Path, url: str, *_: object) -> None:
        told["url"] = url
        for part in ("train", "val"):
            (root / f"{part}2017").mkdir(parents=True)
        (root / "train2017" / "a.jpg").write_bytes(bytes(2_500_000))
        (root / "train2017" / ".sound.json").write_bytes(bytes(2_500_000))

    def select(annotations: str, **options: Any) -> list[Any]:
        told[Path(annotations).stem] = options
        return []

    monkeypatch.setattr(coco2017, "fetch_annotations", fetch_annotations)
    monkeypatch.setattr(coco2017, "_select_images", lambda: select)
    options = ("data.train_images=7", "data.image_ids=[3,4]", "data.mirror=http://host/coco", "seed=5")
    verb("download", "data=coco2017", f"data.root={tmp_path}", *options)
    assert told["url"] == "http://host/coco/annotations/annotations_trainval2017.zip"
    common = {"how": "random", "seed": 5, "image_ids": [3, 4], "keep_empty": True}
    assert told["instances_train2017"] == common | {"take": 7, "cache_dir": None}
    assert told["instances_val2017"] == common | {"take": None, "cache_dir": None}
    out = capsys.readouterr().out
    assert f"train: 1 images, 2.5 MB in {tmp_path / 'train2017'}" in out
    assert f"val: 0 images, 0.0 MB in {tmp_path / 'val2017'}" in out


def test_what_is_not_fetched_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    verb("download", "data=coco2017", "data.root=s3://bucket/coco")
    assert "train: read from s3://bucket/coco/train2017 when a run needs it" in capsys.readouterr().out
    for name in ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip"):
        (tmp_path / name).touch()
    verb("download", "data=coco2017", f"data.root={tmp_path}", "data.download=false")
    assert f"val: read from {tmp_path / 'val2017'}.zip, in place" in capsys.readouterr().out
    verb("download", "data=coco2017", f"data.root={tmp_path / 'none'}", "data.download=false", code=2)
    assert "data.download=true" in capsys.readouterr().err


def test_data_without_anything_to_fetch(capsys: pytest.CaptureFixture):
    paths = [f"data.{part}.{key}=x" for part in ("train", "val") for key in ("images", "annotations")]
    verb("download", "data=coco_json", *paths, code=2)
    assert "data=coco_json has nothing to download: it reads the files that" in capsys.readouterr().err
