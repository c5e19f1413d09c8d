"""`maskrcnn-lit data convert`, and what it writes read by the other commands."""

import json
import shlex
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco
from round_trip import objects
from tiny_commands import refused, run_command
from voc_files import write_voc

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index

pytest_plugins = ("tiny_commands",)


@pytest.fixture
def source(tmp_path: Path) -> list[str]:
    """Options: two parts of 9 and 5 images."""
    options = [f"data.root={tmp_path}"]
    for part, images in (("train", 9), ("val", 5)):
        write_coco(tmp_path / part, coco_dict(images))
        options += [
            f"data.{part}.annotations={part}/instances.json",
            f"data.{part}.images={part}/images",
        ]
    return options


def original(tmp_path: Path, part: str) -> AnnotationIndex:
    folder = tmp_path / part
    return read_index(folder / "instances.json", folder / "images", "error", cache=tmp_path / "c")


@pytest.mark.long
@pytest.mark.parametrize("form", ["coco", "mask_folder", "yolo_seg"])
def test_what_is_written_is_read_again(
    form: str, source: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out, again = tmp_path / "new", tmp_path / "again"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run_command("data", "convert", "from=coco_json", *source, f"to={form}", f"out={out}")
    printed = capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    whole = objects(original(tmp_path, "train"))
    lost = [line for line in printed.splitlines() if "holes are filled" in line and " x " in line]
    assert bool(lost) == (form == "yolo_seg")
    assert "train: 9 images, 28 objects, " in printed
    listed = json.loads((out / "losses.json").read_text()) if form != "coco" else []
    crowd = 5 if form != "coco" else 0
    assert sum(loss["why"] == "a crowd region" for loss in listed) == crowd
    options = shlex.split(printed.splitlines()[-1].partition(f"Written to {out}: ")[2])
    run_command("data", "convert", *options, "to=coco", f"out={again}")
    file = again / "annotations" / "instances_train.json"
    after = read_index(file, again / "train", "error", cache=tmp_path / "c")
    assert (objects(after) == whole) == (form != "yolo_seg")
    assert sum(objects(after).values()) == sum(whole.values())


@pytest.mark.long
def test_data_without_parts_stay_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    annotations, images = write_coco(tmp_path, coco_dict(6))
    one = ("data=coco_json", f"data.annotations={annotations}", f"data.images={images}")
    run_command("data", "convert", *one, "to=mask_folder", f"out={tmp_path / 'masks'}")
    assert (tmp_path / "masks" / "images" / "03.jpg").is_file()
    root = ("data=mask_folder", f"data.root={tmp_path / 'masks'}")
    run_command("data", "check", *root, "data.val_share=0.3")
    assert "No faults in the data." in capsys.readouterr().out
    run_command("data", "stats", *root, "model=tiny")
    assert "images 6, of these without objects 1" in capsys.readouterr().out
    run_command("data", "show", *root, f"out={tmp_path / 'a.png'}", "count=2", "data.image_size=64")
    alone = ("copy_images=false", f"out={tmp_path / 'alone'}")
    run_command("data", "convert", *root, *alone)
    content = json.loads((tmp_path / "alone" / "instances.json").read_text())
    assert not (tmp_path / "alone" / "images").exists()
    assert content["images"][1]["file_name"] == "images/01.jpg"
    run_command("data", "convert", *root, *alone, "overwrite=true")


@pytest.mark.parametrize("form", ["mask_folder", "yolo_seg"])
def test_lost_void_regions_are_counted_and_listed(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    root, out = write_voc(tmp_path / "voc"), tmp_path / "new"
    run_command("data", "convert", "data=voc2012", f"data.root={root}", f"to={form}", f"out={out}")
    printed = capsys.readouterr().out
    assert "train: 1 image, 2 objects, 2 of them without any loss" in printed
    assert printed.count("  1 x a void region") == 2
    assert "JPEGImages/a.jpg: left out, a void region" in printed
    image, loss = "JPEGImages/a.jpg", {"annotation": None, "iou": 0.0, "why": "a void region"}
    listed = json.loads((out / "losses.json").read_text())
    assert {"part": "train", "image": image, **loss} in listed
    assert len(listed) == 2


def test_out_is_a_new_folder(source: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    assert "is not empty" in refused("data", "convert", *source, f"out={tmp_path}")
