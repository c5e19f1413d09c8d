"""What is measured while training runs: losses, learning rates, speed."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.training.trainer import total_steps


class Speed:
    """Images a second and the share of time spent waiting for data, since the last `take`.

    Validation is not counted, writing checkpoints is. The time is the host's: on a GPU it may wait
    for data while the device is still busy, so `waiting` is the most that the device can have lost.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds, self._waiting = 0.0, 0.0

    def restart(self) -> None:
        """The time from the last batch until now is not counted."""
        self._last = time.perf_counter()

    def arrived(self, ready_since: float) -> None:
        """A batch is there, which training has been ready for since `ready_since`."""
        self._waiting += time.perf_counter() - ready_since

    def done(self) -> None:
        """It has been trained on."""
        now = time.perf_counter()
        self._seconds += now - self._last
        self._last = now

    def take(self, images: float) -> tuple[float, float]:
        """Images a second when there were so many, share of waiting (0 to 1)."""
        seconds = max(self._seconds, 1e-9)
        result = images / seconds, min(1.0, self._waiting / seconds)
        self._seconds, self._waiting = 0.0, 0.0
        return result


class TrainMeter(Callback):
    """Logs, every `trainer.log_every_n_steps` optimizer steps, after the last step of the run, and
    at the end of an epoch without a row:

    - train/loss and train/loss_*: means over the steps since the last time;
    - train/gradient_norm, train/weight_norm (of all that learns) and lr/*: of the last step;
    - train/masks_dropped, where there are any: regions of a batch with an object but without a mask
      slot (model.mask_head.slots);
    - speed/images_per_second, and speed/data_wait from 0 to 1.

    With several processes the losses are those of process 0.

    In process 0 `first` and `last` are the first and the last train/loss that were logged, None
    before.

    `self.log` in the training step would do it too, but logs the losses of one step in n, reads
    each value from the device on its own, and writes after the checkpoint of the same step: a run
    that was killed in between would lack the row. The sums go into the checkpoint, so a resumed run
    logs the same means.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._batches = 0
        self._step = 0
        self._logged: int | None = None  # the last epoch with a row
        self.first: float | None = None
        self.last: float | None = None
        self._seen: Tensor | int = 0
        self._dropped: Tensor | int = 0
        self._speed = Speed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed.restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._speed.arrived(pl_module.ready_since)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        losses = outputs["losses"]
        self._names = list(losses)
        values = torch.stack([loss.float() for loss in losses.values()])
        self._sum = values if self._sum is None else self._sum.to(values.device) + values
        self._batches += 1
        self._speed.done()
        stepped = trainer.global_step > self._step  # False while gradients are accumulated
        self._step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning adds it
        # StopAtStep comes before this one
        epoch_ends = batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop
        run_ends = epoch_ends and self._step >= total_steps(trainer)
        without_row = run_ends or (epoch_ends and self._logged != trainer.current_epoch)
        if stepped and (self._step % every == 0 or without_row):
            means, batches = self._sum / self._batches, self._batches
            self._sum, self._batches = None, 0
            self._logged = trainer.current_epoch
            if trainer.is_global_zero:
                self._log(trainer, pl_module, means, batches)

    def _log(self, trainer: Trainer, pl_module: Any, means: Tensor, batches: int) -> None:
        seen, self._seen = pl_module.images_seen - self._seen, pl_module.images_seen
        total = getattr(pl_module, "masks_dropped", 0)
        dropped, self._dropped = total - self._dropped, total
        scalars = (pl_module.gradient_norm, seen, dropped)
        scalar_tensors = [torch.as_tensor(value, dtype=torch.float32) for value in scalars]
        # read together: the host waits once
        *losses, norm, images, lost = torch.cat(
            [means, *(value.to(means.device)[None] for value in scalar_tensors)]
        ).tolist()
        self.last = sum(losses)
        self.first = self.last if self.first is None else self.first
        images_per_second, data_wait = self._speed.take(images * trainer.world_size)
        metrics = {"epoch": trainer.current_epoch, "train/loss": self.last}
        metrics |= {
            f"train/loss_{name}": loss for name, loss in zip(self._names, losses, strict=True)
        }
        metrics |= {"train/gradient_norm": norm, "train/weight_norm": _weight_norm(pl_module)}
        if lost:
            metrics["train/masks_dropped"] = lost / batches
        metrics |= {f"lr/{part}": rate for part, rate in pl_module.learning_rates.items()}
        metrics |= {"speed/images_per_second": images_per_second, "speed/data_wait": data_wait}
        for logger in trainer.loggers:
            logger.log_metrics(
                metrics, step=self._step - 1
            )  # Lightning counts finished steps from 0
            logger.save()

    def state_dict(self) -> dict[str, Any]:
        return {
            "sum": self._sum,
            "batches": self._batches,
            "logged": self._logged,
            "first": self.first,
            "last": self.last,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sum, self._batches = state_dict["sum"], state_dict["batches"]
        # older checkpoints do not have these
        self._logged = state_dict.get("logged")
        self.first, self.last = state_dict.get("first"), state_dict.get("last")


def _weight_norm(module: LightningModule) -> float:
    """Of the parameters that learn, all together."""
    weights = [p.detach() for p in module.parameters() if p.requires_grad]
    return float(torch.nn.utils.get_total_norm(weights))
