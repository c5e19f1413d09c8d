"""`maskrcnn-lit top` as a user runs it."""

import shutil
from pathlib import Path

import pytest
from tiny_commands import printed_by, refused, result

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
