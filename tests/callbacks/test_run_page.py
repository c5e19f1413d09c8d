"""The page of a run: command, commit, options that differ from its experiment, data."""

from pathlib import Path

from maskrcnn_lit.callbacks.run_page import data_rows, differences, made_by, run_page
from maskrcnn_lit.config.compose import compose, to_dict
from maskrcnn_lit.runs.folder import freeze_config
from maskrcnn_lit.runs.result import RunResult, write_result

OVERRIDES = [
    *("experiment=demo", "optimizer.lr=0.125", "backbone=resnet18", "trainer.epochs=3"),
    *("data.workers=0", "logger=wandb", "evaluation.every_n_epochs=2"),
]


def frozen(overrides: list[str]) -> dict:
    return to_dict(freeze_config(compose("train", [*overrides, "run_dir=x"])))


def test_an_unchanged_experiment_has_no_differences():
    for overrides in ([], ["experiment=demo"], ["experiment=overfit", "data.root=d"]):
        assert differences(frozen(overrides), overrides)[1] == [], overrides


def test_what_differs_from_the_experiment():
    default, rows = differences(frozen(OVERRIDES), OVERRIDES)
    there, _ = differences(frozen(["experiment=demo"]), ["experiment=demo"])
    assert default == there == "experiment=demo"
    found = {name: (before, now) for name, before, now in rows}
    assert found["optimizer.lr"][1] == "0.125"
    assert found["trainer.epochs"][1] == "3"
    names = set(found)
    assert {name.partition(".")[0] for name in names} <= {"optimizer", "backbone", "trainer"}
    assert list(found) == sorted(found)


def test_without_an_experiment_they_are_from_the_defaults():
    overrides = ["data.image_size=[256,400]", "model.mask_iou=true"]
    default, rows = differences(frozen(overrides), overrides)
    found = {name: (before, now) for name, before, now in rows}
    assert default == "default"
    assert found["model.mask_iou"] == ("false", "true")
    assert found["data.image_size"][1] == "[256, 400]"


def test_an_experiment_that_is_gone_counts_as_none():
    assert differences({"seed": 2}, ["experiment=of_a_friend"])[0] == "default"
    assert ("seed", "1", "2") in differences({"seed": 2}, [])[1]


DATA = {
    "name": "nuclei",
    "train": {"images": 40, "ids_sha256": "a" * 64, "annotations_sha256": "b" * 32},
    "val": {"images": 8, "ids_sha256": "c" * 64, "images_sha256": "d" * 64},
}


def test_data_are_named_by_their_digests():
    assert data_rows(DATA) == [
        ["nuclei train", 40, "a" * 12, "b" * 12, ""],
        ["nuclei val", 8, "c" * 12, "", "d" * 12],
    ]
    assert data_rows({}) == []


def test_the_page(tmp_path: Path):
    file = tmp_path / "result.json"
    result = RunResult(
        "running",
        overrides=["seed=2"],
        command=["maskrcnn-lit", "train", "run_dir=a b"],
        commit={"hash": "abc", "dirty": True},
        versions={"torch": "2.14"},
        data=DATA,
    )
    write_result(file, result)
    page = run_page(file, frozen(["optimizer.lr=0.25"]))
    assert list(page) == ["command", "commit", "changed options", "data"]
    assert page["command"] == "maskrcnn-lit train 'run_dir=a b'"
    assert page["commit"] == "abc, with changes that are not committed\ntorch 2.14"
    assert page["changed options"].rows == [("optimizer.lr", "0.0015", "0.25")]
    assert page["data"].rows == data_rows(DATA)


def test_without_a_result_there_is_the_config(tmp_path: Path):
    assert list(run_page(tmp_path / "result.json", {})) == ["changed options"]
    assert made_by(RunResult("running")) == ""
