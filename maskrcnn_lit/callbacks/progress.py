"""The progress line of a training run."""

import logging
import math
import time
from typing import Any, TextIO

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from maskrcnn_lit.callbacks.train_meter import Speed
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.evaluation.titles import metric_title
from maskrcnn_lit.terminal.progress import StatusLines
from maskrcnn_lit.training.trainer import steps_per_epoch, total_steps

SMOOTHING = 0.9  # weight of the previous average: a loss from n batches ago weighs 0.9^n


class ProgressLine(ProgressBar):
    """One line for the whole run: epoch, step, time left, images/s, share of time spent waiting for
    data, losses.

    In a terminal it breaks before the losses, to fit into 80 columns, and is overwritten about
    every second; in a file or a pipe a new line is written every `seconds_between_lines`. Losses
    are read from the device only then. A line with the scores ends every validation.
    terminal/progress.py does the writing.
    """

    def __init__(self, *, seconds_between_lines: float = 10.0, out: TextIO | None = None) -> None:
        super().__init__()
        self._lines = StatusLines(out, in_file=seconds_between_lines)
        self.is_enabled = True  # Lightning asks for it
        self._names: list[str] = []
        self._smooth: Tensor | None = None
        self._seen = 0  # images, when a line was last written
        self._speed = Speed()
        self._pace = _Pace()

    def enable(self) -> None:
        self.is_enabled = True

    def disable(self) -> None:
        self.is_enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line; `pl_module.print` calls this."""
        self._print(" ".join(map(str, args)))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """In a terminal, lines that the library logs go above the line too."""
        super().setup(trainer, pl_module, stage)
        for handler in _log_handlers() if self._lines.in_terminal else ():
            handler.addFilter(self._make_room)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._lines.clear()
        for handler in _log_handlers():
            handler.removeFilter(self._make_room)

    def _make_room(self, record: logging.LogRecord) -> bool:
        """Erase the line before a log record is shown; the next one is written below it."""
        self._lines.clear()
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.start(trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed.restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._speed.arrived(pl_module.ready_since)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._names = list(outputs["losses"])
        losses = torch.stack([loss.float() for loss in outputs["losses"].values()])
        self._smooth = (
            losses if self._smooth is None else torch.lerp(losses, self._smooth, SMOOTHING)
        )
        self._speed.done()
        if self._due():
            seen, before = int(pl_module.images_seen), self._seen
            self._seen = seen
            images = (seen - before) * trainer.world_size
            self._lines.show(self._train_text(trainer, self._smooth.tolist(), images))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.pause()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *args: Any,
    ) -> None:
        if self._due():
            batches = sum(map(int, trainer.num_val_batches))
            self._lines.show(f"{_epoch(trainer)}validation: batch {batch_idx + 1} of {batches}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.resume()
        scores = ("val/loss", "val/box_ap", "val/mask_ap", "val/mask_ap50")
        metrics = trainer.callback_metrics
        shown = [
            f"{metric_title(name)} {float(metrics[name]):.3f}" for name in scores if name in metrics
        ]
        step = f"step {trainer.global_step}  " if trainer.state.fn == TrainerFn.FITTING else ""
        self._print(f"{_epoch(trainer)}{step}validation: {', '.join(shown) or 'done'}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lines.clear()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._lines.clear()

    def _due(self) -> bool:
        return self.is_enabled and self._lines.due()

    def _print(self, text: str) -> None:
        if self.is_enabled:
            self._lines.print(text)

    def _train_text(self, trainer: Trainer, losses: list[float], images: int) -> str:
        images_per_second, waiting = self._speed.take(images)
        total = total_steps(trainer)
        parts = [
            f"{name.replace('_', ' ')} {loss:.3f}"
            for name, loss in zip(self._names, losses, strict=True)
        ]
        pace = (
            f"{_epoch(trainer)}step {trainer.global_step}/{total}  "
            f"{_clock(self._pace.left(trainer, total))} left  {images_per_second:.1f} images/s  "
            f"{waiting:.0%} waiting for data"
        )
        losses_text = f"loss {sum(losses):.3f}: {', '.join(parts)}"
        return (
            f"{pace}\n{losses_text.replace('rpn objectness', 'objectness')}"
            if self._lines.in_terminal
            else f"{pace}  {losses_text}"
        )


class _Pace:
    """Estimates the remaining time: the remaining steps, and validations as long as the last
    one.
    """

    def __init__(self) -> None:
        self._first = 0  # step at which this process began
        self._trained = 0.0  # seconds of training before `_mark`
        self._validated = 0.0  # seconds of the last validation
        self._mark = time.monotonic()  # when training, or the current validation, began

    def start(self, step: int) -> None:
        self._first, self._mark = step, time.monotonic()

    def pause(self) -> None:
        self._trained += time.monotonic() - self._mark
        self._mark = time.monotonic()

    def resume(self) -> None:
        self._validated = time.monotonic() - self._mark
        self._mark = time.monotonic()

    def left(self, trainer: Trainer, total: int) -> float:
        """The remaining seconds; call it during training only."""
        step = trainer.global_step
        seconds_per_step = (self._trained + time.monotonic() - self._mark) / max(
            1, step - self._first
        )
        validations = (
            (total - step) / steps_per_epoch(trainer) / (trainer.check_val_every_n_epoch or 1)
        )
        return seconds_per_step * (total - step) + self._validated * math.ceil(validations)


def _log_handlers() -> list[logging.Handler]:
    """The handlers that a command installed for the library's log."""
    return logging.getLogger("maskrcnn_lit").handlers


def _epoch(trainer: Trainer) -> str:
    if trainer.state.fn != TrainerFn.FITTING:
        return ""
    epochs = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}{f'/{epochs}' if epochs and epochs > 0 else ''}  "


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
