import csv
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.loggers import (
    EVENTS,
    CsvLogger,
    OnceConfiguredMLFlowLogger,
    TrackioLogger,
    mlflow_logger,
    rewind,
    tensorboard_logger,
    trackio_logger,
    wandb_logger,
)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_name_becomes_a_column(tmp_path: Path):
    logger = CsvLogger(path=tmp_path / "metrics.csv")
    logger.log_metrics({"epoch": 0, "train/loss": 1.5}, step=0)
    logger.log_metrics({"epoch": 0, "val/mask_ap": 0.25}, step=1)
    logger.log_metrics({"epoch": 1, "train/loss": 0.1 + 0.2}, step=2)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,train/loss,val/mask_ap\n0,0,1.5,\n1,0,,0.25\n2,1,0.30000000000000004,\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [
        "metrics.csv"
    ]  # nothing temporary, no folder of versions


def test_rewind_drops_later_rows_and_what_was_cut_off(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path=path)
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step=step)
    with open(path, "a") as file:
        file.write("5,0.")  # killed while writing
    second = CsvLogger(path=path)
    rewind([second], 3)
    second.log_metrics({"train/loss": 30.0}, step=3)
    assert [(row["step"], row["train/loss"]) for row in rows(path)] == [
        *(("0", "0.0"), ("1", "1.0"), ("2", "2.0")),
        ("3", "30.0"),
    ]


def test_a_logger_that_was_not_rewound_adds_to_the_table(tmp_path: Path):
    CsvLogger(path=tmp_path / "metrics.csv").log_metrics({"a": 1.0}, step=0)
    CsvLogger(path=tmp_path / "metrics.csv").log_metrics({"b": 2.0}, step=1)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "a": "1.0", "b": ""},
        {"step": "1", "a": "", "b": "2.0"},
    ]


def test_rewind_of_nothing(tmp_path: Path):
    rewind([CsvLogger(path=tmp_path / "metrics.csv")], 0)
    assert not list(tmp_path.iterdir())


def test_tensorboard_writes_into_the_run_folder_whose_name_it_shows(tmp_path: Path):
    logger = tensorboard_logger(run_dir=tmp_path / "seed=1,lr=0.1")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.save()
    (file,) = (tmp_path / "seed=1,lr=0.1").iterdir()
    assert file.match(EVENTS), "and no hparams.yaml beside config.yaml"


def test_a_run_of_an_older_version_goes_on_in_its_folder(tmp_path: Path):
    (tmp_path / "tensorboard").mkdir()
    logger = tensorboard_logger(run_dir=tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.save()
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.match(EVENTS)


def test_tensorboard_forgets_what_a_resumed_run_logs_again(tmp_path: Path):
    first = tensorboard_logger(run_dir=tmp_path)
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.save()  # killed here: never closed
    second = tensorboard_logger(run_dir=tmp_path)
    rewind([second], 3)
    for step in (3, 4, 5):
        second.log_metrics({"train/loss": 10.0 * step}, step=step)
    second.save()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        *((0, 0.0), (1, 1.0), (2, 2.0)),
        *((3, 30.0), (4, 40.0), (5, 50.0)),
    ]


def test_a_logger_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Lightning finds it, or the package finds what it needs itself."""
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(
        UserError,
        match=r"logger=wandb needs .* not installed: pip install 'maskrcnn_lit\[wandb\]'$",
    ):
        wandb_logger(run_dir=tmp_path, project="any")
    message = r"logger=mlflow needs .* not installed: pip install 'maskrcnn_lit\[mlflow\]'$"
    where = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(UserError, match=message):
        mlflow_logger(run_dir=tmp_path, experiment="any", tracking_uri=where)

    def no_sqlalchemy(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("No module named 'sqlalchemy'")

    monkeypatch.setattr(OnceConfiguredMLFlowLogger, "__init__", no_sqlalchemy)
    with pytest.raises(UserError, match=message):
        mlflow_logger(run_dir=tmp_path, experiment="any", tracking_uri=where)
    assert not (tmp_path / "wandb_id").exists()
    assert not (tmp_path / "mlflow_run_id").exists()


def test_of_several_processes_the_first_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskrcnn_lit.training.loggers.is_rank_zero", lambda: False)
    assert isinstance(wandb_logger(run_dir=tmp_path, project="any"), DummyLogger)
    assert isinstance(
        mlflow_logger(run_dir=tmp_path, experiment="any", tracking_uri=None), DummyLogger
    )
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_goes_on_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, second = (wandb_logger(run_dir=tmp_path / "seed=1", project="any") for _ in range(2))
    assert first.version == second.version == (tmp_path / "seed=1" / "wandb_id").read_text()
    assert first.version != wandb_logger(run_dir=tmp_path / "seed=2", project="any").version
    assert first.name == "any"  # Lightning's name of a project


def test_a_run_of_wandb_agent_has_the_number_that_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SWEEP_ID", "s1"), ("RUN_ID", "abc123")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert wandb_logger(run_dir=tmp_path / "a", project="any").version == "abc123"
    assert (tmp_path / "a" / "wandb_id").read_text() == "abc123"
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    assert wandb_logger(run_dir=tmp_path / "a", project="any").version == "abc123", "it resumes"


@pytest.mark.long
def test_a_resumed_run_goes_on_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for run_dir in ("outputs/seed=1", "moved/seed=1"):
        logger = mlflow_logger(run_dir=tmp_path / "seed=1", experiment="any", tracking_uri=None)
        logger.log_hyperparams({"run_dir": run_dir, "optimizer": {"lr": 0.1}})
        logger.log_metrics({"val/mask_ap": 0.5}, step=1)
        logger.finalize("success")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("any").experiment_id])
    assert run.info.run_name == "seed=1"
    assert run.info.run_id == (tmp_path / "seed=1" / "mlflow_run_id").read_text()
    assert run.data.params == {"run_dir": "outputs/seed=1", "optimizer/lr": "0.1"}
    assert len(client.get_metric_history(run.info.run_id, "val/mask_ap")) == 2, (
        "of both: MLflow forgets nothing"
    )


class Runs:
    """Trackio as far as a logger asks for it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def init(self, project: str, **options: Any) -> Any:
        self.asked.append({"project": project, **options})
        return SimpleNamespace(project=project, name=options["name"], config={})


def test_a_resumed_run_goes_on_in_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its name, which runs in folders of the same name do not share."""
    runs = Runs()
    monkeypatch.setitem(sys.modules, "trackio", runs)
    for folder in ("a/seed=1", "a/seed=1", "b/seed=1"):
        trackio_logger(run_dir=tmp_path / folder, project="any")
    first, again, other = runs.asked
    assert first["name"].startswith("seed=1 ")
    assert first["group"] == "a"
    assert (first["resume"], again["resume"], other["resume"]) == ("never", "allow", "never")
    assert first["name"] == again["name"] != other["name"]


def test_without_trackio_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"logger=trackio needs .*'maskrcnn_lit\[trackio\]'$"):
        trackio_logger(run_dir=tmp_path, project="any")


def test_trackio_gets_config_and_numbers():
    logged: list[Any] = []
    run = SimpleNamespace(
        project="p", name="n", config={}, log=lambda values, step: logged.append((values, step))
    )
    logger = TrackioLogger(run)
    logger.log_hyperparams({"seed": 1})
    logger.log_metrics({"train/loss": 0.5}, step=3)
    assert run.config == {"seed": 1}
    assert logged == [({"train/loss": 0.5}, 3)]
    assert (logger.name, logger.version) == ("p", "n")


def test_wandb_without_a_key_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("maskrcnn_lit.training.loggers._wandb_key", lambda: None)
    with pytest.raises(UserError, match="wandb login"):
        wandb_logger(run_dir=tmp_path, project="p")


def test_a_server_that_is_down_is_one_sentence(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"127.0.0.1:{port} does not answer"):
        mlflow_logger(run_dir=tmp_path, experiment="e", tracking_uri=f"http://127.0.0.1:{port}")
