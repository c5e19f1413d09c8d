import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_commands import same
from tiny_run import Score, TinyData, tiny_module, tiny_trainer
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.norms import FoldedConv, conv
from maskrcnn_lit.training.average import MovingAverage, decay_after, scored_weights
from maskrcnn_lit.training.checkpoint_files import load_plain, load_sound, model_weights, save_plain

State = dict[str, Tensor]
EMA = 0.6  # small enough that it ends the warm-up: (1 + n) / (10 + n) is 0.6 after 12.5 steps


class Weights(Callback):
    """The weights after each optimizer step, and in each validation."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.steps: list[State] = []
        self.validated: list[State] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.steps.append(copy.deepcopy(pl_module.model.state_dict()))
        if trainer.global_step == self.fail_at:
            raise RuntimeError("killed")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.validated.append(copy.deepcopy(pl_module.model.state_dict()))


def train(run_dir: Path, resume: Path | None = None, **options: Any) -> tuple[Weights, Any]:
    weights, module = Weights(options.pop("fail_at", None)), tiny_module()
    trainer = tiny_trainer(run_dir, [Score(), weights], **options)
    trainer.fit(module, datamodule=TinyData(), ckpt_path=resume)
    return weights, module


def averaged(steps: list[State], decay: float) -> State:
    """By definition, in float64."""
    average = {name: value.double() for name, value in steps[0].items()}
    for number, state in enumerate(steps[1:], start=1):
        share = min(decay, (1 + number) / (10 + number))
        average = {
            name: share * value + (1 - share) * state[name].double()
            if state[name].is_floating_point()
            else state[name]
            for name, value in average.items()
        }
    return average


def assert_close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> tuple[Path, Weights, Any]:
    """Three epochs of seven steps, of which the second scores best."""
    folder = tmp_path_factory.mktemp("averaged")
    return folder, *train(folder, ema=EMA)


def test_checkpoints_and_validations_have_the_average_by_its_definition(run: Any):
    folder, weights, module = run
    assert len(weights.steps) == 21
    for name, step in (("best", 14), ("last", 21)):
        saved = load_plain(folder / "checkpoints" / f"{name}.ckpt")
        assert_close(model_weights(saved), averaged(weights.steps[:step], EMA))
        current = model_weights({"state_dict": saved["current_model_state"]})
        assert all(torch.equal(current[key], weights.steps[step - 1][key]) for key in current)
    for epoch in range(3):
        assert_close(weights.validated[4 * epoch], averaged(weights.steps[: 7 * epoch + 7], EMA))
    assert_close(module.model.state_dict(), averaged(weights.steps, EMA))  # what the run leaves
    frozen, first = module.model.state_dict()["frozen.weight"], weights.steps[0]["frozen.weight"]
    assert torch.equal(frozen, first)


def test_training_itself_is_as_without_an_average(run: Any, tmp_path: Path):
    plain, _ = train(tmp_path)
    for with_average, without in zip(run[1].steps, plain.steps, strict=True):
        assert all(torch.equal(with_average[key], without[key]) for key in without)
    assert "current_model_state" not in load_plain(tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("step", [4, 10])
def test_resumed_it_is_equal_to_the_last_bit(run: Any, tmp_path: Path, step: int):
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, ema=EMA, fail_at=step)
    train(tmp_path, resume=tmp_path / "checkpoints" / "last.ckpt", ema=EMA)
    for name in ("best", "last"):
        a, b = (load_plain(path / "checkpoints" / f"{name}.ckpt") for path in (run[0], tmp_path))
        for part in ("state_dict", "current_model_state", "averaging_state"):
            assert a[part].keys() == b[part].keys()
            assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
        assert same(a["optimizer_states"], b["optimizer_states"])


def test_validation_restores_the_weights_of_training(tmp_path: Path):
    """A step after a validation starts from the weights before it."""
    weights, _ = train(tmp_path, ema=EMA, epochs=2)
    again, _ = train(tmp_path / "rare", ema=EMA, epochs=2, evaluate_every_n_epochs=2)
    assert len(weights.validated) == 2 * len(again.validated)
    assert all(torch.equal(weights.steps[-1][k], again.steps[-1][k]) for k in weights.steps[-1])


def test_the_first_updates_forget_faster():
    assert [decay_after(n, 0.9998) for n in (1, 10)] == [2 / 11, 11 / 20]
    assert decay_after(10**6, 0.9998) == 0.9998
    assert decay_after(0, 0.05) == 0.05


def test_equal_weights_stay_exactly_equal():
    """Rounding would move frozen weights over thousands of steps."""
    average, model = MovingAverage(0.9998), torch.nn.Sequential(conv(3, 4, 3, "frozen"))
    assert any(isinstance(layer, FoldedConv) for layer in model.modules())
    average._average_model = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=average._blend, use_buffers=True
    )
    for _ in range(200):
        average._average_model.update_parameters(model)
    copied = average._average_model.module.state_dict()
    assert all(torch.equal(value, copied[key]) for key, value in model.state_dict().items())


def test_weights_to_resume_from_must_be_finite(tmp_path: Path):
    state = {"model.a": torch.ones(2)}
    bad = {"state_dict": state, "current_model_state": {"model.a": torch.tensor([1.0, torch.nan])}}
    save_plain(tmp_path / "last.ckpt", bad)
    with pytest.raises(UserError, match="not finite"):
        load_sound(tmp_path / "last.ckpt")


def test_the_kind_of_weights_has_a_name():
    assert scored_weights({}) == scored_weights({"ema": None}) == "as trained"
    assert scored_weights({"ema": 0.9998}) == "moving average (trainer.ema=0.9998)"


def test_a_wrong_decay_is_refused(tmp_path: Path):
    for value in (-0.1, 1.5, "much", True):
        with pytest.raises(UserError, match=rf"trainer.ema={value} must be a number from 0 to 1"):
            tiny_trainer(tmp_path, ema=value)
