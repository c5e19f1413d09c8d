import json
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco
from tiny_commands import refused, run_command

pytest_plugins = ("tiny_commands",)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    other = coco_dict(3)
    other["categories"][0]["name"] = "whale"  # in place of zebra
    write_coco(tmp_path / "a", coco_dict(5))
    write_coco(tmp_path / "b", other)
    jsons, folders = (
        ",".join(str(tmp_path / name / end) for name in "ab")
        for end in ("instances.json", "images")
    )
    return [f"jsons=[{jsons}]", f"folders=[{folders}]", f"out={tmp_path / 'all.json'}"]


def test_two_jsons_become_one(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    run_command("data", "merge", *two)
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "all.json").read_text())
    names = [category["name"] for category in content["categories"]]
    assert names == ["zebra", "ant", "mole", "whale"]
    assert len(content["images"]) == 8
    assert {image["file_name"] for image in content["images"]} >= {
        "a/images/00.jpg",
        "b/images/02.jpg",
    }
    options = [f"data.annotations={tmp_path / 'all.json'}", f"data.images={tmp_path}"]
    assert options[1] in printed
    run_command(
        "data", "check", "data=coco_json", *options, code=1
    )  # the same pictures are in both
    assert "8 images decoded" in capsys.readouterr().out


def test_an_image_of_both_gets_the_annotations_of_both(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    annotations, images = write_coco(tmp_path, coco_dict(4))
    jsons = f"jsons=[{annotations},{annotations}]"
    run_command("data", "merge", jsons, f"folders={images}", f"out={tmp_path / 'all.json'}")
    content = json.loads((tmp_path / "all.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (4, 12)
    assert "4 images in several jsons" in capsys.readouterr().out


def test_what_is_refused(two: list[str], tmp_path: Path):
    a = tmp_path / "a"
    assert "has 2 files and folders 3" in refused(
        "data", "merge", two[0], f"folders=[{a},{a},{a}]", two[2]
    )
    assert "does not exist: check folders" in refused(
        "data", "merge", two[0], "folders=none", two[2]
    )
    same = (f"out={a / 'instances.json'}", "overwrite=true")
    assert "overwrite an original" in refused("data", "merge", *two[:2], *same)
    (a / "instances.json").write_text(
        '{"images": [], "annotations": [{"id": 1}], "categories": []}'
    )
    assert "incomplete entry (KeyError('image_id'))" in refused("data", "merge", *two)
    assert not (tmp_path / "all.json").exists()
