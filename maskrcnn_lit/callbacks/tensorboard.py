"""The TensorBoard writers of a trainer, and the step at which validation is logged."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn


def tensorboard_writers(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of a run; none but in process 0."""
    if not trainer.is_global_zero:
        return []
    return [
        logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)
    ]


def validation_step(trainer: Trainer) -> int:
    """The step that Lightning gives to the scores of the validation that runs: of the last
    optimizer step during `fit`, and one more in a validation of its own at the end.
    """
    return max(0, trainer.global_step - (trainer.state.fn == TrainerFn.FITTING))
