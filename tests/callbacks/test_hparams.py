import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from maskrcnn_lit.callbacks.hparams import (
    CHARTS,
    METRICS,
    HyperParameters,
    ScalarLayout,
    flat_values,
    typed_options,
    varying,
)
from maskrcnn_lit.runs.result import RunResult, write_result

CONFIG = {
    "seed": 2,
    "backbone": {"name": "resnet18"},
    "data": {"name": "shapes", "image_size": [800, 1333], "subset": None},
    "optimizer": {"lr": 5e-4},
}
OVERRIDES = [
    "experiment=demo",
    "backbone=resnet18",
    "optimizer.lr=5e-4",
    "seed=2",
    "data.workers=0",
    "run_dir=x",
]


class Notes(Logger):
    """A logger that keeps a config."""

    name = version = "notes"

    def log_hyperparams(self, params: Any) -> None:  # type: ignore[override]
        self.config = params

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass


def trainer_of(run_dir: Path) -> Any:
    """What the callbacks ask of a Trainer."""
    loggers = [
        TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False),
        Notes(),
    ]
    data = SimpleNamespace(train_index=range(14))
    return SimpleNamespace(
        loggers=loggers,
        default_root_dir=str(run_dir),
        datamodule=data,
        is_global_zero=True,
        global_step=0,
    )


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def hparams(run_dir: Path, name: str) -> Any:
    content = events(run_dir).SummaryMetadata(f"_hparams_/{name}").plugin_data.content
    return getattr(plugin_data_pb2.HParamsPluginData.FromString(content), name)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    run_dir = tmp_path / "backbone=resnet18,seed=2"
    write_result(run_dir / "result.json", RunResult("running", overrides=OVERRIDES))
    return run_dir


def test_the_row_of_a_run(job: Path):
    callback, trainer = (
        HyperParameters(names=["backbone.name", "data.name", "data.image_size", "not.there"]),
        trainer_of(job),
    )
    callback.on_train_start(trainer, SimpleNamespace(config=CONFIG))
    start = hparams(job, "session_start_info")
    row = {
        name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()
    }
    typed = {"experiment": "demo", "backbone": "resnet18", "optimizer.lr": 5e-4, "seed": 2}
    chosen = {"data.name": "shapes", "data.image_size": "[800, 1333]"}
    assert row == typed | chosen | {"train_images": 14}
    assert "_hparams_/session_end_info" not in events(job).summary_metadata, "it may yet be killed"
    callback.on_train_end(trainer, SimpleNamespace(config=CONFIG))
    assert hparams(job, "session_end_info").status == api_pb2.STATUS_SUCCESS


def test_the_table_has_what_varies_first_and_the_metrics(job: Path):
    HyperParameters(names=["backbone.name"]).on_train_start(
        trainer_of(job), SimpleNamespace(config=CONFIG)
    )
    table = hparams(job, "experiment")
    assert {info.name for info in table.hparam_infos if info.differs} == {"backbone", "seed"}
    kinds = {info.name: info.type for info in table.hparam_infos}
    assert kinds["seed"] == kinds["train_images"] == api_pb2.DATA_TYPE_FLOAT64
    assert kinds["backbone"] == kinds["experiment"] == api_pb2.DATA_TYPE_STRING
    assert [info.name.tag for info in table.metric_infos] == list(METRICS)
    assert {"val/mask_ap", "val/box_ap", "val/roi_accuracy"} <= set(METRICS)


def test_the_number_of_images_has_one_column(tmp_path: Path):
    for typed, names in ((14, {"data.train_images"}), (99, {"data.train_images", "train_images"})):
        run_dir = tmp_path / str(typed)
        overrides = [f"data.train_images={typed}"]
        write_result(run_dir / "result.json", RunResult("running", overrides=overrides))
        config = {"data": {"train_images": typed}}
        HyperParameters(names=[]).on_train_start(
            trainer_of(run_dir), SimpleNamespace(config=config)
        )
        assert set(hparams(run_dir, "session_start_info").hparams) == names


def test_the_page_of_the_run_and_its_config_stand_under_text(tmp_path: Path):
    result = RunResult("running", command=["maskrcnn-lit", "train", "run_dir=a b"])
    write_result(tmp_path / "result.json", result)
    HyperParameters(names=[]).on_train_start(trainer_of(tmp_path), SimpleNamespace(config=CONFIG))
    shown = {
        name: make_ndarray(events(tmp_path).Tensors(f"{name}/text_summary")[0].tensor_proto)
        .item()
        .decode()
        for name in ("about", "config")
    }
    assert shown["about"].startswith("### command\n\n    maskrcnn-lit train 'run_dir=a b'\n\n")
    assert "### changed options\n\n| option | default | this run |\n" in shown["about"]
    assert json.loads(shown["config"]) == CONFIG
    assert all(line.startswith("    ") for line in shown["config"].splitlines())


@pytest.mark.parametrize("part", ["train", "val"])
def test_every_loss_has_one_chart_of_terms(part: str):
    tags = [
        f"{part}/loss_{name}" for name in ("rpn_box", "rpn_objectness", "class", "mask", "mine")
    ]
    for tag in tags:
        charts = [
            title
            for title, curves in CHARTS["Losses"].items()
            if any(re.match(curve, tag) for curve in curves)
        ]
        assert len(charts) == 1
        assert ("RPN" in charts[0]) == ("rpn" in tag)


def test_a_logger_that_keeps_a_config_gets_it(job: Path):
    trainer = trainer_of(job)
    HyperParameters(names=[]).on_train_start(trainer, SimpleNamespace(config=CONFIG))
    assert trainer.loggers[1].config == CONFIG
    assert not list(job.rglob("hparams.yaml")), "TensorBoard's logger would make one row more"


def test_the_charts_of_custom_scalars(tmp_path: Path):
    ScalarLayout().on_train_start(trainer_of(tmp_path), None)
    (event,) = events(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    assert {
        category.title: {chart.title: tuple(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    } == CHARTS
    assert list(CHARTS) == ["Losses", "AP", "Classes", "Learning", "Speed and memory"]


def test_without_tensorboard_nothing_is_written(job: Path):
    trainer = trainer_of(job)
    trainer.loggers = []
    for callback in (HyperParameters(names=["seed"]), ScalarLayout()):
        callback.on_train_start(trainer, SimpleNamespace(config=CONFIG))
    HyperParameters(names=["seed"]).on_train_end(trainer, SimpleNamespace(config=CONFIG))
    assert not (job / "tensorboard").exists()


def test_options_that_were_typed(tmp_path: Path):
    file = tmp_path / "result.json"
    assert typed_options(file) == {}
    overrides = [
        "+data.new=1",
        "~callbacks.panels",
        "a=true",
        "b=1.5",
        "c=[1,2]",
        "d=x=y",
        "e=null",
        "f=1e-3",
    ]
    means = [
        "logger=wandb",
        "callbacks.panels=null",
        "data.train.images=i",
        "sweep_dir=s",
        "trainer.log_every_n_steps=1",
    ]
    write_result(file, RunResult("running", overrides=[*overrides, *means]))
    expected = {
        "data.new": 1,
        "a": True,
        "b": 1.5,
        "c": "[1,2]",
        "d": "x=y",
        "e": "null",
        "f": 1e-3,
    }
    assert typed_options(file) == expected


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("backbone=resnet18,seed=1", {"backbone", "seed"}),
        ("lr=0.1", {"optimizer.lr"}),
        ("optimizer.lr=0.1", {"optimizer.lr"}),
        ("10-00-00", set()),
    ],
)
def test_what_varies_names_the_folder(folder: str, expected: set[str]):
    assert (
        varying(folder, ["backbone", "backbone.name", "seed", "optimizer.lr", "data.root"])
        == expected
    )


def test_values_by_dotted_names():
    config = {
        "seed": 1,
        "data": {"image_size": [800, 1333], "subset": None, "keep": True},
        "backbone": {"name": "r"},
    }
    names = [
        "seed",
        "data",
        "data.image_size",
        "data.subset",
        "data.keep",
        "backbone.name",
        "seed.deeper",
    ]
    assert flat_values(config, names) == {
        **{"seed": 1, "data.image_size": "[800, 1333]", "data.keep": True, "backbone.name": "r"}
    }
