"""The rate falls after validations without a better score, as torch's own scheduler has it, and a
resumed run goes on counting.
"""

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_run import BATCH, IMAGES, TinyData, TinyModel, tiny_module, tiny_trainer
from torch import nn

from maskrcnn_lit.config.schema import OPTIONS
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.training.optimizer import Length, adamw, sgd
from maskrcnn_lit.training.plateau import DEFAULTS, MONITORS, Plateau

PER_EPOCH = IMAGES // BATCH
SCORES = (0.1, 0.3, 0.3, 0.2, 0.4, math.nan, 0.4, 0.3, 0.2, 0.1, 0.5)


def plateau(**settings: Any) -> Plateau:
    return Plateau(warmup=4, start=0.001, settings=settings)


@pytest.mark.parametrize("monitor", ["val/mask_ap", "val/loss"])
def test_it_is_torchs_without_a_threshold(monitor: str):
    sign = -1 if monitor == "val/loss" else 1
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if sign < 0 else "max", factor=0.1, patience=1, threshold=0
    )
    ours = plateau(monitor=monitor, patience=2)
    for score in SCORES:
        if not math.isnan(score):  # torch counts it
            theirs.step(sign * score)
        ours.observe({monitor: torch.tensor(sign * score), "val/other": 9.0})
        assert ours(100) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.scale == pytest.approx(0.001)


def test_the_warm_up_by_hand():
    assert [plateau()(step) for step in (0, 2, 4, 1000)] == pytest.approx([0.001, 0.5005, 1, 1])


def test_a_metric_that_does_not_come_changes_nothing():
    watching = plateau(patience=1)
    assert not any(watching.observe({"val/loss": 1.0}) for _ in range(5))
    assert watching.validations == 0
    assert watching.best is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"monitor": "train/loss"}, "optimizer.plateau.monitor=train/loss must be one of val/mask"),
        ({"patience": 0}, "optimizer.plateau.patience=0 must be a whole number, 1 or more"),
        ({"factor": 2}, "optimizer.plateau.factor=2 must be a number from 0 to 1"),
        ({"wait": 2}, "optimizer.plateau has no wait: it takes monitor, patience, factor"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        plateau(**settings)


def test_the_schema_knows_the_same_metrics():
    assert OPTIONS["optimizer.plateau.monitor"].choices == MONITORS
    assert all(f"optimizer.plateau.{name}" in OPTIONS for name in DEFAULTS)


COMMON: dict[str, Any] = {
    **{"batch_size": 8, "steps": Length(100, 5), "fused": False, "lr": 0.1, "scaling": "none"},
    **{"reference_batch": 8, "backbone_factor": 0.5, "weight_decay": 0.0, "warmup_steps": 4},
    **{"schedule": "plateau", "plateau": {"patience": 1, "factor": 0.5}},
}


@pytest.mark.parametrize(
    "make",
    [
        partial(adamw, **COMMON, betas=(0.9, 0.999), end_factor=0.01),
        partial(sgd, **COMMON, momentum=0.9, milestones=(0.5,), gamma=0.1),
    ],
)
def test_both_optimizers_have_it(make: Any):
    plan = make(TinyModel())
    assert "then times 0.5 after 1 validation without a higher val/mask_ap" in plan.text
    for _ in range(5):
        plan.optimizer.step()
        plan.schedule.step()
    rates = {group["part"]: group["lr"] for group in plan.optimizer.param_groups}
    assert rates == pytest.approx({"backbone": 0.05, "heads": 0.1})


class Scores(Callback):
    """Logs the val/mask_ap of each epoch."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("val/mask_ap", (0.3, 0.2, 0.2, 0.1, 0.1, 0.05)[trainer.current_epoch])


def run(
    run_dir: Path, caplog: pytest.LogCaptureFixture, *callbacks: Callback, **options: Any
) -> list[float]:
    """Train (on); the rates of the heads that metrics.csv has."""
    module = tiny_module(schedule="plateau", plateau={"patience": 2}, warmup_steps=0)
    trainer = tiny_trainer(run_dir, [Scores(), *callbacks], **options)
    with caplog.at_level("INFO"):
        trainer.fit(module, datamodule=TinyData(), ckpt_path=last_checkpoint(run_dir))
    with open(run_dir / "metrics.csv", newline="") as file:
        rates = [row.get("lr/heads") for row in csv.DictReader(file)]
    return [float(rate) for rate in rates if rate]


def test_a_run_lowers_its_rate_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rates = run(tmp_path, caplog, epochs=6, log_every_n_steps=PER_EPOCH)
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.005, 0.005, 0.0005])
    message = "val/mask_ap is not better than 0.300 after 2 validations: the learning rate is"
    assert caplog.text.count(message) == 2
    assert f"{message} multiplied by 0.1, to 0.005" in caplog.text


class Stop(Callback):
    """Fails before training step N, counted from the start of the run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.step:
            raise RuntimeError("stopped here")


@pytest.mark.long
@pytest.mark.parametrize("step", [PER_EPOCH * 2, PER_EPOCH * 3, PER_EPOCH * 3 + 6])
def test_a_resumed_run_goes_on_counting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int
):
    """From the end of an epoch, and from the middle of one."""
    whole = run(tmp_path / "whole", caplog, epochs=6, log_every_n_steps=1)
    with pytest.raises(RuntimeError, match="stopped here"):
        run(tmp_path / "part", caplog, Stop(step), epochs=6, log_every_n_steps=1)
    assert run(tmp_path / "part", caplog, epochs=6, log_every_n_steps=1) == pytest.approx(whole)
    assert len(set(whole)) == 3
