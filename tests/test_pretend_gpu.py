"""The pretend GPU: what it is built from, everywhere; and with `-m gpu_build`, where g++ and CUDA's
headers are, the CUDA path's host side on it: it never waits, and keeps its layouts.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import REPOSITORY
from tiny_commands import environment

TOOL = REPOSITORY / "benchmarks" / "pretend_gpu" / "pretend_gpu.py"

PROGRAM = """
import json
import pretend_gpu
import torch
from models import make_batch, make_model

model = make_model(norm="frozen", freeze_at=2).to("cuda", memory_format=torch.channels_last)
batch = {key: value.to("cuda") for key, value in make_batch().items()}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

def step():
    with torch.autocast("cuda", torch.bfloat16):
        losses = model.train()(batch).losses
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

step()
torch.cuda.synchronize()
pretend_gpu.reset()
torch.cuda.set_sync_debug_mode("error")
step()
torch.cuda.set_sync_debug_mode("default")
print(json.dumps(pretend_gpu.summary()))
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import pretend_gpu

    return pretend_gpu


def start(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = environment() | variables
    command = [sys.executable, str(TOOL), *words]
    return subprocess.run(command, cwd=REPOSITORY, env=given, capture_output=True, text=True)


@pytest.mark.process
@pytest.mark.parametrize("words", [[], ["-m"]])
def test_without_a_program_it_says_how_it_is_used(words: list[str]):
    done = start(*words)
    assert done.returncode == 1
    assert "needs a program" in done.stderr
    assert "pretend_gpu.py FILE [ARGUMENT ...]" in done.stderr


@pytest.mark.parametrize("names", [["cu13"], ["cuda_runtime"], ["cublas", "cu13"]])
def test_the_headers_are_those_of_the_installed_torch(tool: Any, tmp_path: Path, names: list[str]):
    for name in names:
        (tmp_path / name / "include").mkdir(parents=True)
    expected = tmp_path / names[-1] / "include"
    (expected / "driver_types.h").touch()
    assert tool.headers([str(tmp_path)]) == expected


def test_without_headers_or_a_compiler_it_says_what_is_missing(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SystemExit, match="needs CUDA's headers"):
        tool.headers([str(tmp_path)])
    monkeypatch.setattr(tool, "headers", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs g\+\+"):
        tool.build(tmp_path)


COMPILER = """#!/bin/sh
echo "$@" >> "$0.calls"
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""


@pytest.mark.process
def test_it_is_compiled_once_for_its_code_and_headers(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a stand-in for the compiler."""
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    made = []
    for headers in ("one", "one", "two"):
        monkeypatch.setattr(tool, "headers", lambda name=headers: tmp_path / name)
        made.append(tool.build(tmp_path / "built"))
    assert made[0] == made[1] != made[2]
    assert made[0].name == "libcuda.so.1"
    assert [library.read_text() for library in made] == ["built\n"] * 3
    calls = (tmp_path / "g++.calls").read_text().splitlines()
    assert len(calls) == 2
    assert str(TOOL.with_suffix(".cpp")) in calls[0]
    assert f"-I{tmp_path / 'one'} " in calls[0]


@pytest.mark.gpu_build
def test_a_training_step_never_waits_for_the_device(tmp_path: Path):
    (tmp_path / "step.py").write_text(PROGRAM)
    helpers = str(REPOSITORY / "tests" / "helpers")
    path = f"{helpers}:{environment().get('PYTHONPATH', REPOSITORY)}"
    done = start(str(tmp_path / "step.py"), PYTHONPATH=path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["waits"] == {}
    assert not any("PAGEABLE" in name for name in found["copies"])
    assert 500 < found["launches"] < 2500
    assert found["library_calls"]["conv"] > 20 < found["library_calls"]["conv_wgrad"]


@pytest.mark.gpu_build
@pytest.mark.parametrize("how", ["off", "always"])
def test_a_training_goes_from_its_start_to_its_end(test_data: Path, tmp_path: Path, how: str):
    """With Inductor minutes: real kernels are written and compiled for an H200."""
    data = test_data / "coco_mini"
    options = [
        *(f"data.{part}.images={data}/val2017" for part in ("train", "val")),
        *(
            f"data.{part}.annotations={data}/annotations/instances_val2017.json"
            for part in ("train", "val")
        ),
        *("data=coco_json", "model=tiny", "backbone=resnet18", "data.image_size=128"),
        *("data.train_images=8", "data.val_images=4", "data.batch_size=2", "data.workers=0"),
        *("trainer.accelerator=gpu", "trainer.steps=4", f"trainer.compile={how}"),
    ]
    program = str(TOOL.with_name("train.py"))
    done = start(program, *options, f"run_dir={tmp_path / 'run'}", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["graph_breaks"] == {}
    assert (found["graphs_of_training"], found["graphs_of_fit"]) == (
        (3, 9) if how == "always" else (0, 0)
    )
    assert found["graphs"] == found["graphs_of_fit"], "pictures and cost are not compiled"
    assert found["waits"][1:-1] == [0, 0], "the last step is logged"
    assert found["predictions"]
    assert 0 < found["cost"]["latency_seconds"] < 1
    assert found["cost"]["flops"] > 0
