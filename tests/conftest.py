"""For every test: where the real data lies, one thread a process, a seed, and the marks that its
fixtures bring.
"""

import atexit
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # torch reads it: threads that spin starve other processes

import torch
import warm_python
from one_each import first_of_each
from repository import REPOSITORY

# Tests interrupt themselves and their processes, even if a background job ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Bytecode is written, whatever the shell says: without it every program that a test starts compiles
# the package again, and every worker the tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of those that a test starts
os.environ["WANDB_MODE"] = "offline"  # no test has a key

# What the data keeps for the next time goes into a folder of this process of the tests, and of
# those that it starts.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="maskrcnn_lit_tests_")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Programs begin with the same variables after a test or a fixture that imports OpenCV, which
    sets LD_LIBRARY_PATH.
    """
    yield
    warm_python.restore()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with coco_mini, nuclei, corrupt...: its absence is a failure, not a skip."""
    folder = Path(os.environ.get("MASKRCNN_LIT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "coco_mini").is_dir():
        pytest.fail(
            f"no real test data in {folder}: set MASKRCNN_LIT_TEST_DATA to the folder that has "
            "coco_mini/"
        )
    return folder


# The mark that each test has which uses a fixture.
FIXTURE_MARKS = {
    "reproduced": "process",
    "test_data": "data",
    "trained": "long",
    "wheel": "process",
}

# A test may start processes with one of these marks, and these programs without: they end at once
# (platform, matplotlib and torch ask them what the machine is).
STARTERS = ("process", "slow", "gpu", "gpu_build")
QUICK_PROGRAMS = ("git", "fc-list", "ldconfig", "lscpu", "uname")

_running: list[pytest.Item] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "of a test with several cases run the first one alone"
    parser.addoption("--one-each", action="store_true", help=text)


@pytest.hookimpl(trylast=True)  # of the cases that -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--one-each"):
        items[:], others = first_of_each(items)
        config.hook.pytest_deselected(items=others)


def pytest_collection_finish() -> None:
    """What the modules and the collected tests hold, millions of objects, stays until the end: the
    garbage collector need not go through it again and again.
    """
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    fixtures = getattr(item, "fixturenames", ())
    for fixture, mark in FIXTURE_MARKS.items():
        if fixture in fixtures:
            item.add_marker(mark)


def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Before the fixtures of `item` are made: those of a module or session may start processes."""
    _running[:] = [item]


def _asks_for_the_mark(start: Callable[..., Any]) -> Callable[..., Any]:
    """`start` of a process, which fails the running test if no mark of it allows processes."""

    @wraps(start)
    def checked(process: Any, *args: Any, **kwargs: Any) -> Any:
        marked = any(item.get_closest_marker(mark) for item in _running for mark in STARTERS)
        command = args[0] if args else kwargs.get("args", ())
        program = command if isinstance(command, str | os.PathLike) else [*command, ""][0]
        if _running and not marked and Path(program).name not in QUICK_PROGRAMS:
            pytest.fail(
                f"a process starts ({program or type(process).__name__}) in a test without the mark"
                " process: add @pytest.mark.process"
            )
        return start(process, *args, **kwargs)

    return checked


warm_python.install()
subprocess.Popen.__init__ = _asks_for_the_mark(subprocess.Popen.__init__)
BaseProcess.start = _asks_for_the_mark(BaseProcess.start)
