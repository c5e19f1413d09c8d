import inspect
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from tiny_run import BATCH, IMAGES, Score, TinyData, tiny_module, tiny_trainer

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.training import trainer as trainer_module
from maskrcnn_lit.training.checkpoint_files import load_plain
from maskrcnn_lit.training.trainer import OWN, steps_per_epoch, total_steps

PER_EPOCH = IMAGES // BATCH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"accelerator": "gpu"},
            "trainer.accelerator=gpu, but torch .* sees no CUDA device here: use trainer.accel",
        ),
        ({"accelerator": "tpu"}, "trainer.accelerator=tpu is unknown: use auto, cpu or gpu"),
        (
            {"precision": "fp8"},
            "trainer.precision=fp8 is unknown: use auto, 32-true, 16-mixed, bf16-mixed",
        ),
        (
            {"precision": "16-mixed"},
            "trainer.precision=16-mixed needs a GPU: use trainer.precision=auto",
        ),
        ({"epochs": None}, "trainer.epochs and trainer.steps are both null, so the run has no end"),
        ({"epochs": 0}, "trainer.epochs=0 must be a whole number, 1 or more"),
        ({"steps": 0}, "trainer.steps=0 must be a whole number, 1 or more"),
        ({"patience": 0}, "trainer.patience=0 must be a whole number, 1 or more"),
        ({"accumulate": 0}, "trainer.accumulate=0 must be a whole number, 1 or more"),
        (
            {"checkpoint_every_n_steps": 0},
            "trainer.checkpoint_every_n_steps=0 must be a whole number, 1 or more",
        ),
        ({"log_every_n_steps": 0}, "trainer.log_every_n_steps=0 must be"),
        ({"evaluate_every_n_epochs": 0}, "evaluation.every_n_epochs=0 must be"),
        ({"num_nodes": 0}, "trainer.num_nodes=0 must be"),
        ({"devices": 0}, "trainer.devices=0 must be a whole number, 1 or more"),
        ({"devices": -2}, "trainer.devices=-2 must be"),
        (
            {"max_time": "2 hours"},
            "trainer.max_time=2 hours must be a duration such as 90min, 3h, 1d12h",
        ),
        (
            {"devices": [0]},
            r"trainer.devices=\[0\] are numbers of GPUs, but trainer.accelerator=cpu",
        ),
        ({"clip_norm": -1.0}, "trainer.clip_norm=-1.0 must be a number of at least 0"),
    ],
)
def test_mistakes_are_named(monkeypatch: Any, tmp_path: Path, change: dict[str, Any], message: str):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        tiny_trainer(tmp_path, **change)


@pytest.mark.parametrize(
    ("accelerator", "deterministic", "tried"),
    [("gpu", False, True), ("gpu", True, None), ("gpu", "warn", None), ("cpu", False, None)],
)
def test_cudnn_tries_its_algorithms_on_a_gpu(
    tmp_path: Path,
    accelerator: str,
    deterministic: bool | str,
    tried: bool | None,
    monkeypatch: pytest.MonkeyPatch,
):
    """But where runs must not differ: it may choose another one each time."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(trainer_module, "Trainer", lambda **options: asked.update(options))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    tiny_trainer(
        tmp_path, accelerator=accelerator, precision="32-true", deterministic=deterministic
    )
    assert asked["benchmark"] is tried


def test_several_processes_do_not_wait_in_every_step_for_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They agree on where to stop by themselves (training/stop.py)."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor), "what is replaced is there"

    def waits(self: Any) -> None:
        raise AssertionError("the host reads an answer")

    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", waits)
    alone = tiny_trainer(tmp_path)
    with pytest.raises(AssertionError, match="reads an answer"):
        alone.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    several = tiny_trainer(tmp_path, environment=LightningEnvironment())
    several.fit_loop.epoch_loop._broadcast_sigterm_tensor()


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(3, None, 21), (3, 10, 10), (1, 10, 7), (None, 10, 10)]
)
def test_the_shorter_limit_counts(
    tmp_path: Path, epochs: int | None, steps: int | None, expected: int
):
    trainer = tiny_trainer(tmp_path, [Score()], epochs=epochs, steps=steps)
    module = tiny_module()
    trainer.fit(module, datamodule=TinyData())
    assert trainer.global_step == total_steps(trainer) == expected
    last = load_plain(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == expected
    # The schedule ends with the run: the last step of a cosine is just above end_factor.
    assert module.learning_rates["heads"] < 0.1 * 0.05


def test_a_run_of_steps_ends_with_a_validation(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, [Score()], epochs=None, steps=PER_EPOCH + 3)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert float(trainer.callback_metrics["val/mask_ap"]) == pytest.approx(
        0.6
    )  # that of the second, cut epoch
    assert load_plain(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == PER_EPOCH + 3


@pytest.mark.parametrize("limit", [{"epochs": 1, "steps": None}, {"epochs": None, "steps": 5}])
def test_a_finished_run_resumes_to_nothing(tmp_path: Path, limit: dict[str, Any]):
    tiny_trainer(tmp_path, **limit).fit(tiny_module(), datamodule=TinyData())
    before = load_plain(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    rows = (tmp_path / "metrics.csv").read_text()
    again = tiny_trainer(tmp_path, **limit)
    module = tiny_module()
    again.fit(module, datamodule=TinyData(), ckpt_path=last_checkpoint(tmp_path))
    assert again.global_step == (7 if limit["epochs"] else 5)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert (tmp_path / "metrics.csv").read_text() == rows


class Scores(Callback):
    """Logs the val/mask_ap of each epoch."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("val/mask_ap", self.scores[trainer.current_epoch])


@pytest.mark.long
@pytest.mark.parametrize(
    ("scores", "epochs"),
    [
        ((0.1, 0.3, 0.2, 0.3, 0.4, 0.5), 4),  # as high as the best is not higher
        ((0.1, 0.3, 0.2, 0.4, 0.4, 0.5), 6),
        ((math.nan, math.nan, math.nan, 0.1, 0.1, 0.2), 6),
        ((0.0, 0.0, 0.0, 0.1, 0.1, 0.2), 3),
    ],
)
def test_a_run_without_progress_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture, scores: tuple[float, ...], epochs: int
):
    trainer = tiny_trainer(tmp_path, [Scores(*scores)], epochs=6, patience=2)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert trainer.global_step == epochs * PER_EPOCH
    assert load_plain(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == epochs * PER_EPOCH
    ends = f"val/mask_ap has not been better than {max(scores[:epochs]):.3f} in 2 validations"
    assert (ends in capsys.readouterr().out) == (epochs < 6)


def test_a_resumed_run_goes_on_counting_validations_without_progress(tmp_path: Path):
    scores = Scores(0.3, 0.2, 0.1, 0.4)
    tiny_trainer(tmp_path, [scores], epochs=2, patience=2).fit(tiny_module(), datamodule=TinyData())
    for _ in range(2):  # once it has stopped, it stays so
        resumed = tiny_trainer(tmp_path, [scores], epochs=4, patience=2)
        last = last_checkpoint(tmp_path)
        resumed.fit(tiny_module(), datamodule=TinyData(), ckpt_path=last)
        assert resumed.global_step == 3 * PER_EPOCH


def test_without_patience_no_score_ends_a_run(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, [Scores(0.3, 0.2, 0.1, 0.0)], epochs=4)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert trainer.global_step == 4 * PER_EPOCH


class Slow(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.3)


@pytest.mark.long
def test_max_time_ends_a_run_with_a_validation_and_a_checkpoint(tmp_path: Path):
    score = Score()
    trainer = tiny_trainer(tmp_path, [score, Slow()], epochs=50, max_time="00:00:00:01")
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert 2 <= trainer.global_step <= 10
    last = load_plain(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == trainer.global_step
    assert "val/mask_ap" in trainer.callback_metrics


def test_fewer_batches_of_an_epoch(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, [Score()], epochs=2, limit_train_batches=3)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert trainer.global_step == total_steps(trainer) == 6
    assert steps_per_epoch(trainer) == 3


def test_a_check_has_two_steps_and_a_validation(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, [Score()], epochs=50, check=True, accumulate=2)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert trainer.global_step == 2
    assert trainer.num_training_batches == 4
    assert max(trainer.num_val_batches) <= 2
    assert load_plain(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_other_options_of_the_trainer(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, options={"min_steps": 3, "detect_anomaly": True})
    assert trainer.min_steps == 3
    assert trainer._detect_anomaly


@pytest.mark.parametrize("name", sorted(OWN))
def test_options_with_a_place_here_name_it(tmp_path: Path, name: str):
    assert name in inspect.signature(Trainer).parameters
    with pytest.raises(UserError, match=rf"trainer.options.{name} is set by maskrcnn_lit: "):
        tiny_trainer(tmp_path, options={name: 1})


def test_an_option_that_the_trainer_does_not_have(tmp_path: Path):
    with pytest.raises(UserError, match=r"trainer.options.overfit is not an argument .*min_steps"):
        tiny_trainer(tmp_path, options={"overfit": 1})


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_a_profiler_writes_into_the_run_folder(tmp_path: Path, profiler: str):
    trainer = tiny_trainer(tmp_path, [Score()], steps=9, profiler=profiler)
    trainer.fit(tiny_module(), datamodule=TinyData())
    files = [tmp_path / "fit-profile.txt", *tmp_path.glob("fit-profile*training_step*.json")]
    assert "training_step" in files[-1].read_text()


@pytest.mark.parametrize(("given", "warns"), [(True, False), ("warn", True)])
def test_deterministic_operations(tmp_path: Path, given: bool | str, warns: bool):
    try:
        trainer = tiny_trainer(tmp_path, [Score()], steps=1, deterministic=given)
        trainer.fit(tiny_module(), datamodule=TinyData())
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warns
    finally:
        torch.use_deterministic_algorithms(False)
