"""Times each stage of a training step and of inference, batch by batch. Weights may be random."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.postprocess import to_original

StageTimes = dict[str, list[float]]  # stage -> seconds of each batch

# Parts of the model, and the stage just before each.
BEFORE = {
    "backbone": "normalisation",
    "fpn": "",
    "rpn": "anchors",
    "box_head": "proposals and RoIAlign",
    "mask_head": "suppression and RoIAlign",
}


class StageTimer:
    """Measures the time of each stage; synchronizes with a GPU after every stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: StageTimes = {}
        self._last = 0.0

    def start(self) -> None:
        self._last = self._now()

    def lap(self, stage: str) -> None:
        now = self._now()
        self.rows.setdefault(stage, []).append(now - self._last)
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of Lightning's `precision` (devices.resolve_precision)."""
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def time_loading(
    batches: Iterable[Batch], warmup: int, steps: int
) -> tuple[StageTimes, list[Batch]]:
    """Seconds to load each batch while nothing else runs, and the batches."""
    laps, selected = StageTimer(torch.device("cpu")), []
    laps.start()
    for number, batch in zip(range(warmup + steps), batches, strict=False):
        laps.lap("batch")
        selected.append(batch)
        if number < warmup:
            laps.rows.clear()
    return laps.rows, selected


def time_training(
    losses: Callable[[int], dict[str, Any]],
    optimizer: Optimizer,
    *,
    precision: str,
    device: torch.device,
    warmup: int,
    steps: int,
) -> StageTimes:
    """Time forward, backward and optimizer of `losses`, a function of the batch number."""
    laps = StageTimer(device)
    for number in range(warmup + steps):
        if number == warmup:
            laps.rows.clear()
        laps.start()
        with autocast(precision, device):
            total = torch.stack(list(losses(number).values())).sum()
        laps.lap("forward")
        total.backward()
        laps.lap("backward")
        optimizer.step()
        optimizer.zero_grad()
        laps.lap("optimizer")
    return laps.rows


@torch.inference_mode()
def time_inference(
    model: MaskRCNN,
    batches: Sequence[Batch],
    *,
    precision: str,
    device: torch.device,
    warmup: int,
    steps: int,
) -> tuple[StageTimes, int]:
    """Time inference from batches (without targets) to COCO RLEs of the full images; also return
    the number of detections.
    """
    laps, detections = StageTimer(device), 0
    hooks = [
        hook
        for name, before in BEFORE.items()
        if getattr(model, name) is not None
        for hook in _watched(model.get_submodule(name), name, before, laps)
    ]
    for number in range(warmup + steps):
        if number == warmup:
            laps.rows.clear()
            detections = 0
        batch = batches[number % len(batches)]
        laps.start()
        with autocast(precision, device):
            output = model({key: value for key, value in batch.items() if key not in TARGET_KEYS})
        laps.lap("output")
        detections += sum(len(one["scores"]) for one in to_original(output.detections or {}, batch))
        laps.lap("masks to RLE")
    for hook in hooks:
        hook.remove()
    return laps.rows, detections


def _watched(part: nn.Module, name: str, before: str, laps: StageTimer) -> list[Any]:
    ends = part.register_forward_hook(lambda *_: laps.lap(name))
    if not before:
        return [ends]
    return [part.register_forward_pre_hook(lambda *_: laps.lap(before)), ends]


@torch.inference_mode()
def time_calls(
    call: Callable[[int], Any], *, device: torch.device, warmup: int, steps: int
) -> StageTimes:
    """Time `call(i)` end to end; i is the batch number."""
    laps = StageTimer(device)
    for number in range(warmup + steps):
        if number == warmup:
            laps.rows.clear()
        laps.start()
        call(number)
        laps.lap("whole")
    return laps.rows
