"""`trainer.profile`: a trace of some training batches of a real run."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from maskrcnn_lit.errors import plural
from maskrcnn_lit.storage.files import atomic_write, move_into_place, temporary_file
from maskrcnn_lit.terminal.table import text_table

_log = logging.getLogger(__name__)

SKIPPED = 3  # batches before: caches fill, and cuDNN tries its algorithms
ROWS = 25  # of the table
TRACE, TABLE, STAGES = "trace.json", "operators.txt", "stages.txt"
WAITING = "waiting for a batch"
PARTS, ALL = (WAITING, "forward", "backward", "optimizer"), "all"


class ProfileSteps(Callback):
    """Records `steps` training batches after the first few, and writes into `folder` trace.json,
    for https://ui.perfetto.dev, operators.txt, the operators by their own time, and stages.txt, the
    time of each part of a step, which it prints too. A run that ends earlier leaves what was
    recorded, and says so where that is nothing. The main process alone records.

    The trace names the parts of a step: forward (with the losses), backward, optimizer (with the
    clipping of gradients), and what lies between two steps: waiting for a batch, and callbacks.
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
        self._begin(WAITING)

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
            self._begin(WAITING)

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
        lines = stage_table(stage_times(recorded.events()), on_gpu=self._on_gpu)
        atomic_write(self.folder / STAGES, "\n".join(lines) + "\n")
        _log.info("\n".join(lines))
        self._written = True


def stage_times(events: Iterable[Any]) -> dict[str, list[tuple[float, float]]]:
    """Parts of a step, and "all" -> milliseconds of each batch: of the host, and of the GPU for
    what the host has started in it.

    events: of torch's profiler.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PARTS}
    for event in events:
        # a GPU has a second event of the same name
        if event.name in times and event.device_type == DeviceType.CPU:
            times[event.name].append((event.cpu_time_total / 1000, event.device_time_total / 1000))
    batches = list(zip(*times.values(), strict=False))
    times[ALL] = [(sum(p[0] for p in batch), sum(p[1] for p in batch)) for batch in batches]
    return {name: own for name, own in times.items() if own}


def stage_table(times: Mapping[str, Sequence[tuple[float, float]]], *, on_gpu: bool) -> list[str]:
    """Lines like those of `maskrcnn-lit bench`."""
    head = ["milliseconds per batch", "5 %", "median", "95 %", *(["GPU, median"] if on_gpu else [])]
    rows = []
    for name, own in times.items():
        values = np.percentile([host for host, _ in own], [5, 50, 95]).tolist()
        values += [float(np.median([gpu for _, gpu in own]))] if on_gpu else []
        rows.append([name, *(f"{value:.1f}" for value in values)])
    batches = len(times.get(ALL, []))
    return [
        f"{plural(batches, 'batch', 'batches')} of this run:",
        *text_table(head, rows, indent=2),
    ]
