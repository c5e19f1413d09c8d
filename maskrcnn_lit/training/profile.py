"""`trainer.profile`: a trace of some training batches of a real run."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from maskrcnn_lit.storage.files import atomic_write, move_into_place, temporary_file

_log = logging.getLogger(__name__)

SKIPPED = 3  # batches before: caches fill, and cuDNN tries its algorithms
ROWS = 25  # of the table
TRACE, TABLE = "trace.json", "operators.txt"


class ProfileSteps(Callback):
    """Records `steps` training batches after the first few, and writes into `folder` trace.json,
    for https://ui.perfetto.dev, and operators.txt, the operators by their own time. A run that ends
    earlier leaves what was recorded, and says so where that is nothing. The main process alone
    records.

    The trace names the parts of a step: forward (with the losses), backward, optimizer (with the
    clipping of gradients), and what lies between two steps: waiting for a batch.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps = steps
        self.folder = folder
        self._profile: Any = None
        self._part: Any = None  # that runs now
        self._on_gpu = self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kinds = [ProfilerActivity.CPU]
        self._on_gpu = pl_module.device.type == "cuda"
        if self._on_gpu:
            kinds.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=kinds,
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()
        self._begin("waiting for a batch")

    def on_train_batch_start(self, *args: Any) -> None:
        self._begin("forward")

    def on_before_backward(self, *args: Any) -> None:
        self._begin("backward")

    def on_after_backward(self, *args: Any) -> None:
        self._begin("optimizer")

    def on_train_batch_end(self, *args: Any) -> None:
        if self._profile is not None:
            self._end()
            self._profile.step()
            self._begin("waiting for a batch")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _begin(self, part: str) -> None:
        self._end()
        if self._profile is not None:
            self._part = record_function(part)
            self._part.__enter__()

    def _end(self) -> None:
        if self._part is not None:
            self._part.__exit__(None, None, None)
            self._part = None

    def _stop(self) -> None:
        self._end()
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            if not self._written:
                _log.info(
                    f"trainer.profile={self.steps} has recorded nothing: it begins after "
                    f"{SKIPPED} batches, and the run has ended before"
                )

    def _write(self, recorded: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(self.folder / TRACE) as partial:
            recorded.export_chrome_trace(str(partial))
            move_into_place(partial, self.folder / TRACE)
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=ROWS)
        atomic_write(self.folder / TABLE, table)
        self._written = True
