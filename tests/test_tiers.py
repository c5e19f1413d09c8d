"""Which tests `make test-fast` leaves out: marks that a test has by itself or by its fixtures, and
all but the first case of a test.
"""

import multiprocessing
import subprocess
import sys

import pytest
from repository import REPOSITORY
from tiny_commands import environment
from torch.utils.data import DataLoader

NO_MARK = "in a test without the mark process: add @pytest.mark.process"


def test_a_command_needs_the_mark():
    with pytest.raises(pytest.fail.Exception, match=NO_MARK):
        subprocess.run([sys.executable, "-c", ""])


def test_a_shell_needs_the_mark():
    with pytest.raises(pytest.fail.Exception, match=NO_MARK):
        subprocess.run("true", shell=True)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_python_needs_the_mark(method: str):
    with pytest.raises(pytest.fail.Exception, match=NO_MARK):
        multiprocessing.get_context(method).Process(target=print).start()


def test_workers_of_a_loader_need_the_mark():
    with pytest.raises(pytest.fail.Exception, match=NO_MARK):
        next(iter(DataLoader([0], num_workers=1)))


def test_git_answers_at_once_and_needs_no_mark():
    assert subprocess.run(["git", "--version"], capture_output=True).returncode == 0


@pytest.mark.process
def test_with_the_mark_a_command_runs():
    assert subprocess.run([sys.executable, "-c", ""]).returncode == 0


@pytest.fixture
def wheel() -> str:
    """In place of the one that is built."""
    return "a wheel"


def test_a_fixture_brings_its_mark(wheel: str, request: pytest.FixtureRequest):
    assert request.node.get_closest_marker("process")


@pytest.mark.process
def test_one_each_leaves_the_first_case_of_a_test():
    file = "tests/test_tiers.py"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--one-each", file]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert "test_a_process_of_python_needs_the_mark[fork]" in names
    assert {"test_a_command_needs_the_mark", "test_a_fixture_brings_its_mark"} <= set(names)
    assert len(names) == len({name.partition("[")[0] for name in names})
    assert "(2 deselected)" in done.stdout
