"""The callback in a real Trainer, on a module that "detects" from a table: numbers, sanity check,
checkpoint, ranks.

Images are 64 x 64 and hold one rectangle each; the detection of image n lies n pixels beside its
object.
"""

import json
import math
import multiprocessing
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from pycocotools import mask as rle_tools
from torch import Tensor
from torch.utils.data import DataLoader

from maskrcnn_lit.callbacks import coco_evaluation as callback
from maskrcnn_lit.callbacks.coco_evaluation import CocoEvaluation
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.scores import score_results
from maskrcnn_lit.model.mask_rcnn import Output

# Processes are forked from one that has imported Lightning once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["maskrcnn_lit.training.trainer"])

CATEGORIES = (Category(9, "ant"), Category(2, "bee"))


class Index:
    """What the callback asks of an AnnotationIndex."""

    categories = CATEGORIES

    def __init__(self, images: int, empty: bool) -> None:
        self.images, self.empty = images, empty

    def __len__(self) -> int:
        return self.images

    def coco_ground_truth(self) -> dict[str, Any]:
        mask = np.zeros((64, 64), np.uint8, order="F")
        mask[10:50, 10:40] = 1
        rle = rle_tools.encode(mask)
        objects = [] if self.empty else [0, *range(self.images)]
        annotation = {"bbox": [10, 10, 30, 40], "area": 1200, "iscrowd": 0, "segmentation": rle}
        return {
            "images": [{"id": 100 + n, "height": 64, "width": 64} for n in range(self.images)],
            "categories": [category._asdict() for category in CATEGORIES],
            "annotations": [
                annotation | {"id": k, "image_id": 100 + n, "category_id": 9 if n % 2 == 0 else 2}
                for k, n in enumerate(objects)
            ],
        }


class Data(LightningDataModule):
    def __init__(self, images: int = 7, empty: bool = False, unreadable: int | None = None) -> None:
        super().__init__()
        self.val_index, self.unreadable = Index(images, empty), unreadable

    def _sample(self, n: int) -> Batch:
        readable = n != self.unreadable
        return {
            "image_ids": torch.tensor(100 + n),
            "scales": torch.tensor([0.5, 0.5]),  # detections are in pixels of a 32 x 32 image
            "original_sizes": torch.tensor([64, 64]),
            "readable": torch.tensor(readable),
            "labels": torch.tensor([1 + n % 2, 0]),
            "valid": torch.tensor([readable, False]),
            "boxes": torch.zeros(2, 4),
        }

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self._sample(n) for n in range(len(self.val_index))], batch_size=2)

    train_dataloader = val_dataloader


class Module(LightningModule):
    def __init__(self, scores: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.best = scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.weight**2

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        number = batch["image_ids"] - 100
        boxes = torch.tensor([5.0, 5.0, 20.0, 25.0]) + number[:, None] / 2 * torch.tensor(
            [1.0, 0.0, 1.0, 0.0]
        )
        detections = {
            "boxes": boxes[:, None].expand(-1, 3, -1),
            "scores": torch.stack([self.best - number / 100, number / 9, number / 9], dim=1),
            "labels": batch["labels"][:, :1].expand(-1, 3),
            "masks": torch.ones(len(number), 3, 28, 28),
            "valid": torch.tensor([True, True, False]).expand(len(number), -1),
        }
        right = torch.where(
            number < 2, batch["labels"][:, 0], 0
        )  # the box head is right on images 0 and 1
        return Output({}, {}, detections, right[:, None].expand(-1, 2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder, **quiet | options
    )


def test_validation_logs_what_the_written_detections_score(tmp_path: Path) -> None:
    data, evaluation = Data(), CocoEvaluation(run_dir=tmp_path / "run")
    trainer = _trainer(tmp_path, evaluation, devices=1)
    (logged,) = trainer.validate(Module(), data, verbose=False)
    results = json.loads((tmp_path / "run/detections.json").read_text())
    assert len(results) == 14
    assert {r["image_id"] for r in results} == set(range(100, 107))
    assert {r["category_id"] for r in results} == {9, 2}
    expected, per_class = score_results(data.val_index.coco_ground_truth(), results)
    assert 0.3 < expected["val/mask_ap"] < 0.9
    for name, value in expected.items():
        assert evaluation.metrics[name] == pytest.approx(value, abs=1e-12, nan_ok=True)
        assert (name in logged) is not math.isnan(value)
        if not math.isnan(value):
            assert logged[name] == pytest.approx(value, abs=1e-6)
    assert "val/mask_ap_small" not in logged
    assert math.isnan(evaluation.metrics["val/mask_ap_small"])
    accuracy = {"ant": {"roi_accuracy": 1 / 4}, "bee": {"roi_accuracy": 1 / 3}}
    assert evaluation.per_class == {
        name: values | accuracy[name] for name, values in per_class.items()
    }
    assert logged["val/images"] == 7
    assert logged["val/roi_accuracy"] == pytest.approx(2 / 7)
    assert logged["val/evaluation_seconds"] > 0


def test_checkpoint_monitors_mask_ap_and_the_sanity_check_logs_nothing(tmp_path: Path) -> None:
    evaluation = CocoEvaluation()
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor="val/mask_ap", mode="max")
    seen: list[dict[str, float]] = []

    class Watch(ModelCheckpoint):
        def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(dict(trainer.callback_metrics) | evaluation.metrics)

    trainer = _trainer(
        tmp_path, evaluation, checkpoint, Watch(save_top_k=0), max_epochs=1, num_sanity_val_steps=2
    )
    trainer.fit(Module(), datamodule=Data())
    assert seen == [{}]
    assert float(checkpoint.best_model_score) == pytest.approx(
        evaluation.metrics["val/mask_ap"], abs=1e-6
    )
    assert Path(checkpoint.best_model_path).is_file()


def test_unreadable_and_unseen_images_count_on_neither_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "maskrcnn_lit")
    whole, partial, evaluation = CocoEvaluation(), CocoEvaluation(), CocoEvaluation()
    _trainer(tmp_path, whole).validate(Module(), Data(images=6), verbose=False)
    _trainer(tmp_path, evaluation).validate(Module(), Data(unreadable=6), verbose=False)
    assert "scored 6 of 7 validation images: 1 could not be read" in caplog.text
    assert _without_time(evaluation) == pytest.approx(_without_time(whole), nan_ok=True)
    _trainer(tmp_path, partial, limit_val_batches=3).validate(Module(), Data(), verbose=False)
    assert _without_time(partial) == pytest.approx(_without_time(whole), nan_ok=True)


def test_data_without_objects_is_said_and_does_not_stop_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "maskrcnn_lit")
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor="val/mask_ap", mode="max")
    evaluation = CocoEvaluation()
    trainer = _trainer(tmp_path, evaluation, checkpoint, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(Module(), datamodule=Data(empty=True))
    assert "have no objects: AP is undefined" in caplog.text
    assert math.isnan(evaluation.metrics["val/mask_ap"])
    assert Path(checkpoint.best_model_path).is_file()


def test_second_epoch_replaces_the_first(tmp_path: Path) -> None:
    evaluation, module = CocoEvaluation(run_dir=tmp_path), Module()
    trainer = _trainer(tmp_path, evaluation)
    trainer.validate(module, Data(), verbose=False)
    module.best = 0.9
    trainer.validate(module, Data(images=3), verbose=False)
    results = json.loads((tmp_path / "detections.json").read_text())
    assert len(results) == 6
    assert max(r["score"] for r in results) == pytest.approx(0.9)


class Look(Callback):
    """A callback after the evaluation, as TensorBoard's is: takes what was scored."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = next(c for c in trainer.callbacks if isinstance(c, CocoEvaluation))
        self.scored = evaluation.scored


def test_what_was_scored_is_kept_until_the_validation_ends(tmp_path: Path) -> None:
    evaluation, look = CocoEvaluation(), Look()
    trainer = _trainer(tmp_path, evaluation, look, limit_val_batches=3)
    trainer.validate(Module(), Data(), verbose=False)
    truth, results = look.scored
    assert [image["id"] for image in truth["images"]] == list(range(100, 106)), (
        "the last one was not asked for"
    )
    assert score_results(truth, results).metrics["val/mask_ap"] == evaluation.metrics["val/mask_ap"]
    assert evaluation.scored is None


def test_the_study_asks_the_model_about_empty_boxes(tmp_path: Path) -> None:
    class Empty(Module):
        def validation_step(self, batch: Batch, batch_idx: int) -> Output:
            assert batch["boxes"].shape[1] == 3
            assert not batch["boxes"][:, 2].any()
            output = super().validation_step(batch, batch_idx)
            empty = (batch["image_ids"] - 100)[:, None]
            return output._replace(box_labels=torch.cat([output.box_labels, empty], 1))

    evaluation = CocoEvaluation(roi_boxes="study")
    _trainer(tmp_path, evaluation).validate(Empty(), Data(), verbose=False)
    assert evaluation.metrics["val/roi_accuracy"] == pytest.approx(
        (2 + 14) / (7 * 15)
    )  # image 0: 14 empty slots


class WriteMetrics(ModelCheckpoint):
    """Each process writes what it has logged and what its callback holds."""

    def __init__(self, folder: Path, evaluation: CocoEvaluation) -> None:
        super().__init__(save_top_k=0)
        self.folder, self.evaluation = folder, evaluation

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        record = {
            "logged": logged,
            "metrics": self.evaluation.metrics,
            "per_class": self.evaluation.per_class,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(record))


@pytest.mark.process
@pytest.mark.parametrize(
    ("processes", "images"), [pytest.param(2, 7, marks=pytest.mark.slow), (3, 7), (3, 2)]
)
def test_processes_score_as_one_does(processes: int, images: int, tmp_path: Path) -> None:
    """Lightning's sampler gives some images twice so that all processes get as many."""
    alone, evaluation = CocoEvaluation(), CocoEvaluation(run_dir=tmp_path)
    _trainer(tmp_path, alone).validate(Module(), Data(images), verbose=False)
    watch = WriteMetrics(tmp_path, evaluation)
    strategy = DDPStrategy(start_method="forkserver")
    trainer = _trainer(tmp_path, evaluation, watch, devices=processes, strategy=strategy)
    trainer.validate(Module(), Data(images), verbose=False)
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 2 * images
    first, *others = (
        json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(processes)
    )
    for record in (first, *others):
        assert record["logged"] == first["logged"]
        assert record["per_class"] == first["per_class"]
        metrics = {k: v for k, v in record["metrics"].items() if k != "val/evaluation_seconds"}
        assert metrics == pytest.approx(_without_time(alone), abs=1e-12, nan_ok=True)


class Failing(Module):
    """Process `rank` fails at its second batch."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        if self.global_rank == self.rank and batch_idx == 1:
            raise UserError("a mask of image 3 is damaged")
        return super().validation_step(batch, batch_idx)


def fit_and_fail(folder: Path, failing: int, environment: dict[str, str]) -> None:
    """What each process of the next test runs."""
    os.environ.update(environment)
    trainer = _trainer(
        folder, CocoEvaluation(), devices=2, strategy="ddp", max_epochs=1, num_sanity_val_steps=0
    )
    try:
        trainer.fit(Failing(failing), datamodule=Data())
    except UserError as error:
        (folder / f"{os.environ['RANK']}.txt").write_text(str(error))


@pytest.mark.process
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_ends_all_with_its_message(failing: int, tmp_path: Path) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port.getsockname()[1]),
            "WORLD_SIZE": "2",
        }
    shared |= {
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "1",
        "OMP_NUM_THREADS": "1",
    }
    running = [
        PROCESSES.Process(
            target=fit_and_fail,
            args=(tmp_path, failing, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}),
        )
        for rank in (0, 1)
    ]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join(timeout=180)
    finally:
        for process in running:
            process.kill()
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said[failing] == "a mask of image 3 is damaged"
    assert said[1 - failing] == f"process {failing} failed: a mask of image 3 is damaged"


def test_more_objects_than_count_are_told_with_what_to_type(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "maskrcnn_lit")
    """The first image holds two objects."""
    evaluation = CocoEvaluation(max_detections=[1, 2, 3], model_limit=1)
    _trainer(tmp_path, evaluation).validate(Module(), Data(), verbose=False)
    said = (
        "an image has 2 objects, but the model returns at most 1 detections: add "
        "model.box_head.max_detections=2"
    )
    assert said in caplog.text
    assert "val/box_ar3" in evaluation.metrics
    with pytest.raises(
        UserError, match=r"metrics\.max_detections=\[1, 2\] must be three ascending whole numbers"
    ):
        CocoEvaluation(max_detections=[1, 2])


def test_the_time_is_that_of_scoring_and_not_of_the_wait_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, scoring, sharing = [0.0], callback.score_matches, callback.gather_and_combine

    def wait_and_share(*given: Any) -> Any:
        now[0] += 100
        return sharing(*given)

    def score_slowly(*given: Any) -> Any:
        now[0] += 3
        return scoring(*given)

    monkeypatch.setattr(callback, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(callback, "gather_and_combine", wait_and_share)
    monkeypatch.setattr(callback, "score_matches", score_slowly)
    evaluation = CocoEvaluation()
    (logged,) = _trainer(tmp_path, evaluation).validate(Module(), Data(), verbose=False)
    assert logged["val/evaluation_seconds"] == evaluation.metrics["val/evaluation_seconds"] == 3


def test_the_time_does_not_hold_the_forward_pass_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    monkeypatch.setattr(
        callback, "time", SimpleNamespace(perf_counter=lambda: done.append("clock") or 0.0)
    )
    monkeypatch.setattr(callback, "to_original", lambda *_: done.append("to_original") or [])
    output, batch = (
        SimpleNamespace(detections={}, found=None, box_labels=None),
        {"readable": torch.zeros(0)},
    )
    device = torch.device("cuda", 0)
    CocoEvaluation().on_validation_batch_end(None, SimpleNamespace(device=device), output, batch, 0)
    assert done == [device, "clock", "to_original", "clock"]
    done.clear()
    CocoEvaluation().on_validation_batch_end(
        None, SimpleNamespace(device=torch.device("cpu")), output, batch, 0
    )
    assert done == ["clock", "to_original", "clock"]


def _without_time(evaluation: CocoEvaluation) -> dict[str, float]:
    return {k: v for k, v in evaluation.metrics.items() if k != "val/evaluation_seconds"}
