"""The LightningModule: a training step, a validation step, the optimizer. It emits detections and
scores nothing.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.training.nonfinite import FiniteGuard, Step, write_step
from maskrcnn_lit.training.optimizer import Length, OptimizerAndSchedule, follow
from maskrcnn_lit.training.plateau import Plateau
from maskrcnn_lit.training.trainer import steps_per_epoch, total_steps

_log = logging.getLogger(__name__)


def step_seed(*numbers: int) -> int:
    """64 bits that are a function of `numbers` (each >= 0) alone, on every machine and version of
    NumPy.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def over_all_processes(losses: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Means over this process's samples -> means over those of all, and the weights of this
    process's own.

    losses: L, each the mean of so many as `counts` (L) says, and 0 where it is of none.

    DDP averages the gradients of the processes. With `losses * weights` on each, what it gets is
    the gradient of the mean over all samples, so that two processes learn as one with both batches
    does. Nothing is read by the host.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return losses.detach(), torch.ones_like(losses)
    total = torch.stack([losses.detach() * counts, counts.to(losses.dtype)])
    dist.all_reduce(total)
    sums, every = total[0], total[1].clamp(min=1)
    return sums / every, counts * dist.get_world_size() / every


def config_digest(config: dict[str, Any]) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


class DetectionModule(LightningModule):
    """Trains `model`, whose forward takes a batch and returns an Output (losses, detections,
    box_labels).

    model: in train mode it gives the losses, in eval mode detections, and losses too where the
        batch has targets.
    optimizer: `adamw` or `sgd` of training/optimizer.py with all but model, batch_size, steps and
        fused given.
    categories: of the labels 1..K; with `config`, the resolved config as plain data, they go into
        every checkpoint.
    seed: >= 0; all randomness of the steps comes from it.

    What is sampled of an image hangs on its seed in the batch alone: not on the process, nor on its
    place in a batch. Layers that draw for themselves (dropout, stochastic depth) find a random
    state that is set anew before every step from (seed, process, epoch, batch). None of it depends
    on what was done before, so a resumed run draws what the unbroken one would have drawn, whatever
    else (a validation, a callback, the start of loader processes) has drawn from torch's generators
    in between.

    `training_step` logs nothing: its losses, those of the batches of all processes together, go to
    `TrainMeter`, which reads them from the device every few steps.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Callable[..., OptimizerAndSchedule],
        categories: Sequence[Category],
        config: dict[str, Any],
        seed: int,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise UserError(f"seed is {seed}; expected 0 or more")
        json.dumps(
            config
        )  # raises if it is not plain: the checkpoints would not load with weights_only=True
        self.model = model
        self.optimizer = optimizer
        self.categories = tuple(categories)
        self.config = config
        self.seed = seed
        self.gradient_norm: Tensor | None = None  # of the last optimizer step, before clipping
        self.learning_rates: dict[
            str, float
        ] = {}  # of the last optimizer step, by part of the model
        self.images_seen: Tensor | int = (
            0  # in training, by this process; those that fill a batch do not count
        )
        self.masks_dropped: Tensor | int = 0  # positives without a mask slot, as `images_seen`
        self.ready_since = 0.0  # when training was ready for its next batch, by time.perf_counter
        self._guard = FiniteGuard()

    def setup(self, stage: str) -> None:
        """Raises UserError for a process with another config than the first, and where torch would
        raise in the first step: its SyncBatchNorm gathers on GPUs alone.
        """
        own = config_digest(self.config)
        if self.trainer.strategy.broadcast(own) != own:
            raise UserError(
                f"process {self.global_rank} has another config than process 0: start all of them with one command"
            )
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        sync = any(isinstance(layer, nn.SyncBatchNorm) for layer in self.model.modules())
        if sync and on_cpu and self.trainer.world_size > 1:
            raise UserError(
                f"norm=sync needs CUDA for {self.trainer.world_size} processes, and these are on the CPU: use group "
                "or batch, or one process"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        seed = step_seed(0, self.seed, self.global_rank, self.current_epoch, batch_idx)
        torch.manual_seed(seed)
        output = self.model(batch)
        own, counts = (
            torch.stack(list(values.values())) for values in (output.losses, output.counts)
        )
        means, weights = over_all_processes(own, counts)
        own = own * weights
        self._guard.record(
            batch, dict(zip(output.losses, own.detach(), strict=True)), seed, weights
        )
        self.images_seen = (
            self.images_seen + batch["readable"].sum()
        )  # a tensor: nothing waits for the device
        if output.masks_dropped is not None:
            self.masks_dropped = self.masks_dropped + output.masks_dropped
        return {"loss": own.sum(), "losses": dict(zip(output.losses, means, strict=True))}

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """The model's Output for `batch`; logs the mean of each loss over all images."""
        output = self.model(batch)
        if output.losses:
            total = torch.stack(list(output.losses.values())).sum()
            values = {"val/loss": total} | {
                f"val/loss_{name}": loss for name, loss in output.losses.items()
            }
            self.log_dict(
                values,
                batch_size=int(batch["readable"].sum()),
                sync_dist=True,
                add_dataloader_idx=False,
            )
        return output

    def configure_optimizers(self) -> Any:
        trainer = self.trainer
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning adds it
        steps, images = (
            Length(total_steps(trainer), steps_per_epoch(trainer)),
            len(data.train_index),
        )
        full_batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        # An epoch may be shorter than a batch or than the batches to accumulate, and images of
        # several shapes may fill none: then the average counts.
        fills = images >= full_batch and images / steps.epoch > full_batch / 2
        batch_size = full_batch if fills else min(full_batch, math.ceil(images / steps.epoch))
        plan = self.optimizer(
            self.model,
            batch_size=batch_size,
            steps=steps,
            # With 16-mixed Lightning has the scaler unscale gradients before clipping, which fused
            # optimizers do later.
            fused=self.device.type == "cuda" and trainer.precision != "16-mixed",
        )
        if trainer.is_global_zero:
            if batch_size < full_batch:
                _log.info(
                    f"a step has {batch_size} images, not {full_batch}: an epoch has {images} images in "
                    f"{steps.epoch} step{'s' if steps.epoch > 1 else ''}"
                )
            _log.info(plan.text)
        return {
            "optimizer": plan.optimizer,
            "lr_scheduler": {"scheduler": plan.schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters, or each value, and stop if it or a loss is not finite. Lightning
        calls this before every optimizer step, with unscaled gradients, whether there is a limit or
        not.
        """
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        if gradient_clip_val:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if gradient_clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                torch.nn.utils.clip_grads_with_norm_(
                    parameters, gradient_clip_val, self.gradient_norm
                )
        self.learning_rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
        bad = self._guard.check(
            optimizer,
            number=self.trainer.global_step,
            epoch=self.current_epoch,
            learning_rates=self.learning_rates,
            gradient_norm=self.gradient_norm,
            norm_counts=self.trainer.precision != "16-mixed",
        )
        self._stop_at(bad)

    def on_train_start(self) -> None:
        schedule: Any = self.lr_schedulers()
        follow(schedule)

    def on_validation_end(self) -> None:
        """A schedule that waits for a plateau has the scores now, and last.ckpt comes after this."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        schedule: Any = self.lr_schedulers()
        factor = getattr(schedule, "lr_lambdas", [None])[0]
        if not isinstance(factor, Plateau):
            return
        if factor.observe(self.trainer.callback_metrics):
            follow(schedule)
            if self.trainer.is_global_zero:
                rate = max(group["lr"] for group in schedule.optimizer.param_groups)
                _log.info(
                    f"{factor.monitor} is not better than {factor.best:.3f} after "
                    f"{plural(factor.patience, 'validation')}: the learning rate is multiplied by "
                    f"{factor.factor:g}, to {rate:.3g}"
                )

    def on_train_epoch_start(self) -> None:
        self.ready_since = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.ready_since = (
            time.perf_counter()
        )  # after the callbacks, whose time is no waiting for data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_at(self._guard.finish())
        checkpoint["config"] = self.config
        checkpoint["categories"] = [[category.id, category.name] for category in self.categories]

    def _stop_at(self, bad: Step | None) -> None:
        if bad is None:
            return
        rank = f"_rank{self.global_rank}" if self.trainer.world_size > 1 else ""
        raise UserError(
            write_step(
                Path(self.trainer.default_root_dir) / f"nonfinite_step{bad.number}{rank}.pt",
                bad,
                model=self.model,
                precision=str(self.trainer.precision),
                accumulate=self.trainer.accumulate_grad_batches,
                extra={"config": self.config, "seed": self.seed},
            )
        )
