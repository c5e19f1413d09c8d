"""What fits into a budget of time: candidates of the grid, runs and exported files."""

from pathlib import Path

import pytest
import torch
from models import make_model
from omegaconf import OmegaConf
from tiny_commands import run_command

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.packages import EXTRAS
from maskrcnn_lit.launch import budget, certificate
from maskrcnn_lit.launch.budget import (
    installed,
    possible_runtimes,
    read_budget,
    shown_size,
    within_budget,
)

pytest_plugins = ("tiny_commands",)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("33ms", 33.0), ("33 ms", 33.0), (33, 33.0), ("0.5s", 500.0), ("12.5ms", 12.5)],
)
def test_a_budget_is_a_time_with_a_unit(text: object, milliseconds: float):
    assert read_budget(text) == milliseconds


@pytest.mark.parametrize("text", ["0ms", "-5ms", "fast", "33min", "", "nan", "1e400ms"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(UserError, match=r"latency=.* must be a time over 0, such as 33ms"):
        read_budget(text)


def grid(**more: object) -> object:
    own = {"model": ["tiny"], "backbone": ["mobilenet_v3_small"], "image_size": [64]}
    rest = {"latency": "1s", "steps": 2, "seed": 1, "trust": [], "provider": "auto"}
    return OmegaConf.create(rest | {"grid": own | {"runtime": None, "runs": None} | more})


@pytest.mark.long
def test_every_runtime_is_timed_with_every_slot_full(monkeypatch: pytest.MonkeyPatch):
    counts = []
    original = budget.latency

    def counted(detectors, images, image_size, steps):
        batch = budget.image_batch([images[0]], [0], image_size)
        for name, detect in detectors.items():
            with torch.inference_mode():
                counts.append((name, int(detect(batch)["valid"].sum())))
        return original(detectors, images, image_size, steps)

    monkeypatch.setattr(budget, "latency", counted)
    rows = within_budget(grid())
    assert sorted(row.runtime for row in rows) == sorted(budget.RUNTIMES)
    assert {count for _, count in counts} == {50}  # max_detections of model=tiny
    assert [row.milliseconds for row in rows] == sorted(row.milliseconds for row in rows)
    assert all(row.fits == (row.milliseconds[0] <= 1000) for row in rows)
    assert {(row.name, row.image_size) for row in rows} == {("tiny, mobilenet_v3_small", 64)}


@pytest.mark.long
@pytest.mark.process
def test_a_run_and_its_exported_file_have_their_ap(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exported = tmp_path / "exported"
    monkeypatch.setattr(certificate, "TIMED", 2)
    run_command("export", f"run={trained}", f"run_dir={exported}")
    none = {"model": [], "runs": [str(trained), str(exported)], "runtime": ["pytorch", "onnx_int8"]}
    rows = within_budget(grid(**none))
    assert {(row.name, row.runtime) for row in rows} == {
        (trained.name, "pytorch"),
        ("exported", "onnx"),
    }
    assert all(row.mask_ap is not None and row.image_size == 64 for row in rows)


def test_a_runtime_that_is_not_installed_is_left_out_or_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(budget.RUNTIMES, "onnx", ("no_such_package",))
    monkeypatch.setitem(EXTRAS, "no_such_package", "onnx")
    with caplog.at_level("INFO"):
        assert "onnx" not in installed(None)
        assert "pytorch" in installed(None)
    assert "not timed, because packages are missing: onnx;" in caplog.text
    with pytest.raises(UserError, match=r"grid\.runtime=onnx needs the package no_such_package"):
        installed(["onnx"])


def test_a_run_that_cannot_be_exported_is_timed_in_pytorch(caplog: pytest.LogCaptureFixture):
    every = ["pytorch", "onnx"]
    assert possible_runtimes("run", make_model(), every) == every
    model = make_model(pyramid={"connections": "top_down"})
    with caplog.at_level("INFO"):
        assert possible_runtimes("run", model, every) == ["pytorch"]
    assert "run is timed in PyTorch alone: a model with model.fpn.connections=top" in caplog.text
    with pytest.raises(UserError, match="cannot be exported"):
        possible_runtimes("run", model, ["onnx"])


def test_a_resize_rule_is_shown():
    assert (shown_size(320), shown_size((800, 1333))) == ("320", "800 x 1333")
