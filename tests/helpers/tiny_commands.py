"""Commands on a few 64-pixel pictures: a data set, one trained run that many tests look at, ways to
run a command.

A pytest plugin: a test module that wants its fixtures says `pytest_plugins = ("tiny_commands",)`.
(PYTEST_DONT_REWRITE: it has imported this module by then, and pytest would warn.)
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from warm_python import WARM

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.data.datasets.shapes import write_shapes
from maskrcnn_lit.measure import cost

TRAIN_IMAGES, VAL_IMAGES, SIZE = 8, 3, 64
EPOCHS, STEPS = 2, 8  # two epochs of four steps
BACKBONE = "mobilenet_v3_small"
TINY = (  # options of every command that has a model
    f"backbone={BACKBONE}",
    "model=tiny",
    "trainer=cpu",
    "data.batch_size=2",
    "data.workers=0",
    f"data.image_size={SIZE}",
)
# Of a run without its pictures in TensorBoard, which take a third of so short a one.
MODEL = (*TINY, "callbacks.panels=null", "callbacks.score_plots=null")
# With the backbone of the fixture `trained`, which learns something in a few steps.
RESNET = tuple(text.replace(BACKBONE, "resnet18") for text in MODEL)
SCHEDULE = (
    f"trainer.epochs={EPOCHS}",
    "trainer.log_every_n_steps=1",
    "trainer.checkpoint_every_n_steps=2",
    "optimizer.lr=4.0e-3",
)
TIMES = (
    "speed/images_per_second",
    "speed/data_wait",
    "memory/host_gb",
    "val/evaluation_seconds",
)  # what no two runs share


def run_command(*arguments: object, code: int = 0) -> None:
    """Run a command in this process. The environment stays as it is, though `--config-dir` sets a
    variable. What inference takes is measured on one pass, not on ten. The processes that it starts
    are warm.
    """
    one_pass = patch.multiple(cost, ROUNDS=1, WARM_UP=0)
    with one_pass, patch.dict(os.environ, {WARM: "commands"}):
        assert cli.main(list(map(str, arguments))) == code


def environment(warm: bool = True, **more: str) -> dict[str, str]:
    """Of a process of its own, that counts as this one does; warm: it and what it starts are forked
    from a process that has imported the libraries (warm_python.py).
    """
    own = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return os.environ | own | ({WARM: "all"} if warm else {}) | more


def script() -> str:
    """The console script that pip installed."""
    return str(Path(sys.executable).with_name("maskrcnn-lit"))


def run_script(
    *arguments: object, cwd: Path, warm: bool = True, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the console script; its exit code is for the test to judge."""
    command, given = [script(), *map(str, arguments)], environment(warm, **more)
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=600)


def printed_by(*arguments: object, code: int = 0) -> str:
    """What a command prints in this process. (Not what processes print that it starts.)"""
    with redirect_stdout(StringIO()) as printed:
        run_command(*arguments, code=code)
    return printed.getvalue()


def refused(*arguments: object) -> str:
    """The one sentence that a mistake ends in, in this process."""
    with redirect_stderr(StringIO()) as said:
        run_command(*arguments, code=2)
    text = said.getvalue()
    assert "Traceback" not in text
    assert text.count("maskrcnn-lit: ") == 1
    last = text.splitlines()[-1]
    assert last.startswith("maskrcnn-lit: ")
    return last


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a mistake ended in: one line of its own after whatever was said before, exit code 2, no
    traceback.
    """
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("maskrcnn-lit: ")
    assert done.stderr.count("maskrcnn-lit: ") == 1
    return last


def shapes_data(root: Path) -> tuple[str, ...]:
    """Options: the synthetic set as it is drawn, with ids from 1."""
    counts = (
        f"data.train_images={TRAIN_IMAGES}",
        f"data.val_images={VAL_IMAGES}",
        f"data.prepare.size={SIZE}",
    )
    return ("data=shapes", f"data.root={root}", *counts)


def coco_data(root: Path) -> tuple[str, ...]:
    """Options: any COCO data laid out as the synthetic set is."""
    options = ["data=coco_json", f"data.root={root}"]
    for part in ("train", "val"):
        options += [
            f"data.{part}.images={part}",
            f"data.{part}.annotations=annotations/instances_{part}.json",
        ]
    return tuple(options)


def ground_truth(root: Path, part: str = "val") -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{part}.json").read_text())


def save_ground_truth(root: Path, content: dict[str, Any], part: str = "val") -> None:
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def renumbered(content: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same data with huge ids in no order, and its lists shuffled. `seed` leaves the categories
    alone.
    """
    rng = np.random.default_rng(seed)
    ids = {}
    for key, numbers in (
        ("categories", np.random.default_rng(0)),
        ("images", rng),
        ("annotations", rng),
    ):
        drawn = numbers.choice(2**40, len(content[key]), replace=False) + 2**33
        ids[key] = dict(zip((entry["id"] for entry in content[key]), drawn.tolist(), strict=True))
    new: dict[str, Any] = {
        key: [e | {"id": ids[key][e["id"]]} for e in content[key]] for key in ids
    }
    for entry in new["annotations"]:
        entry["image_id"] = ids["images"][entry["image_id"]]
        entry["category_id"] = ids["categories"][entry["category_id"]]
    return {
        key: [entries[i] for i in rng.permutation(len(entries))] for key, entries in new.items()
    }


def metric_rows(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv without the times."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in csv.DictReader(file)
        ]


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, tensors in nested dicts and lists included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic set: ids from 1, in order."""
    root = tmp_path_factory.mktemp("shapes") / "data"
    write_shapes(root=root, train_images=TRAIN_IMAGES, val_images=VAL_IMAGES, size=SIZE, seed=0)
    return root


@pytest.fixture(scope="session")
def strange(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures under huge, shuffled ids."""
    root = tmp_path_factory.mktemp("strange") / "data"
    shutil.copytree(shapes, root)
    for seed, part in enumerate(("train", "val")):
        save_ground_truth(root, renumbered(ground_truth(shapes, part), seed), part)
    return root


def whole_run(data: Path, folder: Path, backbone: str) -> Iterator[Path]:
    """The folder of a run: 8 steps, 2 validations, with pictures. Not to be written to."""
    model = [text.replace(BACKBONE, backbone) for text in TINY]
    run_command("train", *coco_data(data), *model, *SCHEDULE, f"run_dir={folder / 'run'}")
    yield folder / "run"
    shutil.rmtree(folder / "run")  # some 300 MB, and pytest keeps what three sessions leave


@pytest.fixture(scope="session")
def trained(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on `strange` whose last weights detect something: a BACKBONE of so few steps has batch
    norms that know nothing yet.
    """
    yield from whole_run(strange, tmp_path_factory.mktemp("trained"), "resnet18")


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """Where a test may train."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
