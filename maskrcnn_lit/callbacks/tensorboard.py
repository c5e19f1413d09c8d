"""The TensorBoard writers of a trainer, and the step at which validation is logged."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn


def tensorboard_writers(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of a run; empty on all ranks but rank zero."""
    if not trainer.is_global_zero:
        return []
    return [
        logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)
    ]


def validation_step(trainer: Trainer) -> int:
    """The step under which Lightning logs the current validation: the last optimizer step during
    `fit`, one more in a separate validation at the end.
    """
    return max(0, trainer.global_step - (trainer.state.fn == TrainerFn.FITTING))
