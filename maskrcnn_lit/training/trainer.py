"""Builds Lightning's Trainer from conf/trainer."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from maskrcnn_lit.config.durations import seconds
from maskrcnn_lit.errors import UserError, check_whole, check_within
from maskrcnn_lit.training.average import MovingAverage
from maskrcnn_lit.training.checkpoint import AtomicCheckpointIO, RunCheckpoints
from maskrcnn_lit.training.compile import CompileRegions
from maskrcnn_lit.training.devices import resolve_accelerator, resolve_precision
from maskrcnn_lit.training.monitor import DEFAULT_METRICS, is_better, monitored
from maskrcnn_lit.training.profile import ProfileSteps
from maskrcnn_lit.training.rank_watch import RankWatch

# Arguments of Lightning's Trainer that have another place: see `_checked_options`.
OWN = {
    "accelerator": "use trainer.accelerator",
    "accumulate_grad_batches": "use trainer.accumulate",
    "benchmark": "trainer.deterministic=true turns it off",
    "callbacks": "use +callbacks.NAME._target_=...",
    "check_val_every_n_epoch": "use evaluation.every_n_epochs",
    "default_root_dir": "use run_dir",
    "deterministic": "use trainer.deterministic",
    "devices": "use trainer.devices",
    "enable_checkpointing": "use trainer.checkpoint_every_n_steps and trainer.checkpoint_every",
    "enable_model_summary": "the run prints its own summary",
    "enable_progress_bar": "use callbacks.progress=null",
    "fast_dev_run": "use trainer.check",
    "gradient_clip_algorithm": "use trainer.clip_norm or trainer.clip_value",
    "gradient_clip_val": "use trainer.clip_norm or trainer.clip_value",
    "limit_train_batches": "use trainer.limit_train_batches",
    "limit_val_batches": "use trainer.limit_val_batches",
    "log_every_n_steps": "use trainer.log_every_n_steps",
    "logger": "use logger",
    "max_epochs": "use trainer.epochs",
    "max_steps": "use trainer.steps",
    "max_time": "use trainer.max_time",
    "num_nodes": "use trainer.num_nodes",
    "overfit_batches": "use experiment=overfit",
    "num_sanity_val_steps": "trainer.check=true tries a validation",
    "plugins": "it writes checkpoints and finds the cluster by plugins of its own",
    "precision": "use trainer.precision",
    "profiler": "use trainer.profiler or trainer.profile",
    "strategy": "trainer.devices and trainer.num_nodes decide",
    "use_distributed_sampler": "the data module distributes the images",
}

CHECK_STEPS = 2  # optimizer steps, and batches of validation, of trainer.check

# Each writes profile files into the run folder.
PROFILERS: dict[str, Any] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def build_trainer(
    *,
    run_dir: str | Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    epochs: int | None,
    steps: int | None,
    patience: int | None = None,
    accelerator: str,
    devices: int | str | Sequence[int],
    num_nodes: int,
    precision: str,
    accumulate: int,
    clip_norm: float | None,
    log_every_n_steps: int,
    checkpoint_every_n_steps: int | None,
    evaluate_every_n_epochs: int,
    compile: str = "auto",
    rank_timeout_minutes: float | None = 5.0,
    on_stall: Callable[[str], None] = print,
    on_stop: Callable[[], None] | None = None,
    checkpoint_every: str | None = None,
    keep_best: int = 1,
    max_time: str | None = None,
    ema: float | None = None,
    limit_train_batches: int | None = None,
    limit_val_batches: int | None = None,
    check: bool = False,
    clip_value: float | None = None,
    deterministic: bool | str = False,
    profiler: str | None = None,
    profile: int | None = None,
    options: Mapping[str, Any] | None = None,
    environment: ClusterEnvironment | None = None,
    monitor: str | None = None,
) -> Trainer:
    """A Trainer that writes to `run_dir` and whose runs can be resumed exactly. Call `fit` with a
    data module that has `batch_size` and `resume(*, epoch, batch, together)`. The arguments are
    those of conf/trainer, and evaluation.every_n_epochs.

    environment: of the launcher that started the processes; None: a single process.
    on_stall: see `RankWatch`. on_stop: see `RunCheckpoints`.
    monitor: the metric by which best.ckpt is chosen and `patience` counts; None: mask AP.
    options: arguments of Lightning's Trainer that have no option here.
    UserError: a device that does not exist, an unknown precision, a run without an end.
    """
    if epochs is None and steps is None:
        raise UserError(
            "trainer.epochs and trainer.steps are both null, so the run has no end: set one of them"
        )
    check_whole(1, evaluation__every_n_epochs=evaluate_every_n_epochs)
    counts: dict[str, int | None] = {
        "accumulate": accumulate,
        "num_nodes": num_nodes,
        "log_every_n_steps": log_every_n_steps,
    }
    counts |= {
        "epochs": epochs,
        "steps": steps,
        "patience": patience,
        "checkpoint_every_n_steps": checkpoint_every_n_steps,
        "keep_best": keep_best,
        "profile": profile,
    }
    check_whole(
        1, **{f"trainer__{name}": value for name, value in counts.items() if value is not None}
    )
    if clip_norm is not None:
        check_within(0, math.inf, trainer__clip_norm=clip_norm)
    limit = None if max_time is None else seconds(max_time, "trainer.max_time")
    if check:  # run every part
        epochs, limit_train_batches, limit_val_batches = 1, CHECK_STEPS * accumulate, CHECK_STEPS
    own_options = _checked_options(options or {})
    accelerator = resolve_accelerator(accelerator, devices)
    monitor = monitor or DEFAULT_METRICS[0]
    checkpoints = RunCheckpoints(
        folder=Path(run_dir) / "checkpoints",
        every_n_steps=checkpoint_every_n_steps,
        every_seconds=(
            None
            if checkpoint_every is None
            else seconds(checkpoint_every, "trainer.checkpoint_every")
        ),
        keep_best=keep_best,
        monitor=monitor,
        on_stop=on_stop,
    )
    trainer = Trainer(
        default_root_dir=run_dir,
        callbacks=[
            RankWatch(rank_timeout_minutes, on_stall),
            StopAtStep(steps=steps),
            CompileRegions(compile, total_steps),
            *([] if profile is None else [ProfileSteps(profile, Path(run_dir) / "profile")]),
            *callbacks,
            StopWithoutProgress(patience=patience, monitor=monitor),
            # after callbacks that validate, before what writes checkpoints
            *([] if ema is None else [MovingAverage(ema)]),
            checkpoints,
        ],
        logger=list(loggers),
        plugins=[AtomicCheckpointIO(), environment or LightningEnvironment()],
        # Every parameter gets a gradient in every step, even if no image has an object. A static
        # graph fails in torch 2.14 if the first backward pass only accumulates.
        strategy=DDPStrategy(static_graph=accumulate == 1, gradient_as_bucket_view=True)
        if environment
        else "auto",
        max_epochs=-1 if epochs is None else epochs,
        accelerator=accelerator,
        devices=devices if isinstance(devices, (int, str)) else list(devices),
        num_nodes=num_nodes,
        precision=resolve_precision(precision, accelerator),  # type: ignore[arg-type]  # checked by resolve_precision
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip_norm if clip_value is None else clip_value,
        gradient_clip_algorithm="norm" if clip_value is None else "value",
        max_time=None if limit is None else timedelta(seconds=limit),
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        deterministic=deterministic,  # type: ignore[arg-type]  # true, false or "warn"
        profiler=None if profiler is None else PROFILERS[profiler](run_dir, "profile"),
        check_val_every_n_epoch=evaluate_every_n_epochs,
        log_every_n_steps=log_every_n_steps,
        # it would run before the resumed state is loaded, and takes time
        num_sanity_val_steps=0,
        # cuDNN benchmarks algorithms for new shapes: there are few shapes, each used often. None:
        # Lightning's default.
        benchmark=True if accelerator == "gpu" and not deterministic else None,
        # the data module distributes the images: Lightning's sampler would repeat some
        use_distributed_sampler=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        **own_options,
    )
    if environment:
        _ask_no_signals(trainer)
    return trainer


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """`trainer.options`: arguments of Lightning's Trainer that have no option here.

    Raises: UserError: the Trainer has no such argument, or it is set here.
    """
    known = inspect.signature(Trainer).parameters
    for name in options:
        if name not in known:
            raise UserError(
                f"trainer.options.{name} is not an argument of Lightning's Trainer, which has "
                f"{', '.join(sorted(known.keys() - OWN))} beside those that maskrcnn_lit sets"
            )
        if name in OWN:
            raise UserError(f"trainer.options.{name} is set by maskrcnn_lit: {OWN[name]}")
    return dict(options)


def _ask_no_signals(trainer: Trainer) -> None:
    """Disable Lightning 2.6's broadcast in every step of whether rank zero has received SIGTERM,
    which makes the host wait for the device. `RunCheckpoints` handles signals instead
    (training/stop.py).
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Replaces Lightning's broadcast."""


class StopAtStep(Callback):
    """Ends the run after `steps` optimizer steps, with a validation and a checkpoint as after a
    full epoch.

    Replaces Trainer(max_steps), with which Lightning 2.6 counts an epoch twice when it resumes from
    its end.
    """

    def __init__(self, *, steps: int | None) -> None:
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)  # resumed after the end

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self.steps is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True


class StopWithoutProgress(Callback):
    """Ends the run when `patience` validations in a row bring no better `monitor` than the best
    before them; None: never. NaN, where the validation images have no objects, does not count.

    Replaces Lightning's EarlyStopping, which stops at NaN, and trains one more epoch when a run
    killed after its stop is resumed.
    """

    def __init__(self, *, patience: int | None, monitor: str = "val/mask_ap") -> None:
        self.patience = patience
        self.monitor = monitor
        self.best: float | None = None
        self.validations = 0  # since the best one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)  # resumed after the end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        score = monitored(trainer, self.monitor)
        if math.isnan(score):
            return
        if is_better(score, self.best, self.monitor):
            self.best, self.validations = score, 0
        else:
            self.validations += 1
        if self._stop(trainer):
            pl_module.print(
                f"{self.monitor} has not been better than {self.best:.3f} in {self.validations} "
                "validations, so training stops (trainer.patience)"
            )

    def _stop(self, trainer: Trainer) -> bool:
        stops = self.patience is not None and self.validations >= self.patience
        trainer.should_stop = trainer.should_stop or stops
        return stops

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.validations = state_dict["best"], state_dict["validations"]


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the full run."""
    limits = [callback.steps for callback in trainer.callbacks if isinstance(callback, StopAtStep)]  # type: ignore[attr-defined]
    return int(
        min([trainer.estimated_stepping_batches, *(limit for limit in limits if limit is not None)])
    )


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of a full epoch."""
    if trainer.train_dataloader is None:  # before training, if no number of epochs has needed it
        trainer.fit_loop.setup_data()
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
