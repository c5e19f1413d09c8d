"""Measures a few steps of a job before a sweep starts: `python -m maskrcnn_lit.launch.trial CONFIG
OUT STEPS`.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.launch import console
from maskrcnn_lit.launch.auto_batch import choose_batch
from maskrcnn_lit.launch.run import build_module, read_data
from maskrcnn_lit.storage.sealed import write_sealed_json
from maskrcnn_lit.training.checkpoint import RunCheckpoints
from maskrcnn_lit.training.devices import count_devices, device_name, peak_memory_bytes
from maskrcnn_lit.training.trainer import build_trainer

VALIDATION_BATCHES = 2


class Stopwatch(Callback):
    """Seconds of each training step, including the wait for its batch, and of each validation
    step.
    """

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._note(trainer, self.training)

    def on_validation_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self._since = time.perf_counter()

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._note(trainer, self.validation)

    def _note(self, trainer: Trainer, seconds: list[float]) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds.append(now - self._since)
        self._since = now


def measure(config: DictConfig, steps: int) -> dict[str, Any]:
    """Measure time and memory of a job with `config`: `steps` training steps after a first one, and
    two validation batches, in one process on one device.

    Returns: start_seconds until the end of the first step, step_seconds and validation_step_seconds
    (medians, of one process), train_images, val_images, batch_size (of one process), accumulate,
    processes (that the job will have), peak_memory_bytes, device.
    """
    choose_batch(config)
    data = read_data(config)  # downloading or drawing data is not timed
    started = time.perf_counter()
    processes = (
        count_devices(config.trainer.accelerator, config.trainer.devices) * config.trainer.num_nodes
    )
    watch = Stopwatch()
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = short_trainer(config, folder, [watch], steps + 1, VALIDATION_BATCHES)
        module = build_module(config, data)
        trainer.fit(module, datamodule=data)
    loops = sum(watch.training[1:]) + sum(watch.validation)
    images = {part: len(ids) for part, ids in data.subset_ids().items()}
    # the job reads the features that its trial computed
    once = module.cached.seconds if module.cached is not None and module.cached.computed else 0.0
    return {
        "start_seconds": time.perf_counter() - started - loops - once,
        "step_seconds": float(np.median(watch.training[1:])),
        "validation_step_seconds": float(np.median(watch.validation)),
        "train_images": images["train"],
        "val_images": images["val"],
        "batch_size": data.batch_size,
        "accumulate": config.trainer.accumulate,
        "processes": processes,
        "peak_memory_bytes": peak_memory_bytes(module.device),
        "device": device_name(module.device),
    }


def short_trainer(
    config: DictConfig,
    folder: str,
    callbacks: Sequence[Callback],
    steps: int,
    validation_batches: int,
) -> Trainer:
    """A trainer of a run's config for a few steps of one process, on the first device of the run,
    which writes nothing but what Lightning puts into `folder`.
    """
    devices = config.trainer.devices
    first = 1 if isinstance(devices, (int, str)) else [devices[0]]
    changed = {
        **{"devices": first, "num_nodes": 1, "steps": steps, "epochs": None, "max_time": None},
        **{"check": False, "profile": None, "profiler": None},
        **{"checkpoint_every": None, "checkpoint_every_n_steps": None},
        "limit_val_batches": validation_batches,
    }
    trainer = build_trainer(
        run_dir=folder,
        callbacks=callbacks,
        loggers=[],
        **{**to_dict(config.trainer), **changed},
        evaluate_every_n_epochs=1,
    )
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, RunCheckpoints)]  # type: ignore[attr-defined]
    return trainer


def main(config: str, out: str, steps: str) -> None:
    write_sealed_json(Path(out), measure(DictConfig(OmegaConf.load(config)), int(steps)))


if __name__ == "__main__":
    console.silence_libraries()
    console.show_library_logs()
    sys.exit(console.run_and_report_errors(lambda: main(*sys.argv[1:])))
