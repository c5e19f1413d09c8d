"""Where pictures and tables of a run go: TensorBoard, Weights & Biases, MLflow, Trackio. Numbers go
there by Lightning's loggers.
"""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from maskrcnn_lit.training.loggers import TrackioLogger


class Table(NamedTuple):
    """Rows of texts, numbers and None, as long as the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Board(Protocol):
    """step: as that of logged numbers; tag: GROUP/NAME; pixels: H W 3 or H W 4 uint8."""

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None: ...

    def table(self, tag: str, table: Table, step: int) -> None: ...

    def page(self, tag: str, sections: Mapping[str, Table | str], step: int) -> None:
        """Tables and texts with their titles."""


class _Sections:
    """A page as a table for each section; a text is a table of one cell."""

    def table(self, tag: str, table: Table, step: int) -> None:
        raise NotImplementedError

    def page(self, tag: str, sections: Mapping[str, Table | str], step: int) -> None:
        for title, content in sections.items():
            table = Table([title], [[content]]) if isinstance(content, str) else content
            self.table(f"{tag}/{title}", table, step)


class TensorBoard:
    """Pictures in IMAGES; tables and pages as markdown in TEXT."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.writer: Any = logger.experiment

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self.writer.add_image(tag, pixels, step, dataformats="HWC")
        self.writer.flush()

    def table(self, tag: str, table: Table, step: int) -> None:
        self.writer.add_text(tag, markdown(table), step)
        self.writer.flush()

    def page(self, tag: str, sections: Mapping[str, Table | str], step: int) -> None:
        parts = [f"### {title}\n\n{markdown(content)}" for title, content in sections.items()]
        self.writer.add_text(tag, "\n\n".join(parts), step)
        self.writer.flush()


class WeightsAndBiases(_Sections):
    """Pictures and tables as media of the run, against the step of its numbers."""

    def __init__(self, logger: WandbLogger) -> None:
        self.run: Any = logger.experiment

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        import wandb

        self._log(tag, wandb.Image(pixels), step)

    def table(self, tag: str, table: Table, step: int) -> None:
        import wandb

        rows = [list(row) for row in table.rows]
        content = wandb.Table(columns=list(table.head), data=rows, allow_mixed_types=True)
        self._log(tag, content, step)

    def _log(self, tag: str, content: Any, step: int) -> None:
        self.run.log({tag: content, "trainer/global_step": step})


class MLflow(_Sections):
    """Pictures by step; tables as artifacts in the form of `mlflow.log_table`, which needs pandas:
    tables/TAG.json, each time in place of the last one.
    """

    def __init__(self, logger: MLFlowLogger) -> None:
        self.client: Any = logger.experiment
        self.run_id: Any = logger.run_id

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        key = _plain(tag)
        self.client.log_image(self.run_id, pixels, key=key, step=step, synchronous=True)

    def table(self, tag: str, table: Table, step: int) -> None:
        file = f"tables/{_plain(tag)}.json"
        content = {"columns": list(table.head), "data": [list(row) for row in table.rows]}
        self.client.log_dict(self.run_id, content, file)
        name = "mlflow.loggedArtifacts"
        listed = json.loads(self.client.get_run(self.run_id).data.tags.get(name, "[]"))
        entry = {"path": file, "type": "table"}
        if entry not in listed:
            self.client.set_tag(self.run_id, name, json.dumps([*listed, entry]))


class Trackio(_Sections):
    """Pictures and tables as media of the run."""

    def __init__(self, logger: TrackioLogger) -> None:
        self.run = logger.run

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        import trackio

        self.run.log({tag: trackio.Image(pixels)}, step=step)

    def table(self, tag: str, table: Table, step: int) -> None:
        import trackio

        rows = [list(row) for row in table.rows]
        self.run.log({tag: trackio.Table(columns=list(table.head), data=rows)}, step=step)


def boards(trainer: Trainer) -> list[Board]:
    """Those of the trainer's loggers; none on all ranks but rank zero."""
    if not trainer.is_global_zero:
        return []
    return [board for logger in trainer.loggers if (board := _board(logger)) is not None]


def _board(logger: Logger) -> Board | None:
    kinds: tuple[tuple[type, type], ...] = (
        (TensorBoardLogger, TensorBoard),
        (WandbLogger, WeightsAndBiases),
        (MLFlowLogger, MLflow),
        (TrackioLogger, Trackio),
    )
    board: Board | None = next(
        (made(logger) for kind, made in kinds if isinstance(logger, kind)), None
    )
    return board


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


def markdown(table: Table | str) -> str:
    """A table of markdown, numbers with three digits; a text becomes code."""
    if isinstance(table, str):
        return textwrap.indent(table, "    ")
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = " ".join(str(value).split())
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text) if text != "---" else text


def _plain(tag: str) -> str:
    """As MLflow takes it for keys and files."""
    return re.sub(r"[^\w\-./ ]", "_", tag, flags=re.ASCII)
