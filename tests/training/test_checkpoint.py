import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tiny_run import BATCH, CATEGORIES, Score, TinyData, TinyModel, tiny_module, tiny_trainer

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.training import checkpoint
from maskrcnn_lit.training.checkpoint_files import load_plain, model_weights, save_plain


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    """Three epochs of seven steps, whose val/mask_ap are 0.2, 0.6, 0.4."""
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(folder, [Score()]).fit(tiny_module(), datamodule=TinyData())
    return folder


def test_a_checkpoint_is_plain_and_says_what_it_is(run: Path):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["config"] == {"optimizer": {"lr": 0.05}, "data": {"image_size": [16, 16]}}
    assert saved["categories"] == [[c.id, c.name] for c in CATEGORIES]
    assert saved["position"] == {
        **{"epoch": 3, "batch": 0, "batches": 7},
        **{"together": BATCH, "parts": 1},
    }
    model = TinyModel()
    model.load_state_dict(model_weights(saved))  # strict
    assert len(saved["optimizer_states"][0]["state"]) == 6  # AdamW's, of each parameter that learns


def test_best_is_neither_first_nor_last(run: Path):
    steps = {
        name: load_plain(run / "checkpoints" / f"{name}.ckpt")["global_step"]
        for name in ("best", "last")
    }
    assert steps == {"best": 14, "last": 21}
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]


class Saves(Callback):
    """Notes where the run stood at each save."""

    def __init__(self) -> None:
        self.positions: list[tuple[int, int, int]] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["current"]["ready"]
        self.positions.append((trainer.current_epoch, done, checkpoint["global_step"]))


@pytest.mark.parametrize(
    ("accumulate", "expected"),
    [
        (1, [(0, 3, 3), (0, 6, 6), (0, 7, 7), (1, 2, 9), (1, 5, 12), (1, 7, 14)]),
        # 7 batches are 4 steps, the last of one batch; a step that is the last of its epoch waits
        # for the validation
        (2, [(0, 6, 3), (0, 7, 4), (1, 4, 6), (1, 7, 8)]),
    ],
)
def test_saves_are_at_step_boundaries_and_after_validation(
    tmp_path: Path, accumulate: int, expected: list[tuple[int, int, int]]
):
    saves = Saves()
    tiny_trainer(tmp_path, [saves], accumulate=accumulate, epochs=2).fit(
        tiny_module(), datamodule=TinyData()
    )
    assert (
        saves.positions == expected
    )  # every 3 steps, and at the end of an epoch; no val/mask_ap, no best.ckpt
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_without_a_number_of_steps_only_epochs_are_saved(tmp_path: Path):
    saves = Saves()
    trainer = tiny_trainer(tmp_path, [saves], checkpoint_every_n_steps=None, epochs=2)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert saves.positions == [(0, 7, 7), (1, 7, 14)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "IMAGES",
            10,
            "the run had 7 training batches of 2 images per epoch and now has 5: resume",
        ),
        ("BATCH", 7, "in batches of 2, which 1 process with data.batch_size=7 do not divide"),
    ],
)
def test_resuming_with_other_batches_is_refused(
    run: Path, tmp_path: Path, monkeypatch: Any, name: str, value: int, message: str
):
    monkeypatch.setattr(f"tiny_run.{name}", value)
    with pytest.raises(UserError, match=message):
        tiny_trainer(tmp_path, epochs=4).fit(
            tiny_module(), datamodule=TinyData(), ckpt_path=run / "checkpoints" / "last.ckpt"
        )


def test_a_checkpoint_of_somewhere_else_is_refused(run: Path, tmp_path: Path):
    saved = load_plain(run / "checkpoints" / "last.ckpt")
    save_plain(tmp_path / "mine.ckpt", {**saved, "position": None})
    with pytest.raises(UserError, match=r"has no position to resume from: use last.ckpt of a run"):
        tiny_trainer(tmp_path).fit(
            tiny_module(), datamodule=TinyData(), ckpt_path=tmp_path / "mine.ckpt"
        )


def test_validating_a_checkpoint_leaves_the_tables_alone(run: Path):
    before = (run / "metrics.csv").read_text()
    trainer = tiny_trainer(run, [Score()])
    trainer.logger = False
    trainer.validate(
        tiny_module(),
        datamodule=TinyData(),
        ckpt_path=run / "checkpoints" / "best.ckpt",
        verbose=False,
    )
    assert (run / "metrics.csv").read_text() == before


class Scores(Callback):
    """Logs these val/mask_ap, one an epoch, and a val/loss that is their negative."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        value = self.values[trainer.current_epoch]
        pl_module.log("val/mask_ap", value)
        pl_module.log("val/loss", -value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def train(folder: Path, values: list[float], epochs: int, **options: Any) -> Trainer:
    last = last_checkpoint(folder)
    trainer = tiny_trainer(folder, [Scores(*values)], epochs=epochs, keep_best=2, **options)
    trainer.fit(tiny_module(), datamodule=TinyData(), ckpt_path=last)
    return trainer


def test_the_best_two_validations_stay(tmp_path: Path):
    values = [0.3, 0.1, 0.4, math.nan, 0.3, 0.35]
    train(tmp_path, values, 3)
    assert names(tmp_path) == ["best.ckpt", "epoch_0.ckpt", "epoch_2.ckpt", "last.ckpt"]
    train(tmp_path, values, 6)  # resumed: NaN, an equal one, and a second best
    assert names(tmp_path) == ["best.ckpt", "epoch_2.ckpt", "epoch_5.ckpt", "last.ckpt"]
    for name, epoch in {"best": 2, "epoch_2": 2, "epoch_5": 5}.items():
        assert load_plain(tmp_path / f"checkpoints/{name}.ckpt")["position"]["epoch"] == epoch + 1


def test_of_a_loss_the_least_is_the_best(tmp_path: Path):
    trainer = train(tmp_path, [0.3, 0.1, 0.4, 0.2], 4, monitor="val/loss", patience=1)
    assert names(tmp_path) == ["best.ckpt", "epoch_0.ckpt", "epoch_1.ckpt", "last.ckpt"]
    assert trainer.current_epoch == 2  # 0.1 is a greater loss than 0.3
    assert load_plain(tmp_path / "checkpoints/best.ckpt")["position"]["epoch"] == 1


def test_a_metric_that_no_validation_logs(tmp_path: Path):
    message = r"trainer.monitor=val/map is not .* has val/loss, .*val/mask_ap"
    with pytest.raises(UserError, match=message):
        train(tmp_path, [0.3], 1, monitor="val/map")


class SlowSteps(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(0.3)


def test_a_checkpoint_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved: list[int] = []
    save = checkpoint.RunCheckpoints._save

    def note(self: Any, trainer: Trainer, name: str, **position: int) -> None:
        saved.append(trainer.global_step)
        save(self, trainer, name, **position)

    monkeypatch.setattr(checkpoint.RunCheckpoints, "_save", note)
    options = {"checkpoint_every": "1s", "checkpoint_every_n_steps": None, "steps": 6}
    trainer = tiny_trainer(tmp_path, [Score(), SlowSteps()], **options)
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert 1 <= len([step for step in saved if step < 6]) <= 3
