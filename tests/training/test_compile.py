import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from models import make_batch, make_model
from scenes import Scenes, real_module
from tiny_run import tiny_trainer

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.data.buckets import bucket_shapes
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.image_size import fitted_sizes
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.parity import SWAPPED_POINTS, Parity
from maskrcnn_lit.measure.cost import count_flops
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.training import compile as compiling
from maskrcnn_lit.training.compile import (
    REGIONS,
    STEPS_A_SIZE,
    CompileRegions,
    compile_regions,
    is_compiled,
    obstacle,
)

CPU = torch.device("cpu")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be told: nothing where all regions are compiled. One graph each is what
    fullgraph=True asks for.
    """
    lines: list[str] = []
    monkeypatch.setattr(compiling, "announce", lines.append)
    return lines


# Optional parts of a model.
PARTS = {
    "mask_iou": True,
    "mask_refine": "points",
    "cascade": (0.5, 0.6, 0.7),
    "occluder": True,
}


def pair(parts: dict[str, Any] | None = None, /, **options: Any) -> tuple[MaskRCNN, MaskRCNN]:
    """Two models with the same weights, which have opinions; the second is compiled."""
    torch._dynamo.reset()
    plain = make_model(norm="frozen", channels=8, **(parts or {}))
    for layer in (plain.rpn.objectness, plain.box_head.classes, plain.mask_head.logits):
        torch.nn.init.normal_(layer.weight, std=0.5)
    if plain.mask_iou is not None:
        torch.nn.init.constant_(plain.mask_iou.ious.bias, 0.5)
    compiled = copy.deepcopy(plain)
    compile_regions(compiled, **options)
    return plain, compiled


def same_losses_and_gradients(plain: MaskRCNN, compiled: MaskRCNN, batch: Any, rel: float) -> None:
    found = []
    for model in (plain.train(), compiled.train()):
        model.zero_grad()
        losses = model(batch).losses
        sum(losses.values()).backward()
        found.append((losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (expected, gradients), (losses, again) = found
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=rel
    )
    assert len(gradients) == len(again)
    for one, two in zip(gradients, again, strict=True):
        assert torch.allclose(one, two, rtol=100 * rel, atol=rel * one.abs().max().item() + 1e-8)


def same_detections(plain: MaskRCNN, compiled: MaskRCNN, batch: Any, atol: float) -> None:
    with torch.inference_mode():
        expected, found = (model.eval()(batch) for model in (plain, compiled))
    valid = expected.detections["valid"]
    most = valid.shape[1]  # compiled regions have all slots
    assert valid.any()
    assert torch.equal(found.detections["valid"][:, :most], valid)
    assert not found.detections["valid"][:, most:].any()
    for key, value in expected.detections.items():
        assert torch.allclose(
            found.detections[key][:, :most][valid].float(), value[valid].float(), atol=atol
        ), key
    if expected.losses:
        assert torch.equal(found.box_labels, expected.box_labels)


@pytest.mark.long
def test_every_region_is_one_graph_in_training(said: list[str]):
    """Captured as in use, the backward pass too, and run by torch's own operators. Each padded size
    is a graph of its own, and so are the regions in validation: below.
    """
    plain, compiled = pair(backend="aot_eager")
    same_losses_and_gradients(plain, compiled, make_batch(), 1e-6)
    assert said == []
    assert torch._dynamo.utils.counters["graph_break"] == {}
    kept = copy.deepcopy(compiled)  # a copy computes with its own weights
    torch.nn.init.zeros_(kept.mask_head.logits.weight)
    batch = make_batch()
    assert kept.train()(batch).losses["mask"] != compiled.train()(batch).losses["mask"]


@pytest.mark.slow  # test_a_padded_size_is_three_graphs_... with torch's operators
def test_every_region_is_one_graph_in_validation(said: list[str]):
    plain, compiled = pair(backend="aot_eager")
    same_detections(plain, compiled, make_batch(), 1e-4)
    assert said == []
    assert torch._dynamo.utils.counters["graph_break"] == {}


@pytest.mark.slow  # one more model of test_every_region_is_one_graph_in_training
def test_the_optional_parts_are_compiled_into_the_same_graphs(said: list[str]):
    plain, compiled = pair(PARTS, backend="aot_eager")
    batch = make_batch()
    same_losses_and_gradients(plain, compiled, batch, 1e-5)
    with torch.inference_mode():
        expected, found = (model.eval()(batch) for model in (plain, compiled))
    parity = Parity()  # near-equal scores may change places
    parity.add(expected.detections, found.detections, 0.05, SWAPPED_POINTS)
    assert parity.detections > 20
    assert parity.unmatched == 0
    assert parity.boxes < 1e-3
    assert parity.scores < 1e-5
    assert parity.masks < 1e-4
    assert said == []
    assert torch._dynamo.utils.counters["graph_break"] == {}


@pytest.mark.slow  # minutes of a C++ compiler
def test_with_inductor_the_step_is_the_same(said: list[str]):
    plain, compiled = pair()
    same_losses_and_gradients(plain, compiled, make_batch(), 1e-4)
    assert said == []


def test_the_weights_keep_their_names():
    plain, compiled = pair(backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    compiled.load_state_dict(plain.state_dict())
    assert all(isinstance(vars(compiled)[name].__self__, MaskRCNN) for name in REGIONS)


@pytest.mark.long
def test_the_flops_of_a_compiled_model_are_counted():
    """At the end of a run, of the model as it was trained."""
    plain, compiled = pair(backend="eager")
    batch = {key: value for key, value in make_batch().items() if key in ("images", "image_sizes")}
    compiled.eval()(batch)
    assert count_flops(compiled.eval(), batch) == count_flops(plain.eval(), batch) > 0
    compiled.eval()(batch)


@pytest.mark.long
def test_a_region_that_cannot_be_compiled_runs_as_it_is_and_a_line_says_so(
    said: list[str], monkeypatch: pytest.MonkeyPatch
):
    whole = MaskRCNN.proposals

    def reads(self: MaskRCNN, *args: Any) -> Any:
        found = whole(self, *args)
        return found if found[1].sum().item() >= 0 else None

    monkeypatch.setattr(MaskRCNN, "proposals", reads)
    plain, compiled = pair(backend="eager")
    batch = {key: value for key, value in make_batch().items() if key in ("images", "image_sizes")}
    same_detections(plain, compiled, batch, 1e-5)
    same_detections(plain, compiled, batch, 1e-5)
    (line,) = said
    assert line.startswith("trainer.compile: infer is not compiled, because of ")


def test_what_stands_in_the_way_is_named(monkeypatch: pytest.MonkeyPatch):
    assert obstacle(make_model(), CPU) is None
    assert "points=0 uses as many points" in (
        obstacle(make_model(roi_align={"points": 0}), CPU) or ""
    )
    assert "batch norm in the mask head" in (obstacle(make_model(head_norm="batch"), CPU) or "")
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: False)
    assert obstacle(make_model(), torch.device("cuda")) == "torch finds no Triton for this GPU"
    monkeypatch.setattr(torch._dynamo, "is_dynamo_supported", lambda: False)
    assert "does not compile here" in (obstacle(make_model(), CPU) or "")


class Module(LightningModule):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


class Lasting:
    """A trainer for so many steps of `data` on a device."""

    def __init__(self, device: str, data: Any = None) -> None:
        self.strategy = SimpleNamespace(root_device=torch.device(device))
        self.datamodule = data


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that would be compiled."""
    models: list[Any] = []
    monkeypatch.setattr(compiling, "compile_regions", models.append)
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    return models


def start(how: str, steps: int, trainer: Any, model: MaskRCNN) -> None:
    CompileRegions(how, lambda _: steps).on_fit_start(trainer, Module(model))


def test_auto_compiles_on_a_gpu_and_the_cpu_stays_as_it_is(said: list[str], compiled: list[Any]):
    model, long = make_model(), 10**6
    start("auto", long, Lasting("cpu"), model)
    start("off", long, Lasting("cuda"), model)
    assert compiled == []
    start("always", 1, Lasting("cpu"), model)
    assert compiled.pop() == model
    start("auto", long, Lasting("cuda"), model)
    assert compiled == [model]
    assert said == []
    start("auto", long, Lasting("cuda"), make_model(roi_align={"points": 0}))
    assert compiled == [model]
    assert said[0].startswith(
        "trainer.compile=auto: not compiled, because model.roi_align.points=0"
    )


def test_auto_compiles_a_run_that_is_long_enough_for_its_padded_sizes(
    said: list[str], compiled: list[Any]
):
    data, model = SimpleNamespace(padded_sizes=6), make_model()
    start("auto", 6 * STEPS_A_SIZE - 1, Lasting("cuda", data), model)
    assert compiled == []
    assert said == [
        "trainer.compile=auto: not compiled, because 11999 steps of 6 padded sizes are too few: "
        "compiling (about 100 s per size) pays off from 12000 steps. Use trainer.compile=always to "
        "compile anyway, or trainer.compile=off to pad images less"
    ]
    start("auto", 6 * STEPS_A_SIZE, Lasting("cuda", data), model)
    start("always", 1, Lasting("cuda", data), model)
    assert compiled == [model, model]


@pytest.mark.long
def test_a_run_compiles_before_its_first_step_and_knows_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, bool]] = []

    def compile_now(model: MaskRCNN) -> None:
        seen.append((callback.steps(trainer), is_compiled(model)))

    monkeypatch.setattr(compiling, "compile_regions", compile_now)
    trainer = tiny_trainer(tmp_path, compile="always", epochs=5, steps=3)
    trainer.limit_val_batches = 0
    (callback,) = [c for c in trainer.callbacks if isinstance(c, CompileRegions)]
    trainer.fit(real_module(), datamodule=Scenes())
    assert seen == [(3, False)]


def test_what_is_compiled_is_not_compiled_again():
    model = make_model()
    assert not is_compiled(model)
    compile_regions(model, backend="eager")
    first = {name: vars(model)[name] for name in REGIONS}
    compile_regions(model, backend="eager")
    assert is_compiled(model)
    assert {name: vars(model)[name] for name in REGIONS} == first


@pytest.mark.long
def test_inference_is_one_graph():
    plain, compiled = pair(backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    batch = {key: value for key, value in make_batch().items() if key in ("images", "image_sizes")}
    same_detections(plain, compiled, batch, 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch._dynamo.utils.counters["graph_break"] == {}


COCO_SIZES = [[480, 640], [427, 640], [375, 500], [640, 480], [640, 427], [500, 500], [333, 640]]


def test_the_coco_recipe_has_two_padded_sizes_and_one_number_of_slots_to_compile():
    data = compose("train", ["data=coco2017", "trainer.compile=auto"]).data
    size = tuple(data.image_size)
    shapes = bucket_shapes(fitted_sizes(np.array(COCO_SIZES), size), size, data.lengths)
    assert shapes == [[(800, 1344)], [(1344, 800)]]
    widths = set()
    for objects in (0, 1, 9, 33, 64):
        sample = {"images": torch.zeros(3, 64, 96, dtype=torch.uint8)}
        sample |= {"boxes": torch.zeros(objects, 4), "image_sizes": torch.tensor((64, 96))}
        widths.add(collate([sample], None, data.slots)["boxes"].shape[1])
    assert widths == {64}


@pytest.mark.long
def test_a_padded_size_is_three_graphs_in_training_and_six_in_validation(said: list[str]):
    """With the losses, gradients and detections of the plain model in every size. However many
    objects and batches there are: at most 6 and 12 for the two sizes of the COCO recipe. (One is
    the other one turned, so they share a graph that depends on the number of anchors alone; the two
    sizes here have different numbers.)
    """
    plain, model = pair(backend="eager")
    counters = torch._dynamo.utils.counters
    counters.clear()

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    batches = []
    for objects in (2, 4):
        wide, high = make_batch(objects=objects), make_batch(objects=objects)
        wide["images"] = torch.nn.functional.pad(wide["images"], (0, 32))
        high["images"] = torch.nn.functional.pad(high["images"], (0, 0, 0, 64))
        batches += [wide, high]
    for batch in batches:
        same_losses_and_gradients(plain, model, batch, 1e-6)
    assert graphs() == 2 * 3
    for batch in batches:
        same_detections(plain, model, batch, 1e-4)
    assert graphs() == 2 * (3 + 6)
    model.train()
    sum(model(batches[0]).losses.values()).backward()
    assert graphs() == 2 * (3 + 6)
    assert said == []
    assert counters["graph_break"] == {}


def test_one_image_on_a_gpu_is_a_cuda_graph_whose_results_are_copied(
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[Any] = []
    kept = {"scores": torch.ones(1)}

    def stand_in(function: Any, **options: Any) -> Any:
        def run(*args: Any) -> Any:
            asked.append((function.__name__, options.get("mode")))
            return kept

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    model = make_model()
    compile_regions(model)
    for device, count in (("cpu", 1), ("cuda", 2), ("cuda", 1)):
        images = type(
            "Images", (), {"device": torch.device(device), "__len__": lambda _, n=count: n}
        )()
        found = model.infer(images, None)
        assert (found["scores"] is kept["scores"]) == ((device, count) != ("cuda", 1))
    assert asked == [("infer", None), ("infer", None), ("infer", "reduce-overhead")]


def test_another_word_than_auto_or_off(tmp_path: Path):
    with pytest.raises(UserError, match=r"trainer.compile=yes is unknown: use auto, always, off"):
        tiny_trainer(tmp_path, compile="yes")


def test_what_was_compiled_is_kept_in_the_users_cache_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    compile_regions(make_model(), backend="eager")
    assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(
        tmp_path / "maskrcnn_lit" / "compiled"
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    compile_regions(make_model(), backend="eager")
    assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "elsewhere")
