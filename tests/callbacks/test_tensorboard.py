"""The writers of a trainer, and the step of a validation."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from maskrcnn_lit.callbacks.tensorboard import tensorboard_writers, validation_step
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
