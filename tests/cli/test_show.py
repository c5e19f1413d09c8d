"""`maskrcnn-lit show` as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from tiny_commands import environment, refused, script

pytest_plugins = ("tiny_commands",)


def test_what_is_not_a_run_folder_is_one_sentence(tmp_path: Path):
    assert "is not a run folder" in refused("show", f"run={tmp_path}", "port=0")


@pytest.mark.process
def test_a_run_is_shown_until_ctrl_c(trained: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("last.ckpt", "events*"))
    process = subprocess.Popen(
        [script(), "show", f"run={run}", "port=0", "accelerator=cpu"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = iter(process.stdout.readline, "")
        address = next(
            found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))
        )
        with urllib.request.urlopen(f"{address}run/images", timeout=60) as answer:
            images = json.load(answer)["images"]
        with urllib.request.urlopen(address, timeout=60) as answer:
            page = answer.read().decode()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
    names = {Path(image["name"]).name for image in images}
    assert names
    assert f'"images": {len(images)}' in page
    assert (run / "show" / "best.json").is_file()
    shutil.rmtree(run)
