"""Exported files give what the model gives, and wrong ones one sentence."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import HEIGHT, METADATA, WIDTH, assert_same, batch_of, lively

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.runtime import (
    SUFFIXES,
    ExportedModel,
    choose_provider,
    file_bytes,
    is_exported,
    open_exported,
)

pytest_plugins = ("exported",)


@pytest.mark.long
@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2"])
def test_a_file_gives_what_the_model_gives(format: str, exported_files: dict[str, Path]):
    model, exported = lively(), open_exported(exported_files[format], trust=["pt2"])
    # Three images in calls of one; the last of them is padded further than the file wants.
    batch = batch_of([(HEIGHT, WIDTH), (40, 70), (33, 96)], (96, 128))
    found = exported(batch).detections
    cut = {"images": batch["images"][..., :HEIGHT, :WIDTH], "image_sizes": batch["image_sizes"]}
    with torch.no_grad():
        expected = model.infer(cut["images"], cut["image_sizes"], True)
    assert_same(found, expected, score=5e-5)  # random weights: rounding errors grow
    assert exported.metadata.format == format
    assert exported.sizes == [(HEIGHT, WIDTH)]


@pytest.mark.long
def test_an_image_larger_than_every_file_is_refused(exported_files: dict[str, Path]):
    exported = open_exported(exported_files["onnx"])
    with pytest.raises(UserError, match=r"65x96 pixels .* sizes are 64x96: .*sizes=\[96x96\]"):
        exported(batch_of([(65, 96)], (96, 96)))


def test_each_image_runs_in_the_smallest_file_that_it_fits():
    asked: list[tuple[int, ...]] = []

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        asked.append(images.shape)
        count = len(images)
        rows = [np.zeros((count, 1, 4)), sizes[:, :1].astype(float), sizes[:, :1]]
        return [*rows, np.zeros((count, 1, 28, 28)), sizes[:, :1] > 0]

    sizes = [(64, 96), (96, 64), (96, 96)]
    files = [(replace(METADATA, size=size, batch_size=2), run) for size in sizes]
    exported = ExportedModel(files)
    assert exported.sizes == sizes
    for size, expected in (((60, 90), sizes[0]), ((90, 60), sizes[1]), ((70, 90), sizes[2])):
        found = exported(batch_of([size, size, size], (96, 96))).detections
        assert asked == [(2, 3, *expected)] * 2  # the second call is filled up
        assert found["labels"].tolist() == [[size[0]]] * 3
        asked.clear()


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("opener", ["open_exported", "load"])
def test_a_signal_after_the_end_of_two_models_of_openvino(
    opener: str, exported_files: dict[str, Path]
):
    """On a processor with AMX, it was a segmentation fault."""
    script = f"""
import os, signal
from maskrcnn_lit.export.{"client" if opener == "load" else "runtime"} import {opener} as load
first, second = load({str(exported_files["openvino"])!r}), load({str(exported_files["openvino"])!r})
del first
del second
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGCHLD)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.splitlines() == ["handled"]


@pytest.mark.long
def test_a_pt2_file_wants_trust(exported_files: dict[str, Path]):
    with pytest.raises(UserError, match=r"may do anything when it is opened: add trust=\[pt2\]"):
        open_exported(exported_files["pt2"])


@pytest.mark.long
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_one_sentence(
    suffix: str, exported_files: dict[str, Path], tmp_path: Path
):
    content = exported_files[SUFFIXES[suffix]].read_bytes()
    for number, damaged in enumerate((b"", b"no model", content[: len(content) // 2])):
        file = tmp_path / f"{number}{suffix}"
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is not an exported file, or damaged \(") as caught:
            open_exported(file, trust=["pt2"])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_a_damaged_library_is_one_sentence_and_wants_trust(tmp_path: Path):
    file = tmp_path / "model_64x96_library.pt2"
    file.write_bytes(b"no library")
    with pytest.raises(UserError, match=r"may do anything when it is opened: add trust=\[pt2\]"):
        open_exported(file)
    with pytest.raises(UserError, match=r"is not an exported file, or damaged \("):
        open_exported(file, trust=["pt2"])
    with pytest.raises(UserError, match=r"has no exported file"):
        open_exported(tmp_path, trust=["pt2"])  # a library alone, where a program is asked for


def test_a_missing_file_or_an_empty_folder_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.onnx does not exist: give a file"):
        open_exported(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="has no exported file"):
        open_exported(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "name", "extra"),
    [(".onnx", "onnxruntime", "onnx"), (".xml", "openvino", "openvino")],
)
def test_a_missing_runtime_names_the_extra(
    suffix: str, name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / f"a{suffix}"
    file.touch()
    with pytest.raises(UserError, match=rf"needs the package {name}.*maskrcnn_lit\[{extra}\]"):
        open_exported(file)


def test_the_provider_is_one_that_is_there():
    cpu, cuda, tensorrt = (f"{n}ExecutionProvider" for n in ("CPU", "CUDA", "Tensorrt"))
    assert choose_provider("auto", [cpu]) == [cpu]
    assert choose_provider("auto", [tensorrt, cuda, cpu]) == [cuda, cpu]
    assert choose_provider("cpu", [cuda, cpu]) == [cpu]
    assert choose_provider("tensorrt", [tensorrt, cuda, cpu]) == [tensorrt, cuda, cpu]
    with pytest.raises(UserError, match=r"provider=cuda is not in this ONNX Runtime.* has cpu"):
        choose_provider("cuda", [cpu])


def test_an_exported_model_is_known_by_its_name(tmp_path: Path):
    assert is_exported("a/b.onnx")
    assert is_exported(Path("b.xml"))
    assert is_exported("b.pt2")
    assert not is_exported("b.ckpt")
    assert not is_exported(tmp_path)
    (tmp_path / "export.json").touch()
    assert is_exported(tmp_path)


def test_the_size_of_a_file_has_its_weights(tmp_path: Path):
    (tmp_path / "a.xml").write_bytes(b"12")
    (tmp_path / "a.bin").write_bytes(b"345")
    assert file_bytes(tmp_path / "a.xml") == 5
    shutil.copy(tmp_path / "a.xml", tmp_path / "a.onnx")
    assert file_bytes(tmp_path / "a.onnx") == 2
