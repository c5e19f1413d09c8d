"""A run on data in another form from end to end: train, evaluate, move the data, resume."""

import json
import shutil
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco
from hf_files import write_form
from tiny_commands import MODEL, printed_by, refused, run_command

from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.datasets.writers import write_yolo
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.collect import read_runs, validation_index
from maskrcnn_lit.runs.result import read_result

pytest_plugins = ("tiny_commands",)

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
    run_command("train", *given, *MODEL, *short, f"run_dir={run}")
    ids = json.loads((run / "subset_ids.json").read_text())
    assert sorted(ids["train"] + ids["val"]) == list(range(1, 10))
    assert len(ids["val"]) == 3
    run_command("evaluate", f"run={run}", "report=false")
    (evaluation,) = run.glob("evaluations/*/evaluation.json")
    metrics = read_result(run / "result.json").metrics
    stated = json.loads(evaluation.read_text())
    assert stated["images"] == 3
    assert stated["metrics"]["val/mask_ap"] == metrics["val/mask_ap"]
    check_another_division(tmp_path, run)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert "data does not exist: give the folder of the data" in refused("evaluate", f"run={run}")
    longer = (f"resume={run}", "trainer.epochs=2", f"data.root={tmp_path / 'moved'}")
    run_command("train", *longer, f"run_dir={tmp_path / 'longer'}")
    assert json.loads((tmp_path / "longer" / "subset_ids.json").read_text()) == ids
    text = next((tmp_path / "moved" / "labels").glob("*.txt"))
    text.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    other = (f"resume={run}", "trainer.epochs=3", longer[2], f"run_dir={tmp_path / 'other'}")
    assert "the data differ from those" in refused("train", *other)


def check_another_division(folder: Path, run: Path) -> None:
    """A file that is added divides the images in another way: no command scores images that the
    run trained on, without a word. Without the file, all is as before.
    """
    (job,) = read_runs([run]).jobs
    recorded = list(validation_index(job).file_names)
    assert page_of(run, folder / "train", "train")
    assert not page_of(run, folder / "before", "val")
    image = min((folder / "data" / "images").iterdir())
    text = folder / "data" / "labels" / f"{image.stem}.txt"
    added = [image.with_name(f"0{image.name}"), text.with_name(f"0{text.name}")]
    for source, copy in zip((image, text), added, strict=True):
        shutil.copyfile(source, copy)
    sentence = refused("evaluate", f"run={run}", "report=false")
    assert "as data.val_share divides it now, are not those that" in sentence
    assert "name other images to score, data=..." in sentence
    best = refused("evaluate", f"run={run / 'checkpoints' / 'best.ckpt'}", "report=false")
    assert "are not those that" in best
    assert "are not those that" in refused("export", f"run={run}", "format=pt2")
    with pytest.raises(UserError, match="are not those that"):
        validation_index(job)
    assert page_of(run, folder / "after", "val", code=1)  # one picture twice
    for copy in added:
        copy.unlink()
    assert list(validation_index(job).file_names) == recorded


def page_of(run: Path, out: Path, part: str, code: int = 0) -> bool:
    """Whether the page of suspicious labels says that the run was trained on the part."""
    printed_by("data", "check", f"run={run}", f"run_dir={out}", "first=0", code=code)
    return "was trained on these labels" in (out / part / "index.html").read_text()


def test_a_run_on_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = coco_dict(9)
    _, images = write_coco(tmp_path / "coco", content)
    train, val = ({**content, "images": content["images"][k]} for k in (slice(6), slice(6, 9)))
    monkeypatch.chdir(tmp_path)
    write_form(Path("data/train-00000-of-00001.parquet"), "struct of lists", train, images)
    write_form(Path("data/test-00000-of-00001.parquet"), "list of structs", val, images)
    given = ("data=hf_parquet", "data.root=data", "data.cache_dir=cache")
    assert "train: 6 images, 15 objects, 3 categories" in printed_by("data", "stats", *given)
    assert "val: 3 images decoded, 13 annotations" in printed_by("data", "check", *given)
    run_command("data", "show", *given, "out=samples.png", "count=2")
    run_command("data", "convert", "from=hf_parquet", *given[1:], "to=coco", "out=converted")
    converted = Path("converted/annotations/instances_train.json"), Path("converted/train")
    assert len(read_index(*converted, "error", cache=Path("cache"))) == 6
    run = tmp_path / "run"
    run_command("train", *given, *MODEL, "trainer.epochs=1", f"run_dir={run}")
    (picture, *others) = sorted(Path("cache/pictures").rglob("test-*/*.jpg"))
    assert len(others) == 2
    picture.unlink()  # the cache may be emptied at any time
    run_command("evaluate", f"run={run}", "report=false")
    (evaluation,) = run.glob("evaluations/*/evaluation.json")
    stated, metrics = json.loads(evaluation.read_text()), read_result(run / "result.json").metrics
    assert stated["images"] == 3
    assert stated["metrics"]["val/mask_ap"] == metrics["val/mask_ap"]
    assert picture.is_file()
    small = ("data.cache_gb=1e-9", "data.cache_dir=new")
    assert "data.cache_gb=1e-09 allows less" in refused("data", "stats", *given, *small)
