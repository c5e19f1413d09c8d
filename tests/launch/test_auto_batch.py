"""data.batch_size=auto: the search, by a probe that is made up; and by real ones, which train in
processes of their own.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from tiny_commands import MODEL, checkpoint, coco_data, refused, run_command
from warm_python import WARM

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.stored import load_run_config
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch import auto_batch
from maskrcnn_lit.launch.auto_batch import choose_batch, filling, largest, probe
from maskrcnn_lit.launch.backends import Command
from maskrcnn_lit.launch.grid import read_sweep
from maskrcnn_lit.launch.sweep import check_same
from maskrcnn_lit.runs.folder import freeze_config

pytest_plugins = ("tiny_commands",)

MANY = 1000  # training images


# The search


@pytest.mark.parametrize("most", [1, 2, 3, 12, 16, 17])
def test_the_search_finds_the_largest_size_that_fits(most: int):
    chosen = [largest(lambda size, limit=limit: size <= limit, most) for limit in range(19)]
    assert chosen == [min(limit, most) for limit in range(19)]


def test_the_search_doubles_then_bisects():
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 10

    assert largest(fits, 30) == 10
    assert tried == [1, 2, 4, 8, 16, 12, 10, 11]


@pytest.mark.parametrize("reference", [1, 5, 16, 64])
def test_accumulated_batches_come_nearest_to_the_reference(reference: int):
    for images in range(1, 40):
        distances = {count: abs(count * images - reference) for count in range(1, 70)}
        assert distances[filling(reference, images)] == min(distances.values()), images


# The choice


class Machine:
    """A probe of which up to `limit` images fit."""

    def __init__(self, limit: int, images: int = MANY) -> None:
        self.limit, self.images = limit, images
        self.tried: list[int] = []
        self.limits: list[int | None] = []

    def probe(
        self, config: DictConfig, folder: Path, size: int, limit: int | None
    ) -> dict[str, Any]:
        self.tried.append(size)
        self.limits.append(limit)
        fits = size <= self.limit
        peak = 10**8 * size
        return {
            **{"fits": fits, "reason": None if fits else "train 64x64 takes 9 GB"},
            **{
                "limit_bytes": 10**9,
                "budget_bytes": 9 * 10**8,
                "peak_bytes": {"train 64x64": peak},
            },
            **{"train_images": self.images, "device": "a machine"},
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(limit: int, images: int = MANY) -> Machine:
        made = Machine(limit, images)
        monkeypatch.setattr(auto_batch, "probe", made.probe)
        return made

    return make


def chosen(data: Path, *options: str) -> DictConfig:
    """The config of a run with these options."""
    model = [text for text in MODEL if not text.startswith("data.batch_size")]
    config = freeze_config(compose("train", [*coco_data(data), *model, *options]))
    choose_batch(config)
    return config


@pytest.mark.parametrize(("limit", "batch_size"), [(1, 1), (5, 5), (16, 16), (99, 16)])
def test_the_largest_batch_that_fits_is_chosen_up_to_the_reference(
    shapes: Path, machine: Callable[..., Machine], limit: int, batch_size: int
):
    machine(limit)
    assert chosen(shapes, "data.batch_size=auto").data.batch_size == batch_size


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (["auto_batch.most=40"], 40),
        (["optimizer.reference_batch=9"], 9),
        (["trainer.devices=4"], 4),
        (["trainer.devices=4", "trainer.num_nodes=8"], 1),
        (["trainer.devices=4", "auto_batch.most=40"], 40),
    ],
)
def test_there_is_a_largest_batch(
    shapes: Path, machine: Callable[..., Machine], options: list[str], most: int
):
    tried = machine(10**6).tried
    assert chosen(shapes, "data.batch_size=auto", *options).data.batch_size == most
    assert max(tried) == most


def test_a_process_has_no_more_images_than_its_part_of_the_data(
    shapes: Path, machine: Callable[..., Machine]
):
    machine(10**6, images=11)
    config = chosen(shapes, "data.batch_size=auto", "trainer.devices=2")
    assert config.data.batch_size == 5


def test_all_tries_have_the_limit_of_the_first(shapes: Path, machine: Callable[..., Machine]):
    made = machine(3)
    chosen(shapes, "data.batch_size=auto")
    assert made.limits == [None, *[10**9] * (len(made.tried) - 1)]


@pytest.mark.parametrize(
    ("limit", "options", "accumulate"),
    [
        (16, [], 1),
        (5, [], 3),
        (3, [], 5),
        (1, ["trainer.devices=2"], 8),
        (5, ["trainer.accumulate=1"], 1),
        (5, ["trainer.accumulate=7"], 7),
        (5, ["optimizer.reference_batch=10"], 2),
    ],
)
def test_steps_are_filled_up_to_the_reference_unless_the_user_says_otherwise(
    shapes: Path,
    machine: Callable[..., Machine],
    limit: int,
    options: list[str],
    accumulate: int,
):
    machine(limit)
    config = chosen(shapes, "data.batch_size=auto", *options)
    assert config.trainer.accumulate == accumulate


@pytest.mark.parametrize(("given", "accumulate"), [((), 1), (("trainer.accumulate=auto",), 8)])
def test_a_number_of_images_is_not_tried(
    shapes: Path, machine: Callable[..., Machine], given: tuple[str, ...], accumulate: int
):
    tried = machine(0).tried
    config = chosen(shapes, "data.batch_size=2", *given)
    assert (config.data.batch_size, config.trainer.accumulate) == (2, accumulate)
    assert tried == []


def test_the_config_has_the_measurements(shapes: Path, machine: Callable[..., Machine]):
    machine(2)
    record = chosen(shapes, "data.batch_size=auto").auto_batch.chosen
    assert record == {
        **{"device": "a machine", "limit_gb": 1.0, "most": 16},
        "tries": [
            {"batch_size": 1, "fits": True, "peak_gb": {"train 64x64": 0.1}},
            {"batch_size": 2, "fits": True, "peak_gb": {"train 64x64": 0.2}},
            {
                **{"batch_size": 3, "fits": False, "reason": "train 64x64 takes 9 GB"},
                "peak_gb": {"train 64x64": 0.3},
            },
            {
                **{"batch_size": 4, "fits": False, "reason": "train 64x64 takes 9 GB"},
                "peak_gb": {"train 64x64": 0.4},
            },
        ],
    }


def test_not_even_one_image(shapes: Path, machine: Callable[..., Machine]):
    machine(0)
    with pytest.raises(
        UserError,
        match=r"data.batch_size=auto: 1 image does not fit \(train 64x64 takes 9 GB of 0.9 GB\): "
        r"use a smaller data.image_size than 64, .* auto_batch.margin=0.1",
    ):
        chosen(shapes, "data.batch_size=auto")


# One try


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let tries run a Python program in place of the probe."""

    def replace(program: str) -> None:
        def made(name: str, words: list[str], log: Path) -> Command:
            return Command(name, [sys.executable, "-c", program], log)

        monkeypatch.setattr(auto_batch, "Command", made)

    return replace


@pytest.mark.process
def test_a_process_that_the_system_kills_does_not_fit(
    shapes: Path, tmp_path: Path, command: Callable[[str], None]
):
    command(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    measured = probe(compose("train", coco_data(shapes)), tmp_path, 4, None)
    assert not measured["fits"]


@pytest.mark.process
def test_a_process_that_is_killed_with_one_image_is_named(
    shapes: Path, command: Callable[[str], None]
):
    command(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    with pytest.raises(UserError, match=r"1 image does not fit \(the system killed the process\)"):
        chosen(shapes, "data.batch_size=auto")


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('maskrcnn-lit: the data are gone'); raise SystemExit(2)", "^the data are gone$"),
        ("raise ValueError('a bug')", r"with 4 images failed \(ValueError: a bug\): .*size=4"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "killed by signal 11"),
    ],
)
def test_another_failure_is_an_error(
    shapes: Path, tmp_path: Path, command: Callable[[str], None], program: str, message: str
):
    command(program)
    with pytest.raises(UserError, match=message):
        probe(compose("train", coco_data(shapes)), tmp_path, 4, None)


# A run


SHORT = (
    *(text for text in MODEL if not text.startswith("data.batch_size")),
    "data.batch_size=auto",
    "trainer.epochs=1",
    "optimizer.lr=4.0e-3",
    "optimizer.scaling=linear",
)


@pytest.fixture(scope="module")
def auto_run(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose process takes two images, with eight images a step in place of sixteen."""
    run_dir = tmp_path_factory.mktemp("auto") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_batch, "probe", Machine(2, images=8).probe)
        options = ("trainer.accumulate=4", f"run_dir={run_dir}")
        run_command("train", *coco_data(strange), *SHORT, *options)
    yield run_dir


def test_the_config_of_the_run_has_the_number(auto_run: Path):
    config = load_run_config(auto_run)
    assert (config.data.batch_size, config.trainer.accumulate) == (2, 4)
    assert [one.batch_size for one in config.auto_batch.chosen.tries] == [1, 2, 3, 4]


def test_so_do_its_checkpoints(auto_run: Path):
    config = checkpoint(auto_run)["config"]
    assert config["data"]["batch_size"] == 2
    assert config["auto_batch"]["chosen"]["limit_gb"] == 1.0


def test_the_learning_rate_follows_the_batch(auto_run: Path):
    (optimizer,) = checkpoint(auto_run)["optimizer_states"]
    rate = max(group["initial_lr"] for group in optimizer["param_groups"])
    assert rate == pytest.approx(4.0e-3 * 2 * 4 / 16)


def test_a_continued_run_tries_nothing(
    auto_run: Path, tmp_path: Path, machine: Callable[..., Machine]
):
    tried = machine(0).tried
    run_command("train", f"resume={auto_run}", "trainer.epochs=2", f"run_dir={tmp_path}/longer")
    config = load_run_config(tmp_path / "longer")
    assert (config.data.batch_size, config.trainer.epochs) == (2, 2)
    assert "tries" in config.auto_batch.chosen
    assert tried == []


def test_a_sweep_continues_a_run_that_chose_its_batch(auto_run: Path, strange: Path):
    options = (*coco_data(strange), *SHORT, "trainer.accumulate=4")
    (job,) = read_sweep([*options, f"sweep_dir={auto_run.parent}"]).jobs
    check_same(job._replace(run_dir=auto_run))


def test_a_sweep_refuses_a_run_with_another_margin(auto_run: Path, strange: Path):
    options = (*coco_data(strange), *SHORT, "trainer.accumulate=4", "auto_batch.margin=0.3")
    (job,) = read_sweep([*options, f"sweep_dir={auto_run.parent}"]).jobs
    with pytest.raises(UserError, match=r"auto_batch.margin=0.1, but this sweep has .*=0.3"):
        check_same(job._replace(run_dir=auto_run))


@pytest.mark.parametrize("command", ["bench", "data show", "data stats"])
def test_other_commands_take_a_number(shapes: Path, tmp_path: Path, command: str):
    options = [*coco_data(shapes), "data.batch_size=auto"]
    if command == "bench":
        said = refused("bench", *options, "backbone=resnet18", "model=tiny")
        assert "data.batch_size=auto is chosen by train and lr" in said
    else:  # which read one image after the other
        out = [f"out={tmp_path}/samples.png"] if command == "data show" else []
        run_command(*command.split(), *options, *out)


# In earnest


@pytest.mark.process
@pytest.mark.long
def test_the_chosen_batch_fits_and_one_more_image_does_not(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The limit is halfway between what two and three images take, each in a process of its own."""
    monkeypatch.setenv(WARM, "commands")
    options = ("data.batch_size=auto", "data.image_size=384", "auto_batch.most=3")
    config = freeze_config(compose("train", [*coco_data(strange), *SHORT, *options]))
    two, three = (
        max(probe(config, tmp_path, size, 10**12)["peak_bytes"].values()) for size in (2, 3)
    )
    assert three - two > 50e6, "more than two processes differ by"
    config.auto_batch.memory_gb = (two + three) / 2 / 0.8 / 1e9
    config.auto_batch.margin = 0.2
    choose_batch(config)
    assert config.data.batch_size == 2
    fits = {one.batch_size: one.fits for one in config.auto_batch.chosen.tries}
    assert fits == {1: True, 2: True, 3: False}
