"""A try of a batch size: what it trains, and when it does not fit. (In this process, whose peak
memory says nothing; tests/launch/test_auto_batch.py has tries in processes of their own.)
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tiny_commands import MODEL, coco_data

from maskrcnn_lit.config.compose import compose, to_dict
from maskrcnn_lit.launch import batch_probe
from maskrcnn_lit.launch.batch_probe import measure, memory_limit
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.runs.folder import freeze_config

pytest_plugins = ("tiny_commands",)

ENOUGH = 10**13  # bytes


@pytest.fixture
def config(shapes: Path) -> DictConfig:
    """Of a run on pictures of 64 x 64 pixels, as the processes of tries read it."""
    options = ["data.image_size=[64,96]", "data.batch_size=auto", "trainer.ema=0.99"]
    options += ["trainer.limit_train_batches=1", "backbone.freeze_at=all"]
    options += ["augment=none", "data.lengths=1", "data.feature_cache=float32"]
    model = [text for text in MODEL if not text.startswith(("data.batch_size", "data.image"))]
    frozen = freeze_config(compose("train", [*coco_data(shapes), *model, *options]))
    return DictConfig(OmegaConf.create(to_dict(frozen)))


@pytest.mark.long
def test_every_padded_size_is_trained_and_validated_with_full_batches(
    config: DictConfig, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[Any, ...]] = []
    forward = MaskRCNN.forward

    def noting(self: MaskRCNN, batch: dict[str, torch.Tensor], static_shapes: bool = False) -> Any:
        images = tuple(batch["images"].shape)
        full = bool(batch["valid"].all())
        seen.append((self.training, images, full, static_shapes, self.box_head.score_threshold))
        return forward(self, batch, static_shapes)

    monkeypatch.setattr(MaskRCNN, "forward", noting)
    measured = measure(config, 3, ENOUGH)
    train = (True, (3, 3, 64, 96), True, True, 0.0)
    assert seen == [train, train, (False, *train[1:])], "two batches a step, then a validation"
    assert list(measured["peak_bytes"]) == ["train 64x96", "val 64x96"]
    assert measured["fits"]
    assert measured["train_images"] == 8


@pytest.mark.long
def test_a_try_ends_at_the_first_size_above_the_limit(config: DictConfig):
    measured = measure(config, 1, 10**6)
    assert not measured["fits"]
    assert list(measured["peak_bytes"]) == ["train 64x96"]
    assert measured["reason"].startswith("train 64x96 takes ")


@pytest.mark.long
def test_the_margin_is_left_free(config: DictConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_probe, "peak_memory_bytes", lambda device: 1000)
    config.auto_batch.margin = 0.2
    limits = {limit: measure(config, 1, limit)["fits"] for limit in (1249, 1250)}
    assert limits == {1249: False, 1250: True}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
    ],
)
def test_a_device_that_runs_out_of_memory_does_not_fit(
    config: DictConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(batch_probe, "_train", fail)
    measured = measure(config, 1, ENOUGH)
    assert (measured["fits"], measured["reason"]) == (False, "the device ran out")


def test_any_other_error_is_raised(config: DictConfig, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(batch_probe, "_train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        measure(config, 1, ENOUGH)


@pytest.mark.parametrize(("processes", "bytes_each"), [(1, 4_000_000_000), (2, 2_000_000_000)])
def test_half_of_the_free_memory_is_for_the_processes_on_the_cpu(
    config: DictConfig, monkeypatch: pytest.MonkeyPatch, processes: int, bytes_each: int
):
    monkeypatch.setattr(batch_probe, "free_memory_bytes", lambda devices: 8_000_000_000)
    config.trainer.devices = processes
    assert memory_limit(config) == bytes_each


def test_a_gpu_has_all_of_its_free_memory(config: DictConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10 - number, 80))
    config.trainer.accelerator, config.trainer.devices = "gpu", [0, 3]
    assert memory_limit(config) == 7, "of the GPU with the least"


def test_the_given_memory_is_that_of_each_process(config: DictConfig):
    config.trainer.devices, config.auto_batch.memory_gb = 2, 1.5
    assert memory_limit(config) == 1_500_000_000


@pytest.mark.gpu
@pytest.mark.parametrize(("limit", "fits"), [(40_000_000, False), (4_000_000_000, True)])
def test_a_gpu_gives_a_try_no_more_than_the_limit(config: DictConfig, limit: int, fits: bool):
    config.trainer.accelerator, config.trainer.precision = "gpu", "auto"
    try:
        measured = measure(config, 1, limit)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert measured["fits"] == fits, measured["reason"]
