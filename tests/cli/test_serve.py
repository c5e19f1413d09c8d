"""`maskrcnn-lit serve`: the names of the models, and the command as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tiny_commands import environment, refused, script

from maskrcnn_lit.cli.serve import check_packages, model_names
from maskrcnn_lit.errors import UserError

pytest_plugins = ("tiny_commands",)


@pytest.mark.parametrize(
    ("runs", "names", "expected"),
    [
        (["outputs/2026/10-00-00"], None, ["10-00-00"]),
        (["a/x", "b/x"], None, ["a/x", "b/x"]),
        (["a/small", "b/large"], None, ["small", "large"]),
        (["torchvision_v2", "a/b"], None, ["torchvision_v2", "b"]),
        (["a/x", "b/x"], ["one", "two"], ["one", "two"]),
    ],
)
def test_models_have_the_names_of_their_folders(
    runs: list[str], names: list[str] | None, expected: list[str]
):
    assert model_names(runs, names) == expected


@pytest.mark.parametrize(
    ("runs", "names", "words"),
    [
        (["a", "a"], None, "has a run twice"),
        (["a", "b"], ["x"], "has 1 names for 2 models"),
        (["a", "b"], ["x", "x"], "has a name twice"),
    ],
)
def test_names_that_do_not_fit_are_a_sentence(runs: list[str], names: list[str] | None, words: str):
    with pytest.raises(UserError, match=words):
        model_names(runs, names)


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"serve needs the package uvicorn.*maskrcnn_lit\[serve\]"):
        check_packages("serve")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("run=none",), "none"),
        (("run=none", "port=99999"), "port=99999"),
        (("run=none", "host=192.0.2.1", "port=0"), "host=192.0.2.1 port=0 cannot be used"),
    ],
)
def test_mistakes_end_in_one_sentence(options: tuple[str, ...], words: str):
    assert words in refused("serve", *options)


@pytest.mark.process
def test_a_run_is_served_until_ctrl_c(trained: Path, shapes: Path, tmp_path: Path):
    """Two models of one run, by name; the answer has the ids of the training data."""
    command = [script(), "serve", f"run=[{trained},{trained}/checkpoints/last.ckpt]", "port=0"]
    options = ["names=[best,last]", "score_threshold=0", "accelerator=cpu"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found is not None
        picture = min((shapes / "val").iterdir()).read_bytes()
        with urllib.request.urlopen(f"{found[0]}predict?model=last", picture, timeout=60) as answer:
            content = json.load(answer)
        with urllib.request.urlopen(found[0], timeout=60) as answer:
            page = answer.read().decode()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert content["info"] == {"model": "last"}
    assert content["annotations"]
    ids = {category["id"] for category in content["categories"]}
    assert min(ids) > 2**33  # those of `strange`
    assert '"models": [{"name": "best"}, {"name": "last"}]' in page
    assert not any(tmp_path.iterdir())
