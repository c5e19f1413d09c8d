"""A run that goes on with another number of processes: every image once an epoch, and the losses of
the unbroken run.
"""

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from repository import HELPERS
from tiny_commands import (
    MODEL,
    checkpoint,
    coco_data,
    environment,
    metric_rows,
    refused,
    result,
    script,
)

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.elastic import Division, describe, divided, divided_before

pytest_plugins = ("tiny_commands",)

ONE = Division(processes=1, batch_size=4, accumulate=1, parts=1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ONE, Division(2, 2, 1, 1)),
        (ONE, Division(4, 1, 1, 1)),
        (Division(8, 2, 3, 1), Division(4, 4, 3, 1)),
        (Division(1, 4, 2, 2), Division(2, 2, 2, 2)),  # its 2 parts stay
        (Division(1, 4, 2, 2), Division(8, 1, 1, 1)),  # where they can
    ],
)
def test_other_processes_share_the_batches(before: Division, after: Division):
    assert divided(before, after.processes) == after
    assert after.together == before.together
    step = before.processes * before.batch_size * before.accumulate
    assert after.processes * after.batch_size * after.accumulate == step


def test_batches_may_be_divided_into_parts():
    before = Division(processes=8, batch_size=2, accumulate=1, parts=1)
    assert divided(before, 4, accumulate=2) == Division(4, 2, 2, 2)
    assert divided(before, 4, batch_size=1) == Division(4, 1, 4, 4)
    assert divided(Division(4, 2, 2, 2), 8, accumulate=1) == before
    assert divided(before, 2, batch_size=4, accumulate=2) == Division(2, 4, 2, 2)


@pytest.mark.parametrize(
    ("processes", "given", "message"),
    [
        (3, {}, "3 processes cannot divide the 8 images of a step, in 2 batches of 4: use one of "),
        (8, {}, "use one of 1, 2, 4 .trainer.devices, or what the launcher starts"),
        (
            2,
            {"accumulate": 3},
            "trainer.accumulate=3 does not divide the 8 images of a step, in 2 batches of 4, for 2 "
            "processes: use one of 2, 4",
        ),
        (2, {"batch_size": 4}, "data.batch_size=4 does not divide .*: use one of 2, 1"),
        (1, {"batch_size": 4, "accumulate": 4}, "data.batch_size=4 .*: use one of 2"),
        (1, {"batch_size": "4"}, "data.batch_size=4 must be a whole number, 1 or more"),
    ],
)
def test_a_step_that_cannot_be_divided(processes: int, given: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        divided(Division(1, 4, 2, 1), processes, **given)


def test_what_changes_is_said():
    assert describe(ONE, Division(2, 2, 1, 1)) == (
        "2 processes in place of 1, data.batch_size=2 in place of 4: a step still has 4 images, "
        "and the learning rate stays"
    )
    parts = describe(Division(2, 2, 1, 1), Division(1, 2, 2, 2))
    assert parts.startswith("1 process in place of 2, trainer.accumulate=2 in place of 1: a step ")
    assert "a loss is the mean over 2 parts of a batch" in parts


def test_the_division_of_a_checkpoint():
    config = {"data": {"batch_size": 2}, "trainer": {"accumulate": 4}}
    position = {"together": 8, "parts": 2}
    assert divided_before(config, position, {}) == Division(2, 2, 4, 2)
    assert divided_before(config, {}, {"processes": 3}) == Division(3, 2, 4, 1), "version 0.1.0"
    config["trainer"] |= {"accelerator": "cpu", "devices": 2, "num_nodes": 2}
    assert divided_before(config, {}, {}) == Division(4, 2, 4, 1), "killed before it began"


def test_processes_that_cannot_divide_a_batch_are_refused(trained: Path, tmp_path: Path):
    command = ("train", f"resume={trained}", "trainer.epochs=3", f"run_dir={tmp_path}/new")
    assert "3 processes cannot divide the 2 images of a step, in 1 batch of 2: use one of 1, 2" in (
        refused(*command, "trainer.devices=3")
    )
    assert "trainer.accumulate=2 does not divide the 2 images" in (
        refused(*command, "trainer.devices=2", "trainer.accumulate=2")
    )


class Leg(NamedTuple):
    """One command of a run: with `options`, to the kill of `rank` before optimizer step `kill`, or
    to the end (None).
    """

    options: tuple[str, ...]
    kill: int | None = None
    rank: int = 0


SHORT = (
    "trainer.log_every_n_steps=1",
    "trainer.checkpoint_every_n_steps=1",
    "optimizer.lr=4.0e-3",
    "callbacks.evaluation=null",
    "backbone.norm=group",
    "logger.tensorboard=null",
)


def in_legs(
    legs: Sequence[Leg], *options: object, folder: Path, double: bool = True
) -> list[list[dict[str, Any]]]:
    """Run the commands one after the other, each but the first with resume=; the lines of
    elastic_probe.py of each.
    """
    folder.mkdir()
    (folder / "elastic_probe.py").write_text((HELPERS / "elastic_probe.py").read_text())
    first = ["train", *options, *SHORT, "+callbacks.probe={_target_: elastic_probe.Probe}"]
    told = []
    for number, leg in enumerate(legs):
        command = ["train", "resume=run", "trust=[elastic_probe]"] if number else first
        probe = folder / f"leg{number}"
        probe.mkdir()
        settings = {"PROBE": str(probe), "PROBE_DOUBLE": "1" if double else ""}
        if leg.kill is not None:
            settings["PROBE_KILL"] = f"{leg.kill}:{leg.rank}"
        done = subprocess.run(
            [script(), *map(str, command), *leg.options, *([] if number else ["run_dir=run"])],
            cwd=folder,
            env=environment(**settings),
            capture_output=True,
            text=True,
            timeout=600,
        )
        if leg.kill is None:
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            killed = done.returncode == -signal.SIGKILL or "killed by signal 9" in done.stderr
            assert killed, done.stdout + done.stderr
        told.append(probed(probe))
    return told


def probed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.iterdir() for line in file.open()]


def images_of_epochs(legs: list[list[dict[str, Any]]]) -> list[Counter[int]]:
    """How often each epoch has had each image. Steps after the last checkpoint of a killed command
    are done again by the next one, whose first step is that of its checkpoint.
    """
    legs = [lines for lines in legs if lines]  # else killed in its first step
    begins = [min(line["step"] for line in lines) for lines in legs]
    ends = [*begins[1:], 10**9]
    seen: dict[int, Counter[int]] = {}
    for lines, begin, end in zip(legs, begins, ends, strict=True):
        for line in lines:
            if begin <= line["step"] < end:
                seen.setdefault(line["epoch"], Counter()).update(line["images"])
    return [seen[epoch] for epoch in sorted(seen)]


def losses(run_dir: Path) -> list[list[float]]:
    """Of each optimizer step: the loss, its terms, and the norms of gradient and weights."""
    rows = [row for row in metric_rows(run_dir) if row["train/loss"]]
    names = [name for name in rows[0] if name.startswith(("train/", "lr/"))]
    return [[float(row[name]) for name in names] for row in rows]


def largest_difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Relative to the value of the unbroken run."""
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    pairs = [
        pair
        for one, two in zip(ours, theirs, strict=True)
        for pair in zip(one, two, strict=True)
        if pair != (0.0, 0.0)
    ]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def on(processes: int, kill: int | None = None, rank: int = 0, *more: str) -> Leg:
    return Leg((f"trainer.devices={processes}", *more), kill, rank)


class Chain(NamedTuple):
    """Commands of a run, and what differs from the unbroken run of the first number of processes.

    bound: of the relative difference of losses, gradient and weight norms; None: not compared.
    """

    legs: tuple[Leg, ...]
    options: tuple[str, ...]
    bound: float | None = 1e-6
    double: bool = True
    real: bool = False  # 21 images of coco_mini, of several shapes


TWO = ("trainer.epochs=2", "data.batch_size=2")  # 4 steps an epoch of 8 images
FOUR = ("trainer.epochs=2", "data.batch_size=4")  # 2 steps an epoch
REAL = (
    *("data.batch_size=4", "trainer.epochs=3", "data.train_images=21", "data.val_images=3"),
    *("data.image_size=[64,96]", "data.lengths=2", "trainer.checkpoint_every_n_steps=2"),
)

QUICK = Chain(
    (on(1, 1), on(2, 3, 1), on(1)),
    ("trainer.epochs=2", "data.batch_size=2", "trainer.accumulate=2", "trainer.ema=0.9"),
)
CHAINS = {
    "1, 2, 1": Chain((on(1, 2), on(2, 5, 1), on(1)), TWO),
    "2, 1, 2": Chain((on(2, 1, 1), on(1, 6), on(2)), ("trainer.epochs=2", "data.batch_size=1")),
    "1, 2, 4, 1": Chain((on(1, 1), on(2, 2, 1), on(4, 3, 2), on(1)), FOUR),
    "1, 2 before the first checkpoint": Chain((on(1, 0), on(2)), TWO),
    "1, 2, 4, 2, 1, several shapes": Chain(
        (on(1, 3), on(2, 9, 1), on(4, 11, 3), on(2, 15, 0), on(1)), REAL, real=True
    ),
    "1, 2, 1 in float32": Chain((on(1, 2), on(2, 5, 1), on(1)), TWO, bound=None, double=False),
    "1, 2, 1 in float32, 20 epochs": Chain(
        (on(1, 2), on(2, 5, 1), on(1)),
        ("trainer.epochs=20", "data.batch_size=2"),
        bound=None,
        double=False,
    ),
    "2, 1 in 2 parts, 2": Chain(
        (on(2, 1), on(1, 3, 0, "trainer.accumulate=2"), on(2, None, 0, "trainer.accumulate=1")),
        ("trainer.epochs=2", "data.batch_size=2"),
        bound=None,
    ),
}


def compare(chain: Chain, data: Sequence[str], folder: Path) -> float:
    """Run the commands and the unbroken run, check the images and the end, and return the largest
    difference of a step.
    """
    options = (*data, *MODEL, *chain.options)
    unbroken = [Leg(chain.legs[0].options)]
    theirs = in_legs(unbroken, *options, folder=folder / "unbroken", double=chain.double)
    ours = in_legs(chain.legs, *options, folder=folder / "changed", double=chain.double)
    every = images_of_epochs(theirs)
    assert images_of_epochs(ours) == every
    assert len({tuple(sorted(epoch)) for epoch in every}) == 1
    assert {count for epoch in every for count in epoch.values()} == {1}
    one, two = (checkpoint(folder / name / "run") for name in ("changed", "unbroken"))
    assert one["position"]["epoch"] == len(every)
    assert one["global_step"] == two["global_step"]
    difference = largest_difference(losses(folder / "changed/run"), losses(folder / "unbroken/run"))
    if chain.bound is not None:
        assert difference < chain.bound
        for part in {"state_dict", "current_model_state"} & set(two):
            for name, value in two[part].items():
                assert one[part][name].allclose(value, rtol=1e-6, atol=1e-9), name
    return difference


@pytest.mark.process
@pytest.mark.long
def test_from_one_process_to_two_and_back_with_kills(strange: Path, tmp_path: Path):
    """Killed in the middle of each of two epochs, once with one process, once one of two. A step
    has two batches, and the weights have a moving average.
    """
    compare(QUICK, coco_data(strange), tmp_path)
    images = images_of_epochs([probed(tmp_path / f"changed/leg{leg}") for leg in range(3)])
    assert [len(epoch) for epoch in images] == [8, 8]
    assert result(tmp_path / "changed/run")["machine"]["processes"] == 1


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_the_table_of_kills(name: str, strange: Path, test_data: Path, tmp_path: Path):
    """With -s it prints the rows of docs/measured.md."""
    chain = CHAINS[name]
    data = coco_data(test_data / "coco_mini" if chain.real else strange)
    if chain.real:
        data = tuple(
            text.replace("=train", "=train2017")
            .replace("=val", "=val2017")
            .replace(".json", "2017.json")
            for text in data
        )
    difference = compare(chain, data, tmp_path)
    kills = ", ".join(
        f"{leg.options[0].partition('=')[2]} to step {leg.kill}" for leg in chain.legs[:-1]
    )
    print(f"\n| {name} | {kills} | {difference:.1e} |")
