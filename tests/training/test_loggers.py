import csv
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn_lit.training.loggers import CsvLogger, rewind


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
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]  # nothing temporary, no folder of versions


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
    assert rows(tmp_path / "metrics.csv") == [{"step": "0", "a": "1.0", "b": ""}, {"step": "1", "a": "", "b": "2.0"}]


def test_rewind_of_nothing(tmp_path: Path):
    rewind([CsvLogger(path=tmp_path / "metrics.csv")], 0)
    assert not list(tmp_path.iterdir())


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)


def test_tensorboard_forgets_what_a_resumed_run_logs_again(tmp_path: Path):
    first = tensorboard(tmp_path)
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.save()  # killed here: never closed
    second = tensorboard(tmp_path)
    rewind([second], 3)
    for step in (3, 4, 5):
        second.log_metrics({"train/loss": 10.0 * step}, step=step)
    second.save()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        *((0, 0.0), (1, 1.0), (2, 2.0)),
        *((3, 30.0), (4, 40.0), (5, 50.0)),
    ]
