"""A run on data in another form from end to end: train, evaluate, move the data, resume."""

import json
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco
from tiny_verbs import MODEL, refused, verb

from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.datasets.writers import write_yolo
from maskrcnn_lit.runs.result import read_result

pytest_plugins = ("tiny_verbs",)

pytestmark = pytest.mark.long


def test_a_run_on_yolo_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = coco_dict(9)
    content["annotations"] = [
        e for e in content["annotations"] if isinstance(e["segmentation"], list)
    ]
    annotations, images = write_coco(tmp_path / "coco", content)
    index = read_index(annotations, images, "error", cache=tmp_path / "cache")
    write_yolo(index, tmp_path / "data", "", copy=True)
    monkeypatch.chdir(tmp_path)
    run, short = tmp_path / "run", ("trainer.epochs=1", "data.cache_dir=cache")
    given = ("data=yolo_seg", "data.root=data", "data.val_share=0.3")
    verb("train", *given, *MODEL, *short, f"run_dir={run}")
    ids = json.loads((run / "subset_ids.json").read_text())
    assert sorted(ids["train"] + ids["val"]) == list(range(1, 10)) and len(ids["val"]) == 3
    verb("evaluate", f"run={run}", "report=false")
    (evaluation,) = run.glob("evaluations/*/evaluation.json")
    metrics = read_result(run / "result.json").metrics
    stated = json.loads(evaluation.read_text())
    assert stated["images"] == 3 and stated["metrics"]["val/mask_ap"] == metrics["val/mask_ap"]
    (tmp_path / "data").rename(tmp_path / "moved")
    assert "data does not exist: give the folder of the data" in refused("evaluate", f"run={run}")
    longer = (f"resume={run}", "trainer.epochs=2", f"data.root={tmp_path / 'moved'}")
    verb("train", *longer, f"run_dir={tmp_path / 'longer'}")
    assert json.loads((tmp_path / "longer" / "subset_ids.json").read_text()) == ids
    text = next((tmp_path / "moved" / "labels").glob("*.txt"))
    text.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    other = (f"resume={run}", "trainer.epochs=3", longer[2], f"run_dir={tmp_path / 'other'}")
    assert "the data differ from those" in refused("train", *other)
