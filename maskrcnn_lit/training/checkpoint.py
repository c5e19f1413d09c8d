"""Checkpoints: atomic files of plain data, and the times at which a run writes them.

A checkpoint is Lightning's (weights, optimizer, schedule, loops, callbacks) plus four plain keys:
`config` (the resolved config), `categories` ([[id, name], ...]), both from the module, `position`
(see `Position`) and `spent` (seconds and images of its steps).
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.training.checkpoint_files import load_plain, save_plain
from maskrcnn_lit.training.loggers import rewind
from maskrcnn_lit.training.monitor import DEFAULT_METRICS, falls, is_better, monitored
from maskrcnn_lit.training.stop import AgreedStep, StopRequest


class AtomicCheckpointIO(CheckpointIO):
    """Lets Lightning write and read checkpoints by `save_plain` and `load_plain`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save_plain(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_plain(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Position(TypedDict):
    """Where a run is in the data order, in batches of `together` images: those of all processes,
    BLANKs included. It stays the same when the run goes on with another number of processes.
    """

    epoch: int
    batch: int  # finished batches of that epoch
    batches: int  # of an epoch
    together: int
    parts: int  # batches of all processes that divided one of `together` images


class RunCheckpoints(Checkpoint):
    """Writes last.ckpt every `every_n_steps` optimizer steps, every `every_seconds` and after every
    epoch, and best.ckpt by `monitor`. With `keep_best` above 1, epoch_N.ckpt are the best
    validations, best.ckpt one of them.

    Lightning resumes exactly from only two points, so this writes only there: after an optimizer
    step that is not the last of its epoch, and after a full epoch with its validation. (Between the
    last step and the end of the validation, Lightning 2.6 would skip the validation; with half
    accumulated gradients, their sum is lost.) A scheduler's signal (stop.py) saves at the next of
    these points and ends the run. On resuming it passes the position to the data module, whose
    order depends only on it, rewinds the loggers to it, and restores the seconds and images spent.

    on_stop: called in the main process when a signal ends the run, after last.ckpt is written and
    before any process ends; None: nothing. Ctrl-C does not call it.
    """

    def __init__(
        self,
        *,
        folder: Path,
        every_n_steps: int | None,
        every_seconds: float | None = None,
        keep_best: int = 1,
        monitor: str = "val/mask_ap",
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.every_n_steps, self.every_seconds = every_n_steps, every_seconds
        self.keep_best = keep_best
        self.monitor = monitor
        self.on_stop = on_stop
        self.best: float | None = None
        self.top: list[tuple[float, int]] = []  # (score, epoch) of epoch_N.ckpt, the best first
        self.spent: dict[str, float] = {
            "seconds": 0.0,
            "images": 0.0,
        }  # on steps of earlier processes
        self._began = 0.0
        self._saved = 0.0  # when last.ckpt was written
        self._step = 0
        self._position: Position | None = None
        self._together: int | None = None  # of `Position`; None: as the data module has it
        self._stop = StopRequest()
        self._time_is_up = AgreedStep("maskrcnn_lit/save_at_step")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._saved = time.perf_counter()
        if trainer.ckpt_path is None:
            rewind(
                trainer.loggers, 0
            )  # a run killed before its first checkpoint may have logged values

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = int(trainer.num_training_batches) // self._parts(trainer)
        if self._position and self._position["batches"] != batches:
            raise UserError(
                f"the run had {self._position['batches']} training batches of "
                f"{plural(self._together_of(trainer), 'image')} per epoch and now has {batches}: "
                "resume it with the same data"
            )
        self._step, self._position = trainer.global_step, None
        self._stop.listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop.release()

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """A single-process run that is asked to stop aborts its validation; last.ckpt resumes
        there.
        """
        alone = trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1
        if alone and self._stop.received is not None:
            self._end(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step > self._step
        self._step = trainer.global_step
        epoch_ends = batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop
        if not stepped or epoch_ends:
            return
        stop = self._stop.due(trainer)
        counted = self.every_n_steps and self._step % self.every_n_steps == 0
        if stop or counted or self._waited(trainer):
            self._save(trainer, "last", epoch=trainer.current_epoch, batch=batch_idx + 1)
        if stop:
            self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        """End the run, whose last.ckpt is written, after a signal."""
        if self.on_stop is not None:
            if trainer.is_global_zero and self._stop.received != signal.SIGINT:
                self.on_stop()
            trainer.strategy.barrier()  # the end of another process would end this one, too
        self._stop.interrupt()

    def _waited(self, trainer: Trainer) -> bool:
        """Whether `every_seconds` have passed since last.ckpt: the same in all processes."""
        if self.every_seconds is None:
            return False
        late = time.perf_counter() - self._saved >= self.every_seconds
        return self._time_is_up.due(trainer, late and trainer.is_global_zero)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_monitor(trainer)
        score = monitored(trainer, self.monitor)
        position = {"epoch": trainer.current_epoch + 1, "batch": 0}
        better = is_better(score, self.best, self.monitor)
        # Write them before last.ckpt, which records them: a run killed in between finds the same
        # best again.
        if self.keep_best > 1 and self._is_among_the_best(score):
            name = f"epoch_{trainer.current_epoch}"
            self.top = self._sorted([*self.top, (score, trainer.current_epoch)])[: self.keep_best]
            self._save(trainer, name, **position)
        if better:
            self.best = score
            self._save(trainer, "best", **position)
        self._save(trainer, "last", **position)
        if trainer.is_global_zero:
            self._remove_others()
        if self._stop.due(trainer):
            self._end(trainer)

    def _check_monitor(self, trainer: Trainer) -> None:
        """UserError where a validation has other metrics than a `monitor` that the user chose."""
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if logged and self.monitor not in (*logged, *DEFAULT_METRICS):
            raise UserError(
                f"trainer.monitor={self.monitor} is not a metric of this run's validation, which "
                f"has {', '.join(logged)}: use one of these (trainer.check=true tries it in two "
                "steps)"
            )

    def _is_among_the_best(self, score: float) -> bool:
        worst = self.top[-1][0] if len(self.top) >= self.keep_best else None
        return is_better(score, worst, self.monitor)

    def _sorted(self, top: list[tuple[float, int]]) -> list[tuple[float, int]]:
        """The best first; of equal ones the earlier."""
        sign = 1 if falls(self.monitor) else -1
        return sorted(top, key=lambda own: (sign * own[0], own[1]))

    def _remove_others(self) -> None:
        """Remove epoch_N.ckpt that are no longer among the best."""
        names = {f"epoch_{epoch}.ckpt" for _, epoch in self.top}
        for path in self.folder.glob("epoch_*.ckpt"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _save(self, trainer: Trainer, name: str, *, epoch: int, batch: int) -> None:
        parts = self._parts(trainer)
        self._position = {
            "epoch": epoch,
            "batch": batch // parts,
            "batches": int(trainer.num_training_batches) // parts,
            "together": self._together_of(trainer),
            "parts": parts,
        }
        trainer.save_checkpoint(
            self.folder / f"{name}.ckpt", weights_only=False
        )  # the optimizer too
        self._position = None
        if name == "last":
            self._saved = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["position"] = self._position
        images = float(pl_module.images_seen) * trainer.world_size  # type: ignore[arg-type]
        own = {"seconds": time.perf_counter() - self._began, "images": images}
        checkpoint["spent"] = {name: self.spent[name] + own[name] for name in own}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._position, self.spent = checkpoint.get("position"), checkpoint.get("spent", self.spent)
        if self._position is None:
            raise UserError(
                "this checkpoint has no position to resume from: use last.ckpt of a run"
            )
        # a run of an earlier version has neither `together` nor `parts`
        self._together = self._position.get("together")
        parts, before = self._parts(trainer), self._position.get("parts", 1)
        _count_in(parts, before, checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning adds it
        data.resume(
            epoch=self._position["epoch"],
            batch=self._position["batch"],
            together=self._together_of(trainer),
        )
        rewind(trainer.loggers, checkpoint["global_step"])

    def _together_of(self, trainer: Trainer) -> int:
        return self._together or _images_at_once(trainer)

    def _parts(self, trainer: Trainer) -> int:
        """Batches of all processes that divide one of `together` images."""
        parts, remainder = divmod(self._together_of(trainer), _images_at_once(trainer))
        if parts == 0 or remainder:
            raise UserError(
                f"the run takes its images in batches of {self._together}, which "
                f"{plural(trainer.world_size, 'process', 'processes')} with data.batch_size="
                f"{_images_at_once(trainer) // trainer.world_size} do not divide: choose a smaller "
                "data.batch_size, or other processes"
            )
        return parts

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "top": [list(own) for own in self.top]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        # a run of an earlier version has none
        self.top = [(float(score), int(epoch)) for score, epoch in state_dict.get("top", [])]


def _images_at_once(trainer: Trainer) -> int:
    """Images of one batch of all processes."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning adds it
    return int(data.batch_size) * trainer.world_size


def _count_in(parts: int, before: int, progress: dict[str, dict[str, Any]]) -> None:
    """Convert Lightning's counters of batches, of which `before` divided a batch of the data order
    and now `parts` do. A batch that has begun and not ended is counted as before.
    """
    for tracker in (progress["total"], progress["current"]):
        open_batches = tracker["processed"] - tracker["completed"]
        for name in ("ready", "started", "processed"):
            tracker[name] = tracker[name] * parts // before
        tracker["completed"] = tracker["processed"] - open_batches
