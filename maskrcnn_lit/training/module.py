"""The LightningModule: training step, validation step and optimizer. It returns detections; it does
not score them.
"""

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
from maskrcnn_lit.model.mask_head import check_takes_void
from maskrcnn_lit.storage.files import config_digest
from maskrcnn_lit.training.feature_cache import Cached, cache_features
from maskrcnn_lit.training.nonfinite import FiniteGuard, NonFiniteStep, Step, write_step
from maskrcnn_lit.training.optimizer import Length, OptimizerAndSchedule, follow
from maskrcnn_lit.training.plateau import Plateau
from maskrcnn_lit.training.trainer import steps_per_epoch, total_steps

_log = logging.getLogger(__name__)


def step_seed(*numbers: int) -> int:
    """64 bits that depend only on `numbers` (each >= 0), on every machine and version of NumPy."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def over_all_processes(losses: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Convert means over the samples of this process to means over those of all processes, and the
    weights of this process.

    losses: L, each a mean over `counts` (L) samples, 0 without samples.

    DDP averages the gradients of the processes. With `losses * weights` on each, the average is the
    gradient of the mean over all samples, so two processes train like one with both batches. The
    host does not wait for the device.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return losses.detach(), torch.ones_like(losses)
    total = torch.stack([losses.detach() * counts, counts.to(losses.dtype)])
    dist.all_reduce(total)
    sums, every = total[0], total[1].clamp(min=1)
    return sums / every, counts * dist.get_world_size() / every


class DetectionModule(LightningModule):
    """Trains `model`, whose forward takes a batch and returns an Output (losses, detections,
    box_labels).

    model: in train mode it returns the losses, in eval mode detections, and losses, too, if the
    batch has targets.
    optimizer: `adamw` or `sgd` of training/optimizer.py with all but model, batch_size, steps and
        fused given.
    categories: of the labels 1..K; with `config`, the resolved config as plain data, they go into
        every checkpoint.
    seed: >= 0; all randomness of the steps comes from it.

    The sampling of an image depends only on its seed in the batch, not on the process or the
    position in the batch. Layers with their own randomness (dropout, stochastic depth) use a random
    state that is set before every step from (seed, process, epoch, batch). It does not depend on
    earlier steps, so a resumed run draws the same numbers as an uninterrupted one, whatever a
    validation, a callback or the start of loader processes has drawn from torch's generators.

    `training_step` logs nothing: its losses, over the batches of all processes, go to `TrainMeter`,
    which reads them from the device every few steps.
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
            raise UserError(f"seed={seed} must be a whole number, 0 or more")
        json.dumps(
            config
        )  # raises if it is not plain data: checkpoints would not load with weights_only=True
        self.model = model
        self.optimizer = optimizer
        self.categories = tuple(categories)
        self.config = config
        self.seed = seed
        self.gradient_norm: Tensor | None = None  # of the last optimizer step, before clipping
        self.learning_rates: dict[
            str, float
        ] = {}  # of the last optimizer step, by part of the model
        self.images_seen: Tensor | int = 0  # training images of this process, without BLANK
        self.masks_dropped: Tensor | int = 0  # positives without a mask slot, as `images_seen`
        self.ready_since = 0.0  # when training was ready for its next batch, by time.perf_counter
        self.cached: Cached | None = None  # the features that steps read in place of pixels
        self._guard = FiniteGuard()

    def setup(self, stage: str) -> None:
        """Raises UserError if the process has another config than rank zero, for SyncBatchNorm on
        the CPU, which torch does not support, and for a mask head that cannot train on the void
        regions of the data.
        """
        own = config_digest(self.config)
        if self.trainer.strategy.broadcast(own) != own:
            raise UserError(
                f"process {self.global_rank} has another config than process 0: start all of them "
                "with one command"
            )
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        sync = any(isinstance(layer, nn.SyncBatchNorm) for layer in self.model.modules())
        if sync and on_cpu and self.trainer.world_size > 1:
            raise UserError(
                f"norm=sync needs CUDA for {self.trainer.world_size} processes, but these are on "
                "the CPU: use group or batch, or one process"
            )
        data, mask_head = self.trainer.datamodule, getattr(self.model, "mask_head", None)  # type: ignore[attr-defined]
        if mask_head is not None and getattr(data, "has_void", False):
            check_takes_void(mask_head)

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
        )  # a tensor, to avoid a synchronization
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
        # The weights are loaded, and the first loader, which has the length of an epoch, is not yet
        # built.
        backbone = self.config.get("model", {}).get("backbone", {})
        self.cached = cache_features(self.model, trainer, backbone)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning adds it
        steps, images = (
            Length(total_steps(trainer), steps_per_epoch(trainer)),
            len(data.train_index),
        )
        full_batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        # If an epoch is shorter than a full batch, or images of several shapes fill none, the
        # average batch counts.
        fills = images >= full_batch and images / steps.epoch > full_batch / 2
        batch_size = full_batch if fills else min(full_batch, math.ceil(images / steps.epoch))
        plan = self.optimizer(
            self.model,
            batch_size=batch_size,
            steps=steps,
            # With 16-mixed, Lightning's scaler unscales gradients before clipping; fused optimizers
            # would do it later.
            fused=self.device.type == "cuda" and trainer.precision != "16-mixed",
        )
        if trainer.is_global_zero:
            if batch_size < full_batch:
                _log.info(
                    f"a step has {batch_size} images, not {full_batch}: an epoch has {images} "
                    "images in "
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
        """Clip by the norm over all parameters, or each value; stop if it or a loss is not finite.
        Lightning calls this before every optimizer step, with unscaled gradients, with or without
        a limit.
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
        """A schedule that waits for a plateau has the scores now, and last.ckpt comes after
        this.
        """
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
        )  # after the callbacks, whose time does not count as waiting for data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_at(self._guard.finish())
        checkpoint["config"] = self.config
        checkpoint["categories"] = [[category.id, category.name] for category in self.categories]

    def _stop_at(self, bad: Step | None) -> None:
        if bad is None:
            return
        rank = f"_rank{self.global_rank}" if self.trainer.world_size > 1 else ""
        raise NonFiniteStep(
            write_step(
                Path(self.trainer.default_root_dir) / f"nonfinite_step{bad.number}{rank}.pt",
                bad,
                model=self.model,
                precision=str(self.trainer.precision),
                accumulate=self.trainer.accumulate_grad_batches,
                extra={"config": self.config, "seed": self.seed},
            )
        )
