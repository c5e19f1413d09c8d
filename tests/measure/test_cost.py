import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import make_batch, make_model
from PIL import Image
from torch import nn

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.datasets.shapes import write_shapes
from maskrcnn_lit.measure import cost
from maskrcnn_lit.measure.cost import (
    ROUNDS,
    WARM_UP,
    count_flops,
    count_parameters,
    energy_joules,
    inference_batch,
    inference_cost,
    median_seconds,
    run_cost,
)
from maskrcnn_lit.model.deformable import DeformableConv
from maskrcnn_lit.report.panels import draw_predictions
from maskrcnn_lit.training.compile import compile_regions
from maskrcnn_lit.training.devices import device_name

CPU = torch.device("cpu")


def test_shared_parameters_count_once_and_frozen_ones_are_not_trained() -> None:
    first, frozen = nn.Linear(3, 3, bias=False), nn.Linear(3, 5)
    frozen.requires_grad_(False)
    assert count_parameters(nn.Sequential(first, first, frozen)) == {
        "parameters": 29,
        "trainable_parameters": 9,
    }


def test_run_cost_holds_plain_numbers() -> None:
    found = run_cost(nn.Linear(2, 2), CPU, seconds=4.0, images=100, joules=7.5)
    assert found["images_per_second"] == 25
    assert found["seconds"] == 4
    assert found["parameters"] == 6
    assert found["energy_joules"] == 7.5
    assert "thread" in found["device"]
    assert found["device"] == device_name(CPU)
    assert run_cost(nn.Linear(2, 2), CPU, seconds=0.0, images=0)["images_per_second"] is None


class Pooled(nn.Module):
    """A model of one convolution that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(tuple(batch["images"].shape))
        return self.layer(batch["images"].float()).mean()


def test_inference_is_counted_for_one_image_and_timed_for_one_and_for_several() -> None:
    model = Pooled().eval()
    one, several = ({"images": torch.zeros(n, 3, 32, 64, dtype=torch.uint8)} for n in (1, 4))
    found = inference_cost(model, one, several)
    assert found["flops"] == 2 * 8 * 3 * 9 * 32 * 64
    assert found["inference_size"] == [32, 64]
    assert found["inference_batch"] == 4
    assert found["inference_images_per_second"] > 0 < found["latency_seconds"]
    assert model.seen.count((1, 3, 32, 64)) == 1 + WARM_UP + ROUNDS
    assert model.seen.count((4, 3, 32, 64)) == WARM_UP + ROUNDS
    alone = inference_cost(model, one, one)
    assert alone["inference_images_per_second"] == 1 / alone["latency_seconds"]


def test_flops_are_of_the_architecture_whatever_is_found() -> None:
    model = make_model(norm="frozen", channels=8).eval()
    batch = {key: value for key, value in make_batch().items() if key in ("images", "image_sizes")}
    counts = []
    for bias in (-20.0, 20.0):  # of the background: everything is found, or nothing
        with torch.no_grad():
            model.box_head.classes.bias[0] = bias
            counts.append((count_flops(model, batch), int(model(batch).detections["valid"].sum())))
    (everything, many), (nothing, none) = counts
    assert everything == nothing > 0
    assert many > none == 0


def test_flops_of_a_deformable_convolution_are_those_of_its_two_convolutions() -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    images = torch.zeros(2, 4, 8, 5)
    assert count_flops(plain, images) == 2 * (8 * 5) * 6 * (4 // 2 * 9) * 2
    added = 2 * (8 * 5) * 27 * (4 * 9) * 2
    layer = DeformableConv(plain, True)
    assert count_flops(layer, images) == count_flops(plain, images) + added


def test_a_time_is_the_median_after_two_calls_that_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    lasts = iter([60.0, 30.0, 0.1, 0.3, 0.2, 1.9, 9.0, 9.0])

    def work() -> None:
        clock[0] += next(lasts)

    # 60 s and 30 s warm up, as compiling does; after 2.5 s none begins any more
    assert median_seconds(work, CPU) == pytest.approx(0.25)
    calls: list[int] = []

    def slow() -> None:
        calls.append(1)
        clock[0] += 7

    assert median_seconds(slow, CPU) == 7
    assert calls == [1] * (WARM_UP + 1)


@pytest.mark.long
def test_a_compiled_model_is_measured_and_drawn_without_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recorded latency of a compiled run must not be the time of the compiler."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model(norm="frozen", channels=8)
    compile_regions(model, backend="aot_eager")
    batch = {key: value for key, value in make_batch().items() if key in ("images", "image_sizes")}
    one = {key: value[:1] for key, value in batch.items()}
    found = inference_cost(model.eval(), one, batch)
    assert found["latency_seconds"] < 1
    scenes = SimpleNamespace(val_dataset=Scene())
    draw_predictions(
        SimpleNamespace(model=model, categories=NAMES, seed=0, device=CPU),  # type: ignore[arg-type]
        scenes,  # type: ignore[arg-type]
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    with torch.no_grad():
        model(one)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "outside of them it is"


NAMES = [SimpleNamespace(name=name) for name in "abc"]


class Scene:
    """A data set of one image."""

    index = SimpleNamespace(image_ids=torch.tensor([10]))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in make_batch(1).items()}


def test_the_image_of_median_size_is_taken_as_it_is_evaluated(tmp_path: Path) -> None:
    write_shapes(root=tmp_path, train_images=1, val_images=3, size=64, seed=0)
    index = read_index(tmp_path / "annotations/instances_val.json", tmp_path / "val", "error")
    batch = inference_batch(index, 128, 2)
    assert batch["images"].shape == (2, 3, 128, 128)
    assert "boxes" not in batch
    assert torch.equal(batch["images"][0], batch["images"][1])
    assert batch["images"].float().std() > 1
    for file in (tmp_path / "val").iterdir():
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(file)
    (tmp_path / "val" / index.file_name(1)).write_bytes(b"no image")
    assert not inference_batch(index, 64, 1)["images"].any()


class NoDriver(Exception):
    pass


def fake_nvml(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    module = types.ModuleType("pynvml")
    given = {
        "NVMLError": NoDriver,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
    } | functions
    for name, value in given.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(cost, "_uuid", lambda device: f"uuid{device.index}")


def test_energy_is_the_sum_over_the_gpus_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    milli = {"GPU-uuid0": 2_500, "GPU-uuid1": 1_000}
    fake_nvml(
        monkeypatch,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=milli.__getitem__,
    )
    assert energy_joules([torch.device("cuda", 0), torch.device("cuda", 1)]) == 3.5
    assert energy_joules([]) is None


def test_energy_is_none_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoDriver("not supported")

    fake_nvml(
        monkeypatch,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=refuse,
    )
    assert energy_joules([torch.device("cuda", 0)]) is None
    fake_nvml(monkeypatch, nvmlInit=refuse)
    assert energy_joules([torch.device("cuda", 0)]) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert energy_joules([torch.device("cuda", 0)]) is None


@pytest.mark.long
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "mobilenet_v3_large"])
def test_the_edge_model_takes_at_most_3_gflop_at_320_pixels(backbone: str) -> None:
    """With all slots full."""
    config = compose("train", ["model=mask_rcnn_edge", f"backbone={backbone}"])
    config.model.num_classes = 80
    model = build(config.model).eval()
    images = torch.zeros(1, 3, 320, 320, dtype=torch.uint8)
    batch = {"images": images, "image_sizes": torch.tensor([[320, 320]])}
    assert count_flops(model, batch) < 3e9
