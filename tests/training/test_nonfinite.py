import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_run import TinyData, TinyModel, tiny_module, tiny_trainer
from torch import nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.training.checkpoint_files import load_plain
from maskrcnn_lit.training.nonfinite import FiniteGuard, replay


class Breaks(TinyModel):
    """A term that is not finite once the image with id `culprit` comes up: its loss, or its
    gradient alone.
    """

    def __init__(self, culprit: int, what: str) -> None:
        super().__init__()
        self.culprit, self.what = culprit, what

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        if self.training and (batch["image_ids"] == self.culprit).any():
            term = output.losses["box"]
            zero = (self.head.weight * 0).sum()
            # the gradient of sqrt at 0 is infinite, and infinity times 0 is not a number
            output.losses["box"] = term * math.nan if self.what == "loss" else term + zero.sqrt()
        return output


class KeepWeights(Callback):
    """Copies the parameters as they are before step 4."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == 4:
            pl_module.kept = {
                name: value.detach().clone() for name, value in pl_module.model.named_parameters()
            }


def batches_of_epoch_0() -> list[list[int]]:
    return [batch["image_ids"].tolist() for batch in TinyData().train_dataloader()]


def stopped(
    tmp_path: Path, *, at_batch: int, what: str, **trainer: Any
) -> tuple[str, dict[str, Any], Path]:
    """Message and file of a run that meets the culprit in batch `at_batch` of its first epoch."""
    module, culprit = tiny_module(), batches_of_epoch_0()[at_batch][1]
    torch.manual_seed(0)  # the same weights as those of tiny_module
    module.model = Breaks(culprit, what)
    with pytest.raises(UserError) as error:
        tiny_trainer(tmp_path, **trainer).fit(module, datamodule=TinyData())
    (file,) = tmp_path.glob("nonfinite_*")
    return str(error.value), load_plain(file), file


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_run_stops_and_says_what_to_do(tmp_path: Path, what: str):
    message, saved, file = stopped(tmp_path, at_batch=4, what=what)
    ids = batches_of_epoch_0()[4]
    assert file.name == "nonfinite_step4.pt"
    assert (
        "training stopped at step 4 (epoch 0), because the loss or its gradient is not finite: "
        "losses rpn_objectness" in message
    )
    assert f"images {ids[0]}, {ids[1]}" in message
    assert "gradient norm nan; learning rate backbone 0.02" in message
    assert f"`maskrcnn-lit replay file={file}` to recompute the step" in message
    assert ("box nan" in message) == (what == "loss")
    assert saved["image_ids"] == [ids]
    assert math.isnan(saved["losses"][0]["box"]) == (what == "loss")
    assert math.isfinite(saved["losses"][0]["mask"])
    assert math.isnan(saved["gradient_norm"])
    assert saved["learning_rates"].keys() == {"backbone", "heads"}
    assert saved["config"]["optimizer"] == {"lr": 0.05}
    assert saved["seed"] == 3


def test_the_weights_in_the_file_are_those_before_the_step(tmp_path: Path):
    _, saved, _ = stopped(tmp_path / "a", at_batch=4, what="gradient")
    healthy = tiny_module()
    tiny_trainer(tmp_path / "b", [KeepWeights()]).fit(healthy, datamodule=TinyData())
    assert len(healthy.kept) == 8
    assert all(torch.equal(saved["model"][name], value) for name, value in healthy.kept.items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_replay_gives_the_same_numbers(tmp_path: Path, precision: str, accumulate: int):
    _, saved, file = stopped(
        tmp_path, at_batch=5, what="loss", precision=precision, accumulate=accumulate
    )
    assert len(saved["batches"]) == accumulate
    model = Breaks(batches_of_epoch_0()[5][1], "loss")
    again = replay(file, model)
    for before, after in zip(saved["losses"], again.losses, strict=True):
        assert after == pytest.approx(before, rel=1e-6, nan_ok=True)
    assert math.isnan(again.gradient_norm)
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.isnan().any()
    # Without the culprit the same step is finite: the file holds everything else it needs.
    healthy = replay(file, Breaks(-1, "loss"))
    assert math.isfinite(healthy.gradient_norm)
    assert math.isfinite(healthy.losses[-1]["box"])


def test_no_checkpoint_is_written_after_it(tmp_path: Path):
    stopped(tmp_path, at_batch=2, what="loss", checkpoint_every_n_steps=1)
    assert load_plain(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def checked(
    guard: FiniteGuard, optimizer: torch.optim.Optimizer, number: int, loss: float, **kwargs: Any
) -> Any:
    guard.record(
        {"image_ids": torch.tensor([number])},
        {"box": torch.tensor(loss)},
        seed=number,
        weights=torch.ones(1),
    )
    settings: dict[str, Any] = {"gradient_norm": torch.tensor(1.0), "norm_counts": True, **kwargs}
    return guard.check(optimizer, number=number, epoch=0, learning_rates={}, **settings)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_fused_optimizers_leave_the_weights_alone_from_then_on(make: Any):
    """On a GPU the host hears of it steps later. The fused kernels of the CPU keep to the same
    protocol.
    """
    parameter = nn.Parameter(torch.ones(3))
    optimizer, guard = make([parameter], lr=0.1, fused=True), FiniteGuard()
    values = []
    for number, loss in enumerate((1.0, math.inf, 1.0)):
        parameter.grad = torch.full((3,), loss)
        checked(guard, optimizer, number, loss)
        optimizer.step()
        values.append(parameter.detach().clone())
    assert not torch.equal(values[0], torch.ones(3))
    assert torch.equal(values[1], values[0])
    assert torch.equal(values[2], values[0])


def test_a_gradient_that_is_not_finite_is_normal_with_a_scaler():
    optimizer, guard = torch.optim.SGD([nn.Parameter(torch.ones(1))]), FiniteGuard()
    assert (
        checked(guard, optimizer, 0, 1.0, gradient_norm=torch.tensor(math.inf), norm_counts=False)
        is None
    )
    assert not hasattr(optimizer, "found_inf")
    assert checked(guard, optimizer, 1, math.nan, norm_counts=False).number == 1


class Event:
    """A copy from the device that arrives when it is told to."""

    def __init__(self) -> None:
        self.over = False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.over = True


def test_answers_that_come_late_name_the_first_bad_step():
    optimizer, guard = torch.optim.SGD([nn.Parameter(torch.ones(1))]), FiniteGuard()
    guard._first_bad, first_bad = lambda: None, guard._first_bad  # type: ignore[method-assign]
    for number, loss in enumerate((1.0, math.nan, 1.0)):
        checked(guard, optimizer, number, loss)
    events = [Event(), Event(), Event()]
    guard._steps.extend(guard._steps.popleft()._replace(copied=event) for event in events)  # type: ignore[arg-type]
    guard._first_bad = first_bad  # type: ignore[method-assign]
    assert guard._first_bad() is None
    assert len(guard._steps) == 3
    events[0].over = True
    assert guard._first_bad() is None
    assert len(guard._steps) == 2  # step 0 was fine, and its batch is let go
    found = guard.finish()  # before a checkpoint it waits
    assert found is not None
    assert found.number == 1
    assert [part.batch["image_ids"].tolist() for part in found.parts] == [[1]]


def test_a_guard_without_news_is_silent():
    assert FiniteGuard().finish() is None
