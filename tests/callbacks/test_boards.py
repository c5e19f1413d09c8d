"""Where pictures and tables go, the writers of a trainer, and the step of a validation. Boards of
real packages: test_trackers.py.
"""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from maskrcnn_lit.callbacks.boards import (
    MLflow,
    Table,
    boards,
    markdown,
    tensorboard_writers,
    validation_step,
)
from maskrcnn_lit.training.loggers import CsvLogger


def trainer(**values: Any) -> Any:
    return SimpleNamespace(**values)


def test_the_writers_are_those_of_tensorboard_in_process_0(tmp_path):
    board = TensorBoardLogger(tmp_path, name="", version="")
    loggers = [CsvLogger(path=tmp_path / "metrics.csv"), board]
    first = trainer(is_global_zero=True, loggers=loggers)
    assert tensorboard_writers(first) == [board.experiment]
    assert tensorboard_writers(trainer(is_global_zero=False, loggers=loggers)) == []


@pytest.mark.parametrize(
    ("step", "stage", "expected"),
    [(0, TrainerFn.FITTING, 0), (8, TrainerFn.FITTING, 7), (8, TrainerFn.VALIDATING, 8)],
)
def test_scores_belong_to_the_last_step(step: int, stage: TrainerFn, expected: int):
    assert validation_step(trainer(global_step=step, state=trainer(fn=stage))) == expected


TABLE = Table(["class", "AP"], [["a|b *", 0.25], ["c", None]])


def test_a_table_of_markdown():
    assert markdown(TABLE) == "| class | AP |\n| --- | --- |\n| a\\|b \\* | 0.250 |\n| c |  |"
    assert markdown("one\ntwo") == "    one\n    two", "code"


@pytest.fixture
def event_files(tmp_path: Path) -> EventAccumulator:
    """What TensorBoard gets of a picture, a table and a page."""
    logger = TensorBoardLogger(tmp_path, name="", version="")
    (board,) = boards(trainer(is_global_zero=True, loggers=[logger]))
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    board.picture("val_images/7", pixels, 3)
    board.table("val_tables/classes", TABLE, 4)
    board.page("run", {"command": "x y", "data": TABLE}, 0)
    return EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()


def text_of(events: EventAccumulator, tag: str) -> tuple[int, str]:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.step, make_ndarray(event.tensor_proto).item().decode()


def test_tensorboard_gets_pictures_tables_and_pages(event_files: EventAccumulator):
    (shown,) = event_files.Images("val_images/7")
    pixels = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert shown.step == 3
    assert pixels.ravel().tolist() == list(range(72))
    assert text_of(event_files, "val_tables/classes") == (4, markdown(TABLE))
    page = f"### command\n\n    x y\n\n### data\n\n{markdown(TABLE)}"
    assert text_of(event_files, "run") == (0, page)


class Client:
    """MLflow's, as far as a board asks for it."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.files: dict[str, Any] = {}
        self.tags: dict[str, str] = {}

    def log_image(self, run_id: str, image: Any, *, key: str, step: int, synchronous: bool) -> None:
        self.images[key] = step

    def log_dict(self, run_id: str, content: Any, file: str) -> None:
        self.files[file] = content

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags=self.tags))

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self.tags[name] = value


def test_mlflow_gets_names_that_it_takes_and_lists_its_tables_once():
    client = Client()
    board = MLflow(SimpleNamespace(experiment=client, run_id="r"))  # type: ignore[arg-type]
    board.picture("val_plots/für (x)", np.zeros((2, 2, 3), np.uint8), 5)
    assert client.images == {"val_plots/f_r _x_": 5}
    for _ in range(2):
        board.table("val_tables/classes", TABLE, 5)
    board.page("run", {"command": "x y"}, 0)
    assert client.files == {
        "tables/val_tables/classes.json": {"columns": ["class", "AP"], "data": TABLE.rows},
        "tables/run/command.json": {"columns": ["command"], "data": [["x y"]]},
    }
    listed = json.loads(client.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == list(client.files)


def test_a_logger_without_pictures_is_no_board_and_other_ranks_have_none(tmp_path: Path):
    loggers = [CsvLogger(path=tmp_path / "metrics.csv"), TensorBoardLogger(tmp_path, name="")]
    assert len(boards(trainer(is_global_zero=True, loggers=loggers))) == 1
    assert boards(trainer(is_global_zero=False, loggers=loggers)) == []
