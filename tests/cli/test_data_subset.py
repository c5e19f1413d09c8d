import json
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco
from tiny_commands import refused, run_command

pytest_plugins = ("tiny_commands",)


def test_some_images_and_classes(tmp_path: Path, capsys: pytest.CaptureFixture):
    annotations, images = write_coco(tmp_path, coco_dict(9) | {"info": 1})
    one = ["data=coco_json", f"data.annotations={annotations}", f"data.images={images}"]
    some = ["data.train_images=4", "data.classes=[ant,mole]", f"out={tmp_path / 'some.json'}"]
    run_command("data", "subset", *one, *some)
    content = json.loads((tmp_path / "some.json").read_text())
    assert len(content["images"]) == 4
    assert content["info"] == 1
    assert {category["name"] for category in content["categories"]} == {"ant", "mole"}
    ids = {image["id"] for image in content["images"]}
    whole = json.loads(annotations.read_text())["annotations"]
    assert content["annotations"] == [
        entry for entry in whole if entry["image_id"] in ids and entry["category_id"] > 1
    ]
    assert f"data.images={images}" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(3))
    one = ["data=coco_json", f"data.annotations={annotations}", f"data.images={images}"]
    new = f"out={tmp_path / 'new.json'}"
    assert "no part 'val'" in refused("data", "subset", *one, "part=val", new)
    same = (f"out={annotations}", "overwrite=true")
    assert "overwrite the original" in refused("data", "subset", *one, *same)
    assert not (tmp_path / "new.json").exists()
