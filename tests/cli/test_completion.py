"""Completion with Tab: what each word can become, and what bash makes of the script."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_lit.cli.completion import SCRIPTS, candidates
from maskrcnn_lit.cli.main import COMMANDS, main

COMPILE = ("auto", "always", "off")
DATA = ["stats", "check", "show", "convert", "merge", "split", "subset"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["data", ""], DATA),
        (["data", "s"], [name for name in DATA if name.startswith("s")]),
        (["help", "pre"], ["predict"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["completion", "f"], ["fish"]),
        (["train", "trainer.comp"], ["trainer.compile="]),
        (["train", "backb"], ["backbone.", "backbone="]),
        (["train", "optimizer="], ["optimizer=adamw", "optimizer=sgd"]),
        (["train", "optimizer", "="], ["adamw", "sgd"]),
        (["train", "optimizer", "=", "s"], ["sgd"]),
        (["train", "seed=1", "trainer.compile="], [f"trainer.compile={c}" for c in COMPILE]),
        (["train", "optimizer", "=", "sgd", "optimizer.mo"], ["optimizer.momentum="]),
        (["train", "optimizer=adamw", "optimizer.mo"], []),
        (
            ["train", "model.rpn.post_nms.t"],
            ["model.rpn.post_nms.test=", "model.rpn.post_nms.train="],
        ),
        (["train", "data.download="], []),
        (["predict", "save="], ["save=true", "save=false"]),
        (["predict", "score_threshold", "="], ["best"]),
        (["evaluate", "data.val.i"], ["data.val.images="]),
        (["data", "check", "data=coco_json", "data.train.i"], ["data.train.images="]),
        (["train", "run_dir="], []),
        (["train", "--m"], ["--multirun"]),
        (["predict", "--"], ["--help", "--cfg", "--config-dir"]),
        (["train", "no_such=1", "seed"], ["seed="]),
        (["nothing", "x"], []),
    ],
)
def test_what_a_word_can_become(words: list[str], expected: list[str]):
    assert candidates(words, list(COMMANDS)) == expected


def test_the_first_word_can_be_any_command():
    found = candidates([""], list(COMMANDS))
    assert found[: found.index("help")] == list(dict.fromkeys(v.split()[0] for v in COMMANDS))


@pytest.mark.process
@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_printed(shell: str, capsys: pytest.CaptureFixture):
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed == SCRIPTS[shell]
    assert "completion words" in printed
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=printed, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def in_bash(tmp_path: Path, *words: str) -> list[str]:
    """COMPREPLY for a command line whose last word the cursor is in."""
    program = tmp_path / "maskrcnn-lit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maskrcnn_lit "$@"\n')
    program.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in ("maskrcnn-lit", *words))
    script = (
        'eval "$(maskrcnn-lit completion bash)"\n'
        f"COMP_WORDS=({quoted}) COMP_CWORD={len(words)}\n"
        '$(complete -p maskrcnn-lit | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pr"], ["predict"]),
        (["train", "optimizer", "=", ""], ["adamw", "sgd"]),
        (["train", "optimizer=s"], ["optimizer=sgd"]),
        (["train", "optimizer", "=", "sgd", "optimizer.mil"], ["optimizer.milestones="]),
        (["train", "run_dir", "=", "out"], []),
    ],
)
def test_bash_asks_for_the_candidates(tmp_path: Path, words: list[str], expected: list[str]):
    assert in_bash(tmp_path, *words) == expected


@pytest.mark.process
def test_torch_is_not_loaded():
    code = (
        "import sys; from maskrcnn_lit.cli.main import main\n"
        "assert main(['completion', 'words', 'train', 'optimizer=sgd', 'optimizer.']) == 0\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'torch is loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optimizer.momentum=\n" in done.stdout
