"""The CUDA path's host side on a pretend GPU: it never waits, and keeps its layouts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import REPOSITORY
from tiny_verbs import environment

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


@pytest.mark.skipif(
    torch.version.cuda is None or shutil.which("g++") is None,
    reason="needs g++ and a CUDA build of torch",
)
def test_a_training_step_never_waits_for_the_device(tmp_path: Path):
    (tmp_path / "step.py").write_text(PROGRAM)
    tool = REPOSITORY / "benchmarks" / "pretend_gpu" / "pretend_gpu.py"
    given = environment()
    helpers = str(REPOSITORY / "tests" / "helpers")
    given["PYTHONPATH"] = f"{helpers}:{given.get('PYTHONPATH', REPOSITORY)}"
    done = subprocess.run(
        [sys.executable, str(tool), str(tmp_path / "step.py")],
        cwd=REPOSITORY,
        env=given | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["waits"] == {}
    assert not any("PAGEABLE" in name for name in found["copies"])
    assert 500 < found["launches"] < 2500
    assert found["library_calls"]["conv"] > 20 < found["library_calls"]["conv_wgrad"]
