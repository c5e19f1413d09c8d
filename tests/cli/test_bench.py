"""`maskrcnn-lit bench`, small."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from tiny_commands import BACKBONE, SIZE, TINY, refused, run_command, shapes_data

from maskrcnn_lit.cli import bench
from maskrcnn_lit.cli.bench import advice, summary, table
from maskrcnn_lit.launch.budget import Row

pytest_plugins = ("tiny_commands",)


@pytest.mark.long
def test_it_measures_tells_and_writes(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "bench.json"
    small = ("optimizer.lr=4.0e-3", "steps=2", "warmup=1", "against=torchvision", f"out={out}")
    model = [text.replace(BACKBONE, "resnet18") for text in TINY]  # torchvision's is a ResNet
    run_command("bench", *shapes_data(shapes), *model, *small)
    (line,) = out.read_text().splitlines()
    report = json.loads(line)
    assert report["benchmark"] == "bench"
    assert report["images"] == [2, 3, SIZE, SIZE]
    assert report["workers"] == 0
    assert report["trainable_parameters"] == report["parameters"] > 1e6
    assert list(report["training"]["stages"]) == ["forward", "backward", "optimizer"]
    for part in (
        report["loader"],
        *(of[name] for of in (report, report["torchvision"]) for name in PARTS),
    ):
        low, median, high = part["milliseconds"]
        assert 0 < low <= median <= high
        assert part["images_per_second"] == pytest.approx(2000 / median, rel=0.01)
    assert (report["config"]["model"]["num_classes"] == 6 and report["commit"] is None) or report[
        "versions"
    ]["torch"]
    assert set(report["peak_megabytes"]) == {"training", "inference"}
    told = capsys.readouterr().out
    assert "Bottleneck: " in told
    assert f"Written to {out}" in told
    assert "inference, torchvision" in told


@pytest.mark.parametrize(
    ("how", "device", "compiled"),
    [
        ("off", "cuda", False),
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("always", "cpu", True),
    ],
)
def test_it_compiles_as_a_long_training_does(
    how: str, device: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []
    monkeypatch.setattr(bench, "compile_regions", models.append)
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    model = make_model()
    assert bench._compile(how, model, torch.device(device)) is compiled
    assert models == [model] * compiled


def test_what_cannot_be_compiled_is_measured_as_it_is(capsys: pytest.CaptureFixture) -> None:
    model = make_model(roi_align={"points": 0})
    assert not bench._compile("always", model, torch.device("cpu"))
    assert "trainer.compile=always: not compiled, because" in capsys.readouterr().out


PARTS = ("training", "inference")


@pytest.mark.long
def test_another_model_to_compare_with_is_told(capsys: pytest.CaptureFixture) -> None:
    run_command("bench", "experiment=demo", "against=detectron2", code=2)
    assert "against=detectron2 is unknown: use against=torchvision" in capsys.readouterr().err


def test_a_backbone_of_ones_own_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "own.yaml").write_text("_target_: mylab.Own\n_replace_: true\n")
    options = ("--config-dir", tmp_path, "experiment=demo", "against=torchvision")
    run_command("bench", *options, "backbone=own", code=2)
    said = capsys.readouterr().err
    assert "model.backbone is mylab.Own" in said
    assert len(said.splitlines()) == 1


def made(loading: float, step: float, **more: Any) -> dict[str, Any]:
    """A report: seconds a batch of the loader and of a training step."""
    training = summary(
        {"forward": [step * 0.3] * 3, "backward": [step * 0.6] * 3, "optimizer": [step * 0.1] * 3},
        8,
    )
    return {
        "device": "a device",
        "cores": 8,
        "workers": 2,
        "precision": "32-true",
        "images": [8, 3, 64, 64],
        "loader": summary({"batch": [loading] * 3}, 8),
        "training": training,
        "inference": training,
        "detections": 3.0,
        "peak_megabytes": {"training": 1000, "inference": 500},
    } | more


def test_a_slow_loader_wants_workers() -> None:
    told, change = advice(made(0.5, 0.1), cuda=True, memory=80_000)
    assert told == "the loader: 500 ms per batch, while a training step takes 100 ms"
    assert change[0] == "data.workers=7"
    _, change = advice(made(0.5, 0.1, workers=7), cuda=True, memory=80_000)
    assert change[0].startswith("data.image_cache=on")


def test_a_slow_step_names_its_stage() -> None:
    told, change = advice(made(0.1, 0.5), cuda=True, memory=80_000)
    assert told == "the training step: 500 ms per batch, most of it (300 ms) in the backward"
    assert change[0].startswith("data.batch_size=16")
    assert change[1] == "trainer.precision=auto"
    _, change = advice(made(0.1, 0.5, precision="bf16-mixed"), cuda=True, memory=1500)
    assert change == ["a smaller data.image_size or backbone"]
    _, change = advice(made(0.1, 0.5), cuda=False, memory=None)
    assert change[0] == "a GPU"


def test_percentiles_are_of_whole_batches() -> None:
    got = summary({"a": [0.001, 0.003, 0.005], "b": [0.001, 0.001, 0.001]}, images=2)
    assert got["milliseconds"] == pytest.approx([2.2, 4.0, 5.8])
    assert got["images_per_second"] == 500
    assert got["stages"]["b"] == [1.0, 1.0, 1.0]


def test_the_table_has_a_row_a_stage() -> None:
    report = made(0.1, 0.5)
    report["bottleneck"], report["change"] = advice(report, cuda=False, memory=None)
    lines = "\n".join(table(report))
    assert lines.count("backward") == 3
    assert "80.0" in lines
    assert "peak memory: training 1000 MB" in lines


def test_what_is_fast_enough_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        Row("edge, mobilenet_v3_small", 320, "onnx_int8", (20.04, 25.0), None, None, True),
        Row("a_run", [480, 640], "pytorch", (51.0, 60.0), 0.251, 0.301, False),
        Row("boxes", 640, "pytorch", (52.0, 60.0), None, 0.402, False),
    ]
    monkeypatch.setattr(bench, "within_budget", lambda config: rows)
    out = tmp_path / "budget.json"
    run_command("bench", "latency=33ms", f"out={out}")
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["budget_milliseconds"]) == ("latency", 33)
    assert [row["name"] for row in report["rows"]] == [row.name for row in rows]
    assert report["rows"][1]["milliseconds"] == [51.0, 60.0]
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "1 of 3 take at most 33 ms an image, from its pixels to its detections" in output
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert "edge, mobilenet_v3_small 320 onnx_int8 20.0 25.0 49.9 - - yes" in lines
    assert "a_run 480 x 640 pytorch 51.0 60.0 19.6 0.251 0.301 no" in lines
    assert "boxes 640 pytorch 52.0 60.0 19.2 - 0.402 no" in lines
    message = refused("bench", "latency=33ms", f"out={tmp_path}/budget.jsonl")
    assert f"{tmp_path}/budget.png already exists" in message
