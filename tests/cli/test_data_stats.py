"""`maskrcnn-lit data stats` from end to end."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_file import void_dict, write_coco
from PIL import Image
from tiny_commands import coco_data, run_command

from maskrcnn_lit.cli.data_stats import anchor_grids, anchor_table
from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.datasets.shapes import NAMES

pytest_plugins = ("tiny_commands",)


def stats(*arguments: object, code: int = 0) -> None:
    run_command("data", "stats", *arguments, code=code)


def tiny_objects(folder: Path) -> tuple[str, ...]:
    """Options: 4 images of 128 px with 40 objects of about 7 px each."""
    rng = torch.Generator().manual_seed(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (128, 128), (k, k, k)).save(folder / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 128, "width": 128})
        for _ in range(40):
            x, y = (torch.rand(2, generator=rng) * 118).tolist()
            w, h = (5 + torch.rand(2, generator=rng) * 4).tolist()
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": k,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "speck"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    paths = (
        f"data.train.images={folder / 'images'}",
        f"data.train.annotations={folder / 'a.json'}",
    )
    return ("data=coco_json", *paths, "data.image_size=128")


def found(file: Path, part: str = "train") -> dict[str, Any]:
    return json.loads(file.read_text())[part]


def test_both_parts_are_counted_and_measured(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    options = ("data.image_size=64", "model=tiny", "backbone=resnet18")
    stats(*coco_data(shapes), *options, f"out={tmp_path}/stats.json")
    printed = capsys.readouterr().out
    for part, images in (("train", 8), ("val", 3)):
        numbers = found(tmp_path / "stats.json", part)
        assert (
            f"\n{part} of coco_json, image_size 64\n  images {images}, of these without objects "
            in printed
        )
        assert (
            f"objects {numbers['objects']}, crowd regions {numbers['crowd_regions']}\n" in printed
        )
        assert set(numbers["classes"]) == set(NAMES)
        assert numbers["height"]["max"] == numbers["width"]["max"] == 64
        assert numbers["anchors"]["model.anchors.sizes"] == [8, 16, 32, 64, 128]
        assert numbers["anchors"]["searched"] == (part == "train")
    for name, count in found(tmp_path / "stats.json")["classes"].items():
        assert re.search(rf"\b{name} +{count}\b", printed), name
    assert printed.count("of IoU 0.5 and 0.7:") == 2
    assert printed.count("share of a box under other boxes: under 0.1 ") == 2
    assert max(map(len, printed.splitlines())) <= 160
    assert printed.endswith(f"\nWritten to {tmp_path}/stats.json\n")


@pytest.mark.long
def test_what_it_suggests_for_tiny_objects_raises_the_recall(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The suggestion is what to type; typed, it is the current one, and reaches what was said."""
    data = (*tiny_objects(tmp_path / "data"), "model=torchvision_v1")
    stats(*data, f"out={tmp_path}/a.json")
    printed = capsys.readouterr().out
    fitted = found(tmp_path / "a.json")["anchors"]
    assert fitted["now"]["all"] == {"0.5": 0.0, "0.7": 0.0}  # of 32 px and more
    assert "Warning: the side of the median object is 7 px after the resize, below 16" in printed
    typed = re.findall(r"^  \(\d\) add (.+)$", printed, re.MULTILINE)
    assert typed == list(fitted["others"])
    assert "model.anchors.sizes=[" in typed[0]
    assert "data.image_size=512" in typed
    for text in typed:
        other = {option.split("=")[0] for option in shlex.split(text)}
        kept = [option for option in data if option.split("=")[0] not in other]
        stats(*kept, *shlex.split(text), f"out={tmp_path}/b.json", "overwrite=true")
        reached = found(tmp_path / "b.json")["anchors"]["now"]["all"]
        assert reached == pytest.approx(fitted["others"][text]["all"])
        assert reached["0.5"] > 0.1
    reached = fitted["others"][typed[0]]["all"]
    assert reached["0.5"] > 0.6
    assert reached["0.7"] > 0.05


@pytest.mark.long
def test_larger_images_are_measured_with_the_anchors_that_the_model_has_there(tmp_path: Path):
    """Those of model=mask_rcnn follow the size of the images."""
    data = tiny_objects(tmp_path / "data")
    stats(*data, f"out={tmp_path}/a.json")
    fitted = found(tmp_path / "a.json")["anchors"]
    assert fitted["model.anchors.sizes"] == [8, 16, 32, 64, 128]
    kept = [option for option in data if not option.startswith("data.image_size=")]
    for size, sizes in ((256, [16, 32, 64, 128, 256]), (512, [32, 64, 128, 256, 512])):
        stats(*kept, f"data.image_size={size}", f"out={tmp_path}/b.json", "overwrite=true")
        there = found(tmp_path / "b.json")["anchors"]
        assert there["model.anchors.sizes"] == sizes
        assert there["now"]["all"] == pytest.approx(
            fitted["others"][f"data.image_size={size}"]["all"]
        )


@pytest.mark.long
def test_anchors_that_fit_get_no_other(tmp_path: Path):
    data = tiny_objects(tmp_path / "data")
    stats(*data, f"out={tmp_path}/a.json")
    best = next(iter(found(tmp_path / "a.json")["anchors"]["others"]))
    stats(*data, *shlex.split(best), f"out={tmp_path}/a.json", "overwrite=true")
    fitted = found(tmp_path / "a.json")["anchors"]
    assert not [text for text in fitted["others"] if "anchors" in text]
    no_other = "  None of the other sizes and ratios tried gains 0.05 or more."
    assert anchor_table(fitted | {"others": {}})[-1] == no_other
    assert no_other not in anchor_table(fitted | {"others": {}, "searched": False})


def test_the_threshold_is_that_of_the_model(shapes: Path, tmp_path: Path):
    stats(
        *coco_data(shapes),
        "data.image_size=64",
        "model.rpn.object_iou=0.6",
        f"out={tmp_path}/a.json",
    )
    assert list(found(tmp_path / "a.json")["anchors"]["now"]["all"]) == ["0.5", "0.6"]


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [(), ("model=torchvision_v1",), ("model=detectron2", "backbone=resnet50_caffe")]
)
@pytest.mark.parametrize("padded", [(64, 96), (100, 100)])
def test_the_anchors_are_the_models(options: tuple[str, ...], padded: tuple[int, int]):
    """As many cells as the maps of backbone and pyramid have, also where the side is no multiple of
    a stride.
    """
    config = compose("data stats", [*options, "data=shapes"])
    if "backbone" not in " ".join(options):
        config.backbone.name = "resnet18"
    config.model.fpn.channels = 8
    model = build(config.model, num_classes=2).eval()
    with torch.no_grad():
        pyramid = model.fpn(model.backbone(torch.zeros(1, 3, *padded)))
    expected = model.anchors(pyramid, padded)
    grids = anchor_grids(build(config.model.anchors), padded)
    assert [grid.shape[:2] for grid in grids] == [tuple(level.shape[2:]) for level in pyramid]
    assert torch.equal(torch.cat([torch.tensor(grid).reshape(-1, 4) for grid in grids]), expected)


def test_a_set_without_objects_has_numbers_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tiny_objects(tmp_path / "data")
    file = tmp_path / "data" / "a.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    stats(*data)
    printed = capsys.readouterr().out
    assert "images 4, of these without objects 4; objects 0, crowd regions 0" in printed
    assert "anchor" not in printed


def test_levels_and_sizes_must_agree(shapes: Path, capsys: pytest.CaptureFixture):
    stats(*coco_data(shapes), "model.anchors.sizes=[8,16]", code=2)
    assert (
        "model.anchors.sizes has 2 numbers, but the pyramid has 5 levels: give one size for each "
        "level" in capsys.readouterr().err
    )


def test_objects_that_cannot_be_learnt_are_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    options = tiny_objects(tmp_path / "data")
    content = json.loads((tmp_path / "data" / "a.json").read_text())
    for annotation in content["annotations"][:7]:
        annotation["bbox"][2] = 0.4
    (tmp_path / "data" / "a.json").write_text(json.dumps(content))
    stats(*options, "model=tiny", f"out={tmp_path / 'out.json'}")
    printed = capsys.readouterr().out
    assert printed.count("7 of 160 objects cannot be learned") == 1
    assert printed.count("7 x too small to be learned") == 1
    numbers = json.loads((tmp_path / "out.json").read_text())["train"]
    assert numbers["not_learnable"] == {"too small to be learned": 7}


@pytest.mark.long
def test_a_part_that_is_not_given_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    options = tiny_objects(tmp_path / "data")
    stats(*options)
    said = capsys.readouterr().out
    assert "train: 4 images" in said
    assert "val:" not in said
    assert "training images too" not in said
    stats(*(option.replace("data.train.", "data.val.") for option in options))
    said = capsys.readouterr().out
    assert "val: 4 images" in said
    assert "train:" not in said


@pytest.mark.parametrize("value", ["5", "a", "null", "[a,b]", "{a:1}", "[]", "true", "[[8],16]"])
@pytest.mark.parametrize("name", ["sizes", "ratios"])
def test_anchors_of_the_wrong_kind_are_one_sentence(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    stats(*tiny_objects(tmp_path / "data"), f"model.anchors.{name}={value}", code=2)
    said = capsys.readouterr().err
    assert said.startswith("maskrcnn-lit: ")
    assert f"model.anchors.{name}=" in said
    assert len(said.splitlines()) == 1


def test_chosen_classes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    stats(*tiny_objects(tmp_path / "data"), "data.classes={speck:dot}")
    said = capsys.readouterr().out
    assert "train: data.classes: speck -> dot" in said
    assert "  dot  " in said


def test_boxes_without_masks_and_void_regions_are_counted(tmp_path: Path):
    content = void_dict()
    content["annotations"][0]["segmentation"] = []
    annotations, images = write_coco(tmp_path, content)
    part = (f"data.train.annotations={annotations}", f"data.train.images={images}")
    run_command("data", "stats", "data=coco_json", *part, f"out={tmp_path}/stats.json")
    numbers = json.loads((tmp_path / "stats.json").read_text())["train"]
    assert numbers["objects_without_mask"] == 1
    assert numbers["images_with_void"] == 3
