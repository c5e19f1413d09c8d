import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import BATCH, IMAGES, LOSSES, Score, TinyData, TinyImages, tiny_module, tiny_trainer

from maskrcnn_lit.callbacks import train_meter as meter
from maskrcnn_lit.callbacks.train_meter import Speed
from maskrcnn_lit.training import module
from maskrcnn_lit.training.optimizer import warmup_cosine

TRAIN = {
    "train/loss",
    "train/gradient_norm",
    "train/weight_norm",
    *(f"train/loss_{name}" for name in LOSSES),
}
VAL = {"val/loss", "val/mask_ap", *(f"val/loss_{name}" for name in LOSSES)}
OTHERS = {
    *("epoch", "lr/backbone", "lr/heads", "speed/images_per_second", "speed/data_wait"),
    *(f"{kind}/{part}" for kind in ("gradient_norm", "update_ratio") for part in ("trunk", "head")),
    "memory/host_gb",
}


class Record(Callback):
    """The losses of each batch, as the training step gave them."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append({name: float(loss) for name, loss in outputs["losses"].items()})


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_what_had_no_mask_slot_is_a_number_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = tiny_module()
    plain, lost = type(made.model).forward, iter([0, 0, 0, 4, 0, 5, *[0] * 100])

    def forward(self: Any, batch: Any) -> Any:
        output = plain(self, batch)
        return output._replace(masks_dropped=torch.tensor(next(lost))) if self.training else output

    monkeypatch.setattr(type(made.model), "forward", forward)
    tiny_trainer(tmp_path, [Score()], epochs=2, log_every_n_steps=3).fit(
        made, datamodule=TinyData()
    )
    train = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [row.get("train/masks_dropped") for row in train] == [None, "3.0", None, None, None]


def test_names_and_means(tmp_path: Path):
    record = Record()
    tiny_trainer(tmp_path, [record, Score()], epochs=2, log_every_n_steps=3).fit(
        tiny_module(), datamodule=TinyData()
    )
    train = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [int(row["step"]) for row in train] == [
        2,
        5,
        8,
        11,
        13,
    ]  # counted from 0; the last step too
    assert [int(row["epoch"]) for row in train] == [0, 0, 1, 1, 1]
    for i, row in enumerate(train):
        assert row.keys() == {"step"} | TRAIN | OTHERS
        window = record.losses[3 * i : 3 * i + 3]  # the third one spans two epochs and a validation
        for name in LOSSES:
            assert float(row[f"train/loss_{name}"]) == pytest.approx(
                sum(loss[name] for loss in window) / len(window), rel=1e-5
            )
        assert float(row["train/loss"]) == pytest.approx(
            sum(sum(loss.values()) for loss in window) / len(window), rel=1e-5
        )
        rate = 0.05 * warmup_cosine(
            int(row["step"]), total=14, warmup=1, end_factor=0.01
        )  # what the step was taken with
        assert float(row["lr/heads"]) == pytest.approx(rate)
        assert float(row["lr/backbone"]) == pytest.approx(rate / 2)


def test_the_weight_norm_is_of_all_that_learns(tmp_path: Path):
    module = tiny_module()
    tiny_trainer(tmp_path, [], steps=3, log_every_n_steps=1).fit(module, datamodule=TinyData())
    last = [row for row in rows(tmp_path) if "train/loss" in row][-1]
    squares = [p.detach().square().sum() for n, p in module.named_parameters() if "frozen" not in n]
    assert float(last["train/weight_norm"]) == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)


def test_norms_by_part_are_of_the_step_of_the_row(tmp_path: Path):
    """Against the weights before and after the last step, and the gradient of all parts."""
    seen: dict[str, Any] = {}

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen["before"] = {n: p.detach().clone() for n, p in pl_module.model.named_parameters()}

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen["after"] = {n: p.detach().clone() for n, p in pl_module.model.named_parameters()}

    trainer = tiny_trainer(tmp_path, [Look()], steps=4, log_every_n_steps=3, clip_norm=1e-3)
    trainer.fit(tiny_module(), datamodule=TinyData())
    first, last = (row for row in rows(tmp_path) if "train/loss" in row)
    for row in (first, last):
        squares = sum(float(row[f"gradient_norm/{part}"]) ** 2 for part in ("trunk", "head"))
        assert squares**0.5 == pytest.approx(float(row["train/gradient_norm"]), rel=1e-5)
    for part, prefix in (("trunk", "backbone"), ("head", "head")):
        names = [name for name in seen["before"] if name.startswith(prefix)]
        change = sum((seen["after"][n] - seen["before"][n]).square().sum() for n in names)
        size = sum(seen["before"][n].square().sum() for n in names)
        ratio = float(last[f"update_ratio/{part}"])
        assert ratio == pytest.approx(float((change / size).sqrt()), rel=1e-4)
        assert ratio > 0


def test_the_memory_of_this_process(monkeypatch: pytest.MonkeyPatch):
    used = meter.memory(torch.device("cpu"))
    assert set(used) == {"memory/host_gb"}
    assert 0.05 < used["memory/host_gb"] < 1000
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3e9)
    assert meter.memory(torch.device("cuda", 0))["memory/device_gb"] == 3.0


def test_a_short_epoch_has_a_row_of_its_own(tmp_path: Path):
    record = Record()
    tiny_trainer(tmp_path, [record, Score()], epochs=3, log_every_n_steps=50).fit(
        tiny_module(), datamodule=TinyData()
    )
    train = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [(int(row["step"]), int(row["epoch"])) for row in train] == [(6, 0), (13, 1), (20, 2)]
    for i, row in enumerate(train):
        losses = [sum(loss.values()) for loss in record.losses[7 * i : 7 * i + 7]]
        assert float(row["train/loss"]) == pytest.approx(sum(losses) / 7, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        (10, None, [6, 9, 19, 20]),  # the epochs end after the steps 6, 13, 20
        (50, 10, [6, 9]),  # the run ends in the middle of its second epoch
        (7, None, [6, 13, 20]),  # no second row where one is due
        (3, None, [2, 5, 8, 11, 14, 17, 20]),
    ],
)
def test_an_epoch_with_a_row_gets_no_second_one(
    tmp_path: Path, every: int, steps: int | None, expected: list[int]
):
    trainer = tiny_trainer(tmp_path, [Score()], epochs=3, steps=steps, log_every_n_steps=every)
    trainer.fit(tiny_module(), datamodule=TinyData())
    train = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [int(row["step"]) for row in train] == expected
    (own,) = (c for c in trainer.callbacks if isinstance(c, meter.TrainMeter))
    assert (own.first, own.last) == tuple(
        pytest.approx(float(train[i]["train/loss"]), rel=1e-5) for i in (0, -1)
    )


def test_accumulation_and_short_epochs(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, [], epochs=2, accumulate=4, log_every_n_steps=50)
    trainer.fit(tiny_module(), datamodule=TinyData())
    train = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [int(row["step"]) for row in train] == [1, 3]  # seven batches are two steps


def test_csv_and_tensorboard_agree(tmp_path: Path):
    tiny_trainer(tmp_path, [Score()], epochs=2).fit(tiny_module(), datamodule=TinyData())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == TRAIN | VAL | OTHERS
    for tag in TRAIN | VAL | OTHERS - {"epoch"}:
        expected = [(int(row["step"]), float(row[tag])) for row in rows(tmp_path) if tag in row]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (s, pytest.approx(v)) for s, v in expected
        ]
    assert [e.value for e in events.Scalars("val/mask_ap")] == pytest.approx([0.2, 0.6])
    assert [
        path.name for path in (tmp_path / "tensorboard").glob("events*")
    ]  # in the folder itself
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]


def test_accumulated_batches_count_as_one_step(tmp_path: Path):
    record = Record()
    trainer = tiny_trainer(tmp_path, [record], epochs=1, accumulate=2, log_every_n_steps=1)
    trainer.fit(tiny_module(), datamodule=TinyData())
    train = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [int(row["step"]) for row in train] == [0, 1, 2, 3]
    expected = (record.losses[2]["mask"] + record.losses[3]["mask"]) / 2
    assert float(train[1]["train/loss_mask"]) == pytest.approx(expected, rel=1e-5)


def test_what_fills_a_batch_is_not_counted(tmp_path: Path, monkeypatch: Any):
    module, speeds = tiny_module(), []
    monkeypatch.setattr(Speed, "take", lambda _, images: speeds.append(images) or (1.0, 0.0))
    collate = TinyImages.__getitem__
    blank = {"readable": torch.tensor(False)}
    monkeypatch.setattr(
        TinyImages,
        "__getitem__",
        lambda self, i: collate(self, i) | (blank if i in (3, 9, 13) else {}),
    )
    trainer = tiny_trainer(tmp_path, [], epochs=2, log_every_n_steps=7, accumulate=1)
    trainer.fit(module, datamodule=TinyData())
    assert speeds == [IMAGES - 3, IMAGES - 3]
    assert int(module.images_seen) == 2 * (IMAGES - 3)


class Clock:
    """Stands still but for what the test adds: how busy the machine is has no say."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("wait", [0.0, 1.0, 3.0])
def test_waiting_is_told_from_working(tmp_path: Path, monkeypatch: Any, wait: float):
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(module, "time", clock)
    load = TinyData.train_dataloader

    def slow(self: TinyData) -> Any:
        loader = load(self)
        collate = loader.collate_fn

        def wait_first(samples: Any) -> Any:
            clock.now += wait
            return collate(samples)

        loader.collate_fn = wait_first
        return loader

    class Work(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            clock.now += 1.0  # not waiting for data

    monkeypatch.setattr(TinyData, "train_dataloader", slow)
    trainer = tiny_trainer(
        tmp_path, [Work()], epochs=1, log_every_n_steps=7, checkpoint_every_n_steps=None
    )
    trainer.fit(tiny_module(), datamodule=TinyData())
    (row,) = (row for row in rows(tmp_path) if "train/loss" in row)
    assert float(row["speed/data_wait"]) == pytest.approx(wait / (1 + wait))
    assert float(row["speed/images_per_second"]) == pytest.approx(BATCH / (1 + wait))


def test_speed_leaves_out_what_lies_before_a_restart(monkeypatch: Any):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    speed = Speed()
    now = 150.0  # a validation
    speed.restart()
    now = 151.0
    speed.arrived(150.0)
    now = 154.0
    speed.done()
    assert speed.take(8) == (2.0, 0.25)
    now = 158.0
    speed.done()
    assert speed.take(8) == (2.0, 0.0)
