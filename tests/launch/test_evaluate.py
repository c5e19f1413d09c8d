"""`maskrcnn-lit evaluate` from end to end, on a run of a few small pictures."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_cases import jitter
from lvis_form import lvis_form
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from report_sample import Page
from tiny_commands import (
    MODEL,
    SIZE,
    VAL_IMAGES,
    checkpoint,
    coco_data,
    ground_truth,
    metric_rows,
    refused,
    renumbered,
    result,
    run_command,
    save_ground_truth,
)

from maskrcnn_lit.data.datasets.shapes import NAMES
from maskrcnn_lit.evaluation.coco.scores import class_table, score_results
from maskrcnn_lit.evaluation.roi_accuracy import DEFINITIONS, roi_accuracy_line
from maskrcnn_lit.evaluation.titles import HIDDEN
from maskrcnn_lit.report.evaluation.page import SECTIONS
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.storage.sealed import read_sealed_json, write_sealed_json
from maskrcnn_lit.training.module import DetectionModule

pytest_plugins = ("tiny_commands", "plain_plots")
pytestmark = pytest.mark.usefixtures("plain_plots")


def evaluated(run_dir: Path) -> dict[str, Any]:
    return read_sealed_json(run_dir / "evaluation.json")


def without_time(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "val/evaluation_seconds"}


def test_the_last_checkpoint_scores_as_at_the_end_of_training(
    trained: Path, strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """To the last bit on the CPU: the same batches through the same kernels."""
    options = [f"run={trained}", "checkpoint=last", f"run_dir={tmp_path}", "report=false"]
    run_command("evaluate", *options)
    found, reached = evaluated(tmp_path), without_time(result(trained)["metrics"])
    metrics = without_time(found["metrics"])
    assert metrics == {name: value for name, value in reached.items() if "loss" not in name}
    assert (tmp_path / "detections.json").read_bytes() == (trained / "detections.json").read_bytes()
    assert found["run"] == str(trained)
    assert found["checkpoint"] == "last"
    assert found["data"] == "coco_json"
    assert found["overrides"] == options
    assert found["weights"] == "as trained"
    assert set(found["per_class"]) == {
        entry["name"] for entry in ground_truth(strange)["categories"]
    }
    printed = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(printed) if "AP75" in line)
    assert printed[head].split() == [
        "AP",
        "AP50",
        "AP75",
        "small",
        "medium",
        "large",
        "AR1",
        "AR10",
        "AR100",
    ]
    for line, kind in zip(printed[head + 1 :], ("box", "mask"), strict=False):
        assert line.split()[:3] == [
            kind,
            f"{metrics[f'val/{kind}_ap']:.3f}",
            f"{metrics[f'val/{kind}_ap50']:.3f}",
        ]
    head = printed.index(class_table(found["per_class"]).splitlines()[0])
    rows = {
        line.split()[0]: line.split()[1:] for line in printed[head + 1 :][: len(found["per_class"])]
    }
    for name, values in found["per_class"].items():
        shown = [values[key] for key in ("box_ap", "mask_ap", "roi_accuracy")]
        assert rows[name] == ["-" if value is None else f"{value:.3f}" for value in shown]
    assert roi_accuracy_line(metrics["val/roi_accuracy"], "all") in printed
    assert found["roi_accuracy"]["definition"] == DEFINITIONS["all"]
    assert str(tmp_path / "evaluation.json") in printed[-1]
    for kind in ("box", "mask"):
        low, high = found["intervals"][f"val/{kind}_ap"]
        assert low <= metrics[f"val/{kind}_ap"] <= high
        assert f"{kind} AP, 95 % interval over images: {low:.3f} to {high:.3f}" in printed


@pytest.mark.long
def test_a_moving_average_is_what_training_and_evaluation_score(
    strange: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    schedule = ("trainer.epochs=1", "trainer.ema=0.9", "optimizer.lr=4.0e-3")
    run_command("train", *coco_data(strange), *MODEL, *schedule, f"run_dir={run_dir}")
    saved = checkpoint(run_dir)
    name = "model.box_head.classes.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    capsys.readouterr()
    run_command("evaluate", f"run={run_dir}", f"run_dir={tmp_path / 'scored'}", "report=false")
    assert "weights: moving average (trainer.ema=0.9)" in capsys.readouterr().out
    found, reached = evaluated(tmp_path / "scored"), without_time(result(run_dir)["metrics"])
    assert found["weights"] == "moving average (trainer.ema=0.9)"
    metrics = without_time(found["metrics"])
    assert metrics == {name: value for name, value in reached.items() if "loss" not in name}


def test_roi_accuracy_as_the_study_counted(
    trained: Path, strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    options = (
        f"run={trained}",
        "checkpoint=last",
        f"run_dir={tmp_path}",
        "report=false",
        "metrics.roi_accuracy.boxes=study",
    )
    run_command("evaluate", *options)
    found, reached = evaluated(tmp_path), result(trained)["metrics"]
    assert found["roi_accuracy"] == {"boxes": "study", "definition": DEFINITIONS["study"]}
    assert "share of 15 slots per image given the right class" in capsys.readouterr().out
    assert found["metrics"]["val/mask_ap"] == reached["val/mask_ap"]
    objects = len(ground_truth(strange)["annotations"])
    right = {
        round(reached["val/roi_accuracy"] * objects) + k
        for k in range(0, 15 * VAL_IMAGES - objects + 1)
    }
    assert round(found["metrics"]["val/roi_accuracy"] * 15 * VAL_IMAGES, 6) in right
    run_command("evaluate", *options[:-1], "metrics.roi_accuracy.boxes=first", code=2)
    assert "metrics.roi_accuracy.boxes=first must be one of all, study" in capsys.readouterr().err


def test_the_best_checkpoint_is_the_default(trained: Path, run_dir: Path):
    shutil.copytree(trained, run_dir)
    run_command("evaluate", f"run={run_dir}", "report=false")
    (folder,) = (
        run_dir / "evaluations"
    ).iterdir()  # by default in the run, under the time of the evaluation
    best = max(float(row["val/mask_ap"]) for row in metric_rows(trained) if row["val/mask_ap"])
    assert evaluated(folder)["metrics"]["val/mask_ap"] == pytest.approx(best, rel=1e-6)
    assert (folder / "detections.json").is_file()


@pytest.mark.long
def test_a_checkpoint_can_be_given_as_a_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = trained / "checkpoints" / "last.ckpt"
    monkeypatch.chdir(tmp_path)
    run_command("evaluate", f"run={file}", "report=false")
    (folder,) = (tmp_path / "outputs" / "evaluations").iterdir()
    assert evaluated(folder)["metrics"]["val/mask_ap"] == result(trained)["metrics"]["val/mask_ap"]
    run_command("evaluate", f"run={file}", f"run_dir={tmp_path}/own", "report=false")
    assert (
        evaluated(tmp_path / "own")["metrics"]["val/mask_ap"]
        == result(trained)["metrics"]["val/mask_ap"]
    )


@pytest.fixture
def elsewhere(trained: Path, strange: Path, tmp_path: Path) -> Path:
    """Validation data alone, with ids of its own: `strange`, but its objects are what the run was
    surest to see. Of each class, those that are surer than its first detection with an empty mask:
    that one is right nowhere.
    """
    root = tmp_path / "elsewhere"
    shutil.copytree(strange, root, ignore=shutil.ignore_patterns("train", "instances_train.json"))
    found = sorted(
        json.loads((trained / "detections.json").read_text()), key=lambda entry: -entry["score"]
    )
    objects, ended = [], set()
    for entry in found[: len(found) // 2]:
        area = float(coco_mask.area(entry["segmentation"]))
        if area == 0:
            ended.add(entry["category_id"])
        if entry["category_id"] not in ended:
            objects.append(entry | {"id": len(objects), "iscrowd": 0, "area": area})
    assert objects
    save_ground_truth(root, renumbered(ground_truth(strange) | {"annotations": objects}, seed=7))
    return root


def validation(root: Path, *more: str) -> list[str]:
    return [
        *(option for option in coco_data(root) if not option.startswith("data.train.")),
        "data.workers=0",
        *more,
    ]


@pytest.mark.long
def test_other_data_needs_no_training_images_and_keeps_the_size_of_the_run(
    trained: Path, elsewhere: Path, tmp_path: Path
):
    """What the run detects is the truth, so it is found again; at another size it would not be,
    says the next test.
    """
    run_command(
        "evaluate",
        f"run={trained}",
        "checkpoint=last",
        f"run_dir={tmp_path}/a",
        *validation(elsewhere, "report=false"),
    )
    metrics = evaluated(tmp_path / "a")["metrics"]
    assert metrics["val/box_ap"] == pytest.approx(1)
    assert metrics["val/mask_ap"] == pytest.approx(1)
    truth = COCO(elsewhere / "annotations" / "instances_val.json")  # the results name its ids
    assert len(truth.loadRes(str(tmp_path / "a" / "detections.json")).getImgIds()) == VAL_IMAGES


def test_another_size_can_be_asked_for(trained: Path, elsewhere: Path, tmp_path: Path):
    other = validation(elsewhere, "report=false", f"data.image_size={2 * SIZE}")
    run_command("evaluate", f"run={trained}", "checkpoint=last", f"run_dir={tmp_path}/a", *other)
    assert evaluated(tmp_path / "a")["metrics"]["val/box_ap"] < 0.9


@pytest.mark.long
def test_any_numbering_of_the_data_gives_the_same_scores(
    trained: Path, elsewhere: Path, tmp_path: Path
):
    truth = ground_truth(elsewhere)
    truth["annotations"] = truth["annotations"][::2]  # so that much of what is found is wrong
    scores = []
    for name, numbered in (("a", truth), ("b", renumbered(truth, seed=8))):
        save_ground_truth(elsewhere, numbered)
        options = (f"run={trained}", "checkpoint=last", f"run_dir={tmp_path}/{name}")
        run_command("evaluate", *options, *validation(elsewhere, "report=false"))
        found = evaluated(tmp_path / name)
        scores.append((without_time(found["metrics"]), found["per_class"]))
    assert scores[0] == scores[1]
    assert 0.1 < scores[0][0]["val/mask_ap"] < 0.9
    assert 0.1 < scores[0][0]["val/box_ap"] < 0.9


def test_other_classes_are_a_mistake(
    trained: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    truth = ground_truth(elsewhere)
    used = truth["annotations"][0]["category_id"]
    for category in truth["categories"]:
        category["name"] = "heart" if category["id"] == used else category["name"]
    names = [category["name"] for category in truth["categories"]]
    save_ground_truth(elsewhere, truth)
    run_command(
        "evaluate", f"run={trained}", f"run_dir={tmp_path}/a", *validation(elsewhere), code=2
    )
    said = capsys.readouterr().err
    assert ", ".join(sorted(NAMES)) in said
    assert ", ".join(sorted(names)) in said
    assert "objects of heart" in said


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def spoil(trained: Path, file: Path, how: str) -> None:
    """Write to `file` a checkpoint of `trained` in which something is wrong."""
    saved = checkpoint(trained)
    saved = {key: saved[key] for key in ("config", "categories", "state_dict")}
    if how == "bomb":
        saved["state_dict"]["bomb"] = Bomb(str(file.with_name("exploded")))
    elif how == "classes":
        weight = saved["state_dict"]["model.box_head.classes.weight"]
        saved["state_dict"]["model.box_head.classes.weight"] = weight[:-1]
    elif how == "target":
        saved["config"]["model"]["fpn"]["_target_"] = "os.mkdir"
    elif how == "other":
        del saved["config"]
    torch.save(saved, file)
    if how == "damaged":
        file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("damaged", "damaged"),
        (
            "bomb",
            "{file} cannot be loaded, since it contains more than tensors and plain data "
            f"({os.mkdir.__module__}.mkdir), and objects are never made from a file: save",
        ),
        ("classes", "box_head.classes.weight is (6, 256), but the model has (7, 256)"),
        ("target", "names 'os.mkdir' for model.fpn, which is not part of maskrcnn_lit"),
        (
            "other",
            "it is neither a Mask R-CNN of torchvision or Detectron2 nor a checkpoint of a run: "
            "give one",
        ),
    ],
)
def test_a_checkpoint_that_is_none_of_ours(
    how, message, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    file = tmp_path / "model.ckpt"
    spoil(trained, file, how)
    run_command("evaluate", f"run={file}", f"run_dir={tmp_path}/a", code=2)
    assert message.format(file=file) in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()
    file.unlink()


def test_the_bomb_would_explode(tmp_path: Path):
    pickle.loads(pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    assert (tmp_path / "exploded").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run={run}/none"],
            "{run}/none does not exist: give a run folder (run_dir) that `maskrcnn-lit train` "
            "wrote",
        ),
        (
            ["run={run}/checkpoints"],
            "{run}/checkpoints is not a run folder, since it has no config.yaml",
        ),
        (["accelerator=gpu", "run={run}"], "use accelerator=cpu"),
        ([], "evaluate needs either run=RUN, or results=FILE with data=...: give one of the two"),
        (
            ["run={run}", "results=a.json"],
            "evaluate needs either run=RUN, or results=FILE with data=...: give one of the two",
        ),
        (["results=a.json"], "results=FILE needs the ground truth: data=coco2017 data.root=DIR"),
        (["run={run}", "checkpoint=first"], "checkpoint=first must be one of best, last"),
        (
            ["run={run}", "precision=8"],
            "precision=8 must be one of auto, bf16-mixed, 16-mixed, 32-true",
        ),
        (
            ["run={run}", "data=coco_json"],
            "evaluate needs data.val.images, data.val.annotations, which have no default",
        ),
    ],
)
def test_a_mistake_is_told(
    arguments, message, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run_command(
        "evaluate",
        *(text.format(run=trained) for text in arguments),
        f"run_dir={tmp_path}/a",
        code=2,
    )
    assert message.format(run=trained) in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.fixture
def perfect(test_data: Path) -> list[dict[str, Any]]:
    """Ground truth turned into detections; crowd regions ask for none."""
    truth = json.loads(
        (test_data / "coco_mini" / "annotations" / "instances_val2017.json").read_text()
    )
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 0.9}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]


@pytest.mark.long
def test_results_against_others(
    test_data: Path, perfect: list, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "all.json").write_text(json.dumps(perfect))
    (tmp_path / "some.json").write_text(
        json.dumps([entry for n, entry in enumerate(perfect) if n % 3])
    )
    data = ("data=coco2017", f"data.root={test_data / 'coco_mini'}", "data.download=false")
    run_command("evaluate", f"results={tmp_path}/some.json", *data, f"run_dir={tmp_path}/b")
    run_command(
        "evaluate",
        f"results={tmp_path}/all.json",
        f"against={tmp_path}/some.json",
        *data,
        f"run_dir={tmp_path}/a",
    )
    (low, high), worse = (
        evaluated(tmp_path / "a")["intervals"]["val/mask_ap"],
        evaluated(tmp_path / "b"),
    )
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)  # without an error there is nothing to be unsure of
    difference = evaluated(tmp_path / "a")["differences"]["val/mask_ap"]
    assert difference["value"] == pytest.approx(1 - worse["metrics"]["val/mask_ap"])
    assert 0.2 < difference["interval"][0] < difference["value"] < difference["interval"][1] < 0.5
    assert difference["p_value"] == pytest.approx(1 / 1001)
    said = f"mask AP against {tmp_path}/some.json: {difference['value']:+.3f}, 95 % interval"
    assert said in capsys.readouterr().out


@pytest.mark.long
def test_the_results_of_another_tool_are_scored(
    test_data: Path, perfect: list, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = test_data / "coco_mini"
    (tmp_path / "a.json").write_text(json.dumps(perfect))
    data = ("data=coco2017", f"data.root={folder}", "data.download=false")
    run_command("evaluate", f"results={tmp_path}/a.json", *data, f"run_dir={tmp_path}/out")
    found = evaluated(tmp_path / "out")
    for name in ("box_ap", "mask_ap", "mask_ap50", "mask_ap_small", "mask_ar100"):
        assert found["metrics"][f"val/{name}"] == pytest.approx(1.0, abs=1e-9), name
    assert found["results"] == f"{tmp_path}/a.json"
    assert found["data"] == "coco2017"
    assert len(found["per_class"]) == 80
    printed = capsys.readouterr().out
    assert str(tmp_path / "out" / "evaluation.json") in printed
    assert str(tmp_path / "out" / "report.html") in printed
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.ids == list(SECTIONS)
    worst = json.loads((tmp_path / "out" / "analysis.json").read_text())["worst"]
    assert not any(entry["missed"] or entry["false"] for entry in worst)
    (tmp_path / "a.json").write_text(json.dumps([*perfect[:1], {"image_id": 1}]))
    run_command("evaluate", f"results={tmp_path}/a.json", *data, f"run_dir={tmp_path}/b", code=2)
    assert "entry 1 of the results has no" in capsys.readouterr().err


def test_the_results_of_another_tool_need_no_training_data_and_no_objects(
    trained: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    save_ground_truth(elsewhere, ground_truth(elsewhere) | {"annotations": []})
    (tmp_path / "found.json").write_text("[]")
    results = (f"results={tmp_path}/found.json", f"run_dir={tmp_path}/a", "report=false")
    run_command("evaluate", *results, *validation(elsewhere), f"against={tmp_path}/found.json")
    record, said = evaluated(tmp_path / "a"), capsys.readouterr().out
    assert record["data"] == "coco_json"
    assert record["intervals"] == {
        "val/box_ap": None,
        "val/mask_ap": None,
    }
    assert record["differences"]["val/mask_ap"]["value"] is None
    assert "mask AP, 95 % interval over images: -\n" in said
    assert "nan" not in said.replace("instances", "")


@pytest.mark.long
def test_the_report_of_a_run(trained: Path, run_dir: Path, capsys: pytest.CaptureFixture):
    """One page with every section, the numbers of the json files and the images, that loads
    nothing.
    """
    shutil.copytree(trained, run_dir)
    run_command("evaluate", f"run={run_dir}")
    (folder,) = (run_dir / "evaluations").iterdir()
    assert f"Report: {folder / 'report.html'}" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    page, metrics = Page(text), evaluated(folder)["metrics"]
    assert "http://" not in text
    assert "https://" not in text
    assert all(link.startswith(("data:image/", "#")) for link in page.loads)
    assert page.ids == list(SECTIONS)
    analysis = json.loads((folder / "analysis.json").read_text())
    assert analysis["mask_ap"] == metrics["val/mask_ap"]
    assert analysis["images"] == VAL_IMAGES
    assert len(page.images) == 2 * len(PLOTS) + len(analysis["worst"]) > 2 * len(PLOTS)
    assert len(list((folder / "plots").glob("*.png"))) == len(PLOTS)
    head, mask, box = page.tables["COCO metrics over all classes"]
    assert mask[1:3] == [f"{metrics['val/mask_ap']:.3f}", f"{metrics['val/mask_ap50']:.3f}"]
    assert box[1:3] == [f"{metrics['val/box_ap']:.3f}", f"{metrics['val/box_ap50']:.3f}"]
    head, *rows = page.tables["Classes by AP"]
    shown = {row[0]: row[head.index("mask AP")] for row in rows}
    found = {entry["name"]: entry["mask_ap"] for entry in analysis["per_class"]}
    assert shown == {name: "-" if ap is None else f"{ap:.3f}" for name, ap in found.items()}
    thresholds = json.loads((run_dir / "thresholds.json").read_text())["thresholds"]
    assert thresholds == {
        e["name"]: e["threshold"] for e in analysis["per_class"] if e["threshold"] is not None
    }
    (run_dir / "thresholds.json").write_text("of the best weights")
    run_command("evaluate", f"run={run_dir}", "checkpoint=last", f"run_dir={run_dir}/last")
    assert (run_dir / "last" / "analysis.json").is_file()
    assert (run_dir / "thresholds.json").read_text() == "of the best weights"


def test_the_page_can_be_left_out(trained: Path, tmp_path: Path):
    run_command("evaluate", f"run={trained}", f"run_dir={tmp_path}/a", "report=false")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "detections.json",
        "evaluation.json",
    ]


@pytest.mark.long
def test_other_data_leaves_the_thresholds_of_the_run_alone(
    trained: Path, elsewhere: Path, run_dir: Path
):
    shutil.copytree(trained, run_dir)
    (run_dir / "thresholds.json").unlink(missing_ok=True)
    run_command("evaluate", f"run={run_dir}", f"run_dir={run_dir}/a", *validation(elsewhere))
    assert (run_dir / "a" / "report.html").is_file()
    assert not (run_dir / "thresholds.json").exists()


@pytest.mark.long
def test_a_run_against_itself(
    trained: Path,
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(trained, run_dir)
    run = (f"run={run_dir}", "checkpoint=last", "report=false")
    run_command("evaluate", *run, f"against={run_dir}", f"run_dir={tmp_path}/a", code=2)
    assert (
        f"{run_dir} has no evaluation of its last weights: run `maskrcnn-lit"
        in capsys.readouterr().err
    )
    run_command("evaluate", *run)
    (folder,) = (run_dir / "evaluations").iterdir()
    run_command("evaluate", *run, f"against={run_dir}", f"run_dir={tmp_path}/same")
    found = evaluated(tmp_path / "same")
    assert found["against"] == str(run_dir)
    assert set(found["differences"]) == {
        "val/box_ap",
        "val/mask_ap",
    }
    assert found["against_results"] == str(folder / "detections.json")
    assert found["images"] == VAL_IMAGES
    for row in found["differences"].values():
        assert row == {"value": 0.0, "interval": [0.0, 0.0], "p_value": 1.0}
    entry = json.loads((trained / "detections.json").read_text())[0]
    (tmp_path / "other.json").write_text(json.dumps([entry | {"image_id": 1}]))
    run_command("evaluate", *run, f"against={tmp_path}/other.json", f"run_dir={tmp_path}/c", code=2)
    assert "image ids that the ground truth does not have, 1" in capsys.readouterr().err
    edited = evaluated(folder) | {"images": 2, "image_ids_sha256": "0"}
    write_sealed_json(folder / "evaluation.json", edited)
    monkeypatch.setattr(DetectionModule, "validation_step", None)  # told before anything is scored
    run_command("evaluate", *run, f"against={folder}", f"run_dir={tmp_path}/b", code=2)
    assert f"scored 2 images, but these are {VAL_IMAGES} other images" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    said = refused("evaluate", *run, f"run_dir={tmp_path}/same")
    assert f"run_dir={tmp_path}/same is not empty: give another folder" in said


@pytest.mark.long
def test_more_detections_can_count(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The limit that counts is raised in the model too: 50 in training."""
    run = (f"run={trained}", "checkpoint=last", "report=false")
    for limit in (3, 200):
        run_command(
            "evaluate", *run, f"metrics.max_detections=[1,2,{limit}]", f"run_dir={tmp_path}/{limit}"
        )
        metrics = evaluated(tmp_path / str(limit))["metrics"]
        assert {
            f"val/box_ar{limit}",
            "val/box_ar2",
        } <= metrics.keys()
        assert "val/box_ar100" not in metrics
        assert f"AR{limit}" in capsys.readouterr().out
    counts = [
        len(json.loads((folder / "detections.json").read_text()))
        for folder in (trained, tmp_path / "200")
    ]
    assert counts[0] <= 50 * VAL_IMAGES
    assert counts[1] >= counts[0]
    for limits, said in (("[1,2]", "[1, 2]"), (400, "400"), (0, "0")):
        run_command(
            "evaluate", *run, f"metrics.max_detections={limits}", f"run_dir={tmp_path}/a", code=2
        )
        assert (
            f"metrics.max_detections={said} must be three ascending whole numbers"
            in capsys.readouterr().err
        )


def test_a_mistake_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photo.ckpt").write_bytes(b"no checkpoint")
    monkeypatch.chdir(tmp_path)
    assert "photo.ckpt cannot be loaded" in refused("evaluate", "run=photo.ckpt", "run_dir=a")


@pytest.mark.long
def test_data_with_some_of_the_classes_are_scored_on_these_alone(
    trained: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    truth = ground_truth(elsewhere)
    kept = sorted(truth["categories"], key=lambda category: category["name"])[:2]
    ids = {category["id"] for category in kept}
    truth["categories"] = kept
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] in ids]
    save_ground_truth(elsewhere, truth)
    options = (f"run={trained}", "checkpoint=last", f"run_dir={tmp_path}/a")
    run_command("evaluate", *options, *validation(elsewhere))
    found = evaluated(tmp_path / "a")
    assert set(found["per_class"]) == {category["name"] for category in kept}
    results = json.loads((tmp_path / "a" / "detections.json").read_text())
    assert {entry["category_id"] for entry in results} <= ids
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    every = len(json.loads((trained / "detections.json").read_text()))
    assert len(lines) == 1
    assert f"left out {every - len(results)} of {every} detections" in lines[0]


@pytest.mark.long
def test_classes_of_the_data_can_be_chosen_and_renamed(
    trained: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    truth = ground_truth(elsewhere)
    names = sorted(category["name"] for category in truth["categories"])
    used = {entry["category_id"] for entry in truth["annotations"]}
    two = sorted(c["name"] for c in truth["categories"] if c["id"] in used)[:2]
    for category in truth["categories"]:
        category["name"] = category["name"].upper()
    save_ground_truth(elsewhere, truth)
    options = (f"run={trained}", "checkpoint=last", "report=false")
    run_command("evaluate", *options, *validation(elsewhere), code=2)
    assert f"did you mean {names[0]}?" in capsys.readouterr().err
    renamed = ",".join(f"{name.upper()}:{name}" for name in two)
    chosen = (f"data.classes=[{{{renamed}}}]", f"run_dir={tmp_path}/a")
    run_command("evaluate", *options, *validation(elsewhere), *chosen)
    found = evaluated(tmp_path / "a")
    assert set(found["per_class"]) == set(two)
    assert found["metrics"]["val/box_ap"] > 0.9
    run_command("evaluate", *options, *validation(elsewhere), "data.classes=[Circel]", code=2)
    assert "data.classes leaves out every class of" in capsys.readouterr().err


def test_results_of_another_tool_are_scored_with_chosen_classes(
    test_data: Path, perfect: list, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "a.json").write_text(json.dumps(perfect))
    data = ("data=coco2017", f"data.root={test_data / 'coco_mini'}", "data.download=false")
    run_dir = tmp_path / "out"
    options = (f"results={tmp_path}/a.json", "report=false", *data)
    classes = "data.classes=[person,{car:vehicle,truck:vehicle}]"
    run_command("evaluate", *options, classes, f"run_dir={run_dir}")
    run_command("evaluate", *options, "data.classes=[persn,car]", f"run_dir={tmp_path}/b", code=2)
    said = capsys.readouterr().err
    assert "data.classes has persn" in said
    assert "did you mean person?" in said
    found = evaluated(run_dir)
    assert set(found["per_class"]) == {"person", "vehicle"}
    assert found["metrics"]["val/mask_ap"] == pytest.approx(1)


@pytest.mark.long
@pytest.mark.data
def test_results_on_lvis_have_its_ap(test_data: Path, tmp_path: Path):
    """`data=lvis` on real photos: 300 detections without an option, AP by frequency in the page."""
    coco = json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())
    truth = lvis_form(coco)
    (tmp_path / "lvis.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(jitter(coco)))
    options = [f"data.{part}.annotations={tmp_path}/lvis.json" for part in ("train", "val")]
    options += [f"data.root={test_data}/coco_mini", f"results={tmp_path}/results.json"]
    out = tmp_path / "out"
    run_command("evaluate", "data=lvis", *options, f"run_dir={out}")
    metrics = evaluated(out)["metrics"]
    expected = score_results(truth, jitter(coco), max_detections=(1, 10, 300)).metrics
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    others = {name.removeprefix("val/") for name in metrics.keys() - expected.keys()}
    assert others == set(HIDDEN)
    assert metrics["val/mask_ap_rare"] > 0.02
    assert "val/mask_ar300" in metrics
    page = (out / "report.html").read_text()
    assert all(f">{name}</th>" in page for name in ("rare", "common", "frequent"))


@pytest.mark.long
def test_views_are_scored_against_the_image_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The image alone is what training scored, and the difference is that of `against`."""
    plain = trained / "detections.json"
    run = (f"run={trained}", "checkpoint=last", "report=false")
    run_command("evaluate", *run, "tta=scales", f"against={plain}", f"run_dir={tmp_path}/a")
    found = evaluated(tmp_path / "a")
    row = found["tta"]
    assert (row["kind"], row["views"], row["sizes"]) == ("scales", 6, [64, 32, 96])
    assert row["differences"] == found["differences"]
    assert set(row["differences"]) == {"val/box_ap", "val/mask_ap"}
    reached = result(trained)["metrics"]
    assert row["plain"].items() <= reached.items()
    for name, difference in row["differences"].items():
        assert difference["value"] == pytest.approx(found["metrics"][name] - reached[name])
    assert found["metrics"]["val/roi_accuracy"] == reached["val/roi_accuracy"]
    assert row["seconds_per_image"] > row["plain_seconds_per_image"] > 0
    assert json.loads((tmp_path / "a" / "detections.json").read_text()) != json.loads(
        plain.read_text()
    )
    printed = capsys.readouterr().out
    assert "tta=scales (6 views of an image): mask AP " in printed
    assert f"{row['seconds_per_image']:.3f} s of the model an image, without " in printed
    out = tmp_path / "b"
    assert "leave out one of them" in refused(
        "evaluate", *run, "tta=flip", "nms=all", f"run_dir={out}"
    )
    assert "model.nms=soft" in refused(
        "evaluate", *run, "tta=flip", "model.nms=soft", f"run_dir={out}"
    )
    assert "needs a model" in refused("evaluate", f"results={plain}", "tta=flip")
    assert not out.exists()


@pytest.mark.long
def test_thresholds_of_several_views_are_not_those_of_the_run(trained: Path, run_dir: Path):
    shutil.copytree(trained, run_dir)
    (run_dir / "thresholds.json").unlink(missing_ok=True)
    run_command("evaluate", f"run={run_dir}", f"run_dir={run_dir}/a", "tta=flip")
    assert (run_dir / "a" / "report.html").is_file()
    assert not (run_dir / "thresholds.json").exists()


@pytest.mark.long
def test_tiles_are_scored_against_the_image_as_it_is(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The image as it is is what training scored; one tile an image changes nothing."""
    plain = trained / "detections.json"
    run = (f"run={trained}", "checkpoint=last")
    run_command("evaluate", *run, "tile=40", f"against={plain}", f"run_dir={tmp_path}/a")
    found = evaluated(tmp_path / "a")
    row = found["tile"]
    assert (row["tile"], row["overlap"], row["tiles_per_image"]) == (40, 0.2, 4)
    assert row["differences"] == found["differences"]
    reached = result(trained)["metrics"]
    assert row["plain"].items() <= reached.items()
    for name, difference in row["differences"].items():
        assert difference["value"] == pytest.approx(found["metrics"][name] - reached[name])
    assert found["metrics"]["val/roi_accuracy"] == reached["val/roi_accuracy"]
    assert min(row["seconds_per_image"], row["plain_seconds_per_image"]) > 0
    printed = capsys.readouterr().out
    assert "tile=40 (4.0 tiles an image): mask AP of objects by size: small " in printed
    page = (tmp_path / "a" / "report.html").read_text()
    assert "40 pixels, overlap 0.2, 4.0 tiles an image" in page
    run_command("evaluate", *run, "tile=64", "report=false", f"run_dir={tmp_path}/b")
    one_tile = json.loads((tmp_path / "b" / "detections.json").read_text())
    for entry, expected in zip(one_tile, json.loads(plain.read_text()), strict=True):
        assert entry["bbox"] == pytest.approx(expected["bbox"], abs=1e-3)
        assert entry["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert entry["category_id"] == expected["category_id"]
    out = tmp_path / "c"
    assert "tta=flip and tile=40" in refused(
        "evaluate", *run, "tile=40", "tta=flip", f"run_dir={out}"
    )
    assert "leave out one of them" in refused(
        "evaluate", *run, "tile=40", "nms=all", f"run_dir={out}"
    )
    assert "tile=40 needs a model" in refused("evaluate", f"results={plain}", "tile=40")
