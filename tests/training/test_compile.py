import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from models import make_batch, make_model
from tiny_run import tiny_trainer

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.measure.cost import count_flops
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.training import compile as compiling
from maskrcnn_lit.training.compile import REGIONS, CompileRegions, compile_regions, obstacle

CPU = torch.device("cpu")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be told: nothing where all regions are compiled. One graph each is what
    fullgraph=True asks for.
    """
    lines: list[str] = []
    monkeypatch.setattr(compiling, "tell", lines.append)
    return lines


def pair(**options: Any) -> tuple[MaskRCNN, MaskRCNN]:
    """Two models with the same weights, which have opinions; the second is compiled."""
    torch._dynamo.reset()
    plain = make_model(norm="frozen", channels=8)
    for layer in (plain.rpn.objectness, plain.box_head.classes, plain.mask_head.logits):
        torch.nn.init.normal_(layer.weight, std=0.5)
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
    assert valid.any() and torch.equal(found.detections["valid"][:, :most], valid)
    assert not found.detections["valid"][:, most:].any()
    for key, value in expected.detections.items():
        assert torch.allclose(
            found.detections[key][:, :most][valid].float(), value[valid].float(), atol=atol
        ), key
    if expected.losses:
        assert torch.equal(found.box_labels, expected.box_labels)


def test_every_region_is_one_graph_in_training_and_inference_for_each_padded_size(said: list[str]):
    """Captured as in use, the backward pass too, and run by torch's own operators."""
    plain, compiled = pair(backend="aot_eager")
    for width in (64, 96):
        batch = make_batch()
        batch["images"] = torch.nn.functional.pad(batch["images"], (0, width - 64))
        same_losses_and_gradients(plain, compiled, batch, 1e-6)
        same_detections(plain, compiled, batch, 1e-4)
    assert said == []
    assert torch._dynamo.utils.counters["graph_break"] == {}
    kept = copy.deepcopy(compiled)  # a copy computes with its own weights
    torch.nn.init.zeros_(kept.mask_head.logits.weight)
    batch = make_batch()
    assert kept.train()(batch).losses["mask"] != compiled.train()(batch).losses["mask"]


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


def test_the_flops_of_a_compiled_model_are_counted():
    """At the end of a run, of the model as it was trained."""
    plain, compiled = pair(backend="eager")
    batch = {key: value for key, value in make_batch().items() if key in ("images", "image_sizes")}
    compiled.eval()(batch)
    assert count_flops(compiled.eval(), batch) == count_flops(plain.eval(), batch) > 0
    compiled.eval()(batch)


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
    assert line.startswith("trainer.compile: proposals is not compiled, since ")


def test_what_stands_in_the_way_is_named(monkeypatch: pytest.MonkeyPatch):
    assert obstacle(make_model(), CPU) is None
    assert "points=0 takes as many points" in (
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


def test_auto_compiles_on_a_gpu_and_the_cpu_stays_as_it_is(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
):
    trainer = tiny_trainer(tmp_path, compile="auto")
    (callback,) = [c for c in trainer.callbacks if isinstance(c, CompileRegions)]
    compiled: list[Any] = []
    monkeypatch.setattr(compiling, "compile_regions", compiled.append)
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    model = make_model()
    callback.setup(trainer, Module(model), "fit")
    assert compiled == []
    CompileRegions("always").setup(trainer, Module(model), "fit")
    assert compiled.pop() == model
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    CompileRegions("off").setup(trainer, Module(model), "fit")
    assert compiled == []
    callback.setup(trainer, Module(model), "fit")
    assert compiled == [model] and said == []
    callback.setup(trainer, Module(make_model(roi_align={"points": 0})), "fit")
    assert compiled == [model] and said[0].startswith(
        "trainer.compile=auto: not compiled, since model.roi_align.points=0"
    )


def test_another_word_than_auto_or_off(tmp_path: Path):
    with pytest.raises(UserError, match=r"trainer.compile is 'yes'; expected auto, always, off"):
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
