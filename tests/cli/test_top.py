"""`maskrcnn-lit top` as a user runs it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_commands import environment, printed_by, refused, result

from maskrcnn_lit.runs.result import RunResult, write_result

pytest_plugins = ("tiny_commands",)


def test_a_folder_without_runs_is_one_sentence(tmp_path: Path):
    assert f"sweep_dir={tmp_path} has no sweep.json" in refused("top", f"sweep_dir={tmp_path}")


@pytest.mark.long
def test_a_run_as_it_ended(trained: Path, tmp_path: Path):
    run = tmp_path / "some" / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("checkpoints", "events*"))
    printed = printed_by("top", f"sweep_dir={tmp_path}")
    last = f"{result(run)['metrics']['val/mask_ap']:.3f}"
    row = next(line for line in printed.splitlines() if line.startswith("finished"))
    assert row.split()[:3] == ["finished", "2/2", "8"]
    assert row.split()[4:] == [last, "some/run"]


@pytest.mark.process
def test_it_starts_without_torch(tmp_path: Path):
    """A second in place of eight."""
    write_result(tmp_path / "a" / "result.json", RunResult("failed", error="no room"))
    script = (
        "import sys\n"
        "from maskrcnn_lit.cli.main import main\n"
        f"assert main(['top', {f'sweep_dir={tmp_path}'!r}]) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(warm=False),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" in done.stdout
    assert "a: no room" in done.stdout
