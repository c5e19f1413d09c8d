"""A learning-rate range test (Smith 2017): the loss of a few training steps with rising rates."""

import math
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.auto_batch import choose_batch
from maskrcnn_lit.launch.run import build_module, read_data
from maskrcnn_lit.launch.trial import short_trainer
from maskrcnn_lit.training.nonfinite import NonFiniteStep

SMOOTHING = 0.9  # of the moving average of the losses
DIVERGED = 4.0  # times the least loss so far: the test ends
FEWEST = 10  # steps of which a rate can be suggested


class RateTest(NamedTuple):
    """rates: of `optimizer.lr`, rising; losses: of the steps with them; smooth: their moving
    average; suggested: the rate at which `smooth` falls most steeply, or None: it never falls.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    suggested: float | None


def rate_test(config: DictConfig) -> RateTest:
    """Train `config.steps` optimizer steps of the config of `conf/lr.yaml` in one process, with
    rates from `config.low` to `config.high`, each the same factor above the last. It ends early
    where the loss diverges.

    Raises: UserError: the range is empty, or the loss diverges before a rate can be suggested.
    """
    if not config.low < config.high:
        raise UserError(f"low={config.low:g} must be below high={config.high:g}")
    config = OmegaConf.create({**to_dict(config), "evaluation": {"images": None}})
    choose_batch(config)
    data = read_data(config)
    torch.manual_seed(config.seed)
    raised = RaiseRate(config.low, config.high, config.steps, config.optimizer.lr)
    with tempfile.TemporaryDirectory() as folder:
        trainer = short_trainer(config, folder, [raised], config.steps, validation_batches=0)
        try:
            trainer.fit(build_module(config, data), datamodule=data)
        except NonFiniteStep:  # the loss has diverged to infinity
            raised.read()
    if len(raised.losses) < FEWEST:
        raise UserError(
            f"the loss diverges after {len(raised.losses)} steps: begin lower than "
            f"low={config.low:g}, or train more steps"
        )
    rates, losses = raised.rates[: len(raised.losses)], raised.losses
    smooth = smoothed(losses)
    return RateTest(rates, losses, smooth, steepest(rates, smooth))


class RaiseRate(Callback):
    """Sets the rate before each optimizer step, in place of the schedule, and notes the loss. All
    groups of parameters keep their ratio to `lr`, the option `optimizer.lr`.
    """

    def __init__(self, low: float, high: float, steps: int, lr: float) -> None:
        self.rates = [low * (high / low) ** (step / max(1, steps - 1)) for step in range(steps)]
        self.lr = lr
        self.losses: list[float] = []  # of optimizer steps
        self._parts: list[torch.Tensor] = []  # of the batches of one step, on the device

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        factor = self.rates[min(trainer.global_step, len(self.rates) - 1)] / self.lr
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        self._parts.append(outputs["loss"].detach())
        if trainer.global_step > len(self.losses):
            self.read()
            smooth = smoothed(self.losses)
            trainer.should_stop |= smooth[-1] > DIVERGED * min(smooth)

    def read(self) -> None:
        """Note the mean loss of the batches of a step, if it is a number."""
        if self._parts:
            loss = float(torch.stack(self._parts).mean())
            self._parts = []
            if math.isfinite(loss):
                self.losses.append(loss)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Their exponential moving average, without the pull of its beginning at zero."""
    average, result = 0.0, []
    for n, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        result.append(average / (1 - SMOOTHING**n))
    return result


def steepest(rates: Sequence[float], smooth: Sequence[float]) -> float | None:
    """The rate at which the smooth loss falls most per factor of the rate, by the mean slope over
    a tenth of the steps, before its least value; None: it never falls.
    """
    reach = max(1, len(rates) // 20)
    end = min(range(len(smooth)), key=smooth.__getitem__)
    slopes = {
        n: (smooth[n + reach] - smooth[n - reach]) / math.log(rates[n + reach] / rates[n - reach])
        for n in range(reach, min(end, len(rates) - reach - 1) + 1)
        if n + reach <= end
    }
    if not slopes or min(slopes.values()) >= 0:
        return None
    return float(f"{rates[min(slopes, key=slopes.__getitem__)]:.2g}")
