import json
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco
from tiny_commands import refused, run_command

pytest_plugins = ("tiny_commands",)


def test_both_jsons_have_what_the_run_would_have(tmp_path: Path, capsys: pytest.CaptureFixture):
    annotations, images = write_coco(tmp_path, coco_dict(12) | {"info": {"version": "own"}})
    one = ["data=coco_json", f"data.annotations={annotations}", f"data.images={images}"]
    before = annotations.read_bytes()
    run_command("data", "split", *one, "data.val_share=0.25", f"out={tmp_path / 'new'}")
    printed = capsys.readouterr().out
    parts = [json.loads((tmp_path / "new" / f"{p}.json").read_text()) for p in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [9, 3]
    assert {part["info"]["version"] for part in parts} == {"own"}
    whole = json.loads(before)
    for key in ("images", "annotations"):
        both = sorted([*parts[0][key], *parts[1][key]], key=lambda entry: entry["id"])
        assert both == whole[key]
    assert annotations.read_bytes() == before
    assert "train: 9 images" in printed
    options = printed.splitlines()[-1].partition("Train with ")[2].split()
    run_command("data", "check", *options)
    assert "No faults in the data." in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(3))
    one = ["data=coco_json", f"data.annotations={annotations}", f"data.images={images}"]
    assert "add data.val_share=0.2" in refused("data", "split", *one, f"out={tmp_path / 'new'}")
    full = ["data.val_share=0.3", f"out={tmp_path}"]
    assert "is not empty" in refused("data", "split", *one, *full)
    assert not (tmp_path / "new").exists()
