"""Logs losses, norms, learning rates, speed and memory during training."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from maskrcnn_lit.callbacks.part_norms import PartNorms
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.training.trainer import total_steps


class Speed:
    """Images a second and the share of time spent waiting for data, since the last `take`.

    Validation is excluded, checkpointing is included. Times are those of the host: on a GPU it may
    wait for data while the device is still busy, so `waiting` is an upper bound of the device's
    idle time.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds, self._waiting = 0.0, 0.0

    def restart(self) -> None:
        """Exclude the time since the last batch."""
        self._last = time.perf_counter()

    def arrived(self, ready_since: float) -> None:
        """Count a batch that arrived now; training was ready for it at `ready_since`."""
        self._waiting += time.perf_counter() - ready_since

    def done(self) -> None:
        """Mark the end of the step on the current batch."""
        now = time.perf_counter()
        self._seconds += now - self._last
        self._last = now

    def take(self, images: float) -> tuple[float, float]:
        """Images per second for `images` images, and the share of time spent waiting (0 to 1),
        since the last call.
        """
        seconds = max(self._seconds, 1e-9)
        result = images / seconds, min(1.0, self._waiting / seconds)
        self._seconds, self._waiting = 0.0, 0.0
        return result


class TrainMeter(Callback):
    """Logs, every `trainer.log_every_n_steps` optimizer steps, after the last step of the run, and
    at the end of an epoch without a row:

    - train/loss and train/loss_*: means over the steps since the last time;
    - train/gradient_norm, train/weight_norm (of all trainable parameters) and lr/*: of the last
    step;
    - gradient_norm/* and update_ratio/*: of that step, by part of the model, see `PartNorms`;
    - train/masks_dropped, if not 0: positive regions of a batch without a mask slot
    (model.mask_head.slots);
    - speed/images_per_second, and speed/data_wait from 0 to 1;
    - memory/host_gb, of this process now, and memory/device_gb, the most on the GPU so far.

    With several processes the losses are those of rank zero.

    On rank zero `first` and `last` are the first and the last logged train/loss, None before the
    first.

    This callback replaces `self.log`, which logs the losses of one step in n, reads each value from
    the device separately, and writes after the checkpoint of the same step: a run killed in between
    would lose the row. The sums are saved in the checkpoint, so a resumed run logs the same means.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._steps = 0.0  # in `_sum`; a batch of several in a step is a share of one
        self._step = 0
        self._logged: int | None = None  # the last epoch with a row
        self.first: float | None = None
        self.last: float | None = None
        self._seen: Tensor | int = 0
        self._dropped: Tensor | int = 0
        self._speed = Speed()
        self._parts = PartNorms()
        self._last_of_epoch = False
        self._total = 0  # steps of the run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._total = total_steps(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed.restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._speed.arrived(pl_module.ready_since)
        self._last_of_epoch = batch_idx + 1 >= trainer.num_training_batches

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: Any, optimizer: Optimizer
    ) -> None:
        """Prepare the norms by part, in the steps that get a row."""
        step = trainer.global_step + 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning adds it
        due = step % every == 0 or self._last_of_epoch or step >= self._total
        if due and trainer.is_global_zero:
            self._parts.before(pl_module.model)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._parts.after()
        losses = outputs["losses"]
        self._names = list(losses)
        values = torch.stack([loss.float() for loss in losses.values()])
        # weighted like the gradients: a resumed run may have other batches in a step
        share = 1 / trainer.accumulate_grad_batches
        values = values * share
        self._sum = values if self._sum is None else self._sum.to(values.device) + values
        self._steps += share
        self._speed.done()
        stepped = trainer.global_step > self._step  # False while gradients are accumulated
        self._step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning adds it
        # StopAtStep comes before this one
        epoch_ends = batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop
        run_ends = epoch_ends and self._step >= self._total
        without_row = run_ends or (epoch_ends and self._logged != trainer.current_epoch)
        if stepped and (self._step % every == 0 or without_row):
            means, batches = self._sum / self._steps, self._steps / share
            self._sum, self._steps = None, 0.0
            self._logged = trainer.current_epoch
            if trainer.is_global_zero:
                self._log(trainer, pl_module, means, batches)

    def _log(self, trainer: Trainer, pl_module: Any, means: Tensor, batches: float) -> None:
        seen, self._seen = pl_module.images_seen - self._seen, pl_module.images_seen
        total = getattr(pl_module, "masks_dropped", 0)
        dropped, self._dropped = total - self._dropped, total
        parts = self._parts.take()
        scalars = (
            *parts.values(),
            *(pl_module.gradient_norm, _weight_norm(pl_module), seen, dropped),
        )
        scalar_tensors = [torch.as_tensor(value, dtype=torch.float32) for value in scalars]
        # read together: the host waits once
        numbers = torch.cat(
            [means, *(value.to(means.device)[None] for value in scalar_tensors)]
        ).tolist()
        losses, numbers = numbers[: len(means)], numbers[len(means) :]
        *by_part, norm, weights, images, lost = numbers
        self.last = sum(losses)
        self.first = self.last if self.first is None else self.first
        images_per_second, data_wait = self._speed.take(images * trainer.world_size)
        metrics = {"epoch": trainer.current_epoch, "train/loss": self.last}
        metrics |= {
            f"train/loss_{name}": loss for name, loss in zip(self._names, losses, strict=True)
        }
        metrics |= {"train/gradient_norm": norm, "train/weight_norm": weights}
        metrics |= dict(zip(parts, by_part, strict=True))
        if lost:
            metrics["train/masks_dropped"] = lost / batches
        metrics |= {f"lr/{part}": rate for part, rate in pl_module.learning_rates.items()}
        metrics |= {"speed/images_per_second": images_per_second, "speed/data_wait": data_wait}
        metrics |= memory(trainer.strategy.root_device)
        for logger in trainer.loggers:
            logger.log_metrics(
                metrics, step=self._step - 1
            )  # Lightning counts finished steps from 0
            logger.save()

    def state_dict(self) -> dict[str, Any]:
        return {
            "sum": self._sum,
            "steps": self._steps,
            "logged": self._logged,
            "first": self.first,
            "last": self.last,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sum = state_dict["sum"]
        # older checkpoints do not have these
        self._steps = state_dict.get("steps", state_dict.get("batches", 0.0))
        self._logged = state_dict.get("logged")
        self.first, self.last = state_dict.get("first"), state_dict.get("last")


def memory(device: torch.device) -> dict[str, float]:
    """memory/host_gb: the resident memory of this process, not of its loaders, where /proc has it;
    memory/device_gb: the most that torch has allocated on a GPU so far. In units of 1e9 bytes.
    """
    used = {}
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used["memory/host_gb"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    if device.type == "cuda":
        used["memory/device_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return used


def _weight_norm(module: LightningModule) -> Tensor:
    """The L2 norm over all trainable parameters."""
    weights = [p.detach() for p in module.parameters() if p.requires_grad]
    return torch.nn.utils.get_total_norm(weights)
