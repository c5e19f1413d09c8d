"""`make demo` and `make test` up to the point where pip would load torch: a stand-in for Python
plays its part.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from repository import REPOSITORY

pytestmark = pytest.mark.process

ANY_DISK = "DISK_NEEDED=0"
NEEDS_MORE = "gpu or gpu_build or browser or official or tex or trackio"  # than Python


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and a `python` that answers checks, and notes or fails the
    rest.
    """
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / file, tmp_path)
    python = tmp_path / "python"
    python.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            case "$*" in
                "-m pip --version") ;;
                "-c import hydra"*) ;;
                -c*) exec {sys.executable} "$@" ;;
                "-m venv"*) mkdir -p .venv/bin && cp python .venv/bin/python ;;
                "-m pip install"*) echo "install" >> log; test ! -e broken ;;
                *) exit 9 ;;
            esac
            """)
    )
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def installs(folder: Path) -> int:
    return (folder / "log").read_text().count("install") if (folder / "log").exists() else 0


def test_it_installs_once_and_again_when_the_requirements_change(checkout: Path):
    for _ in range(2):
        done = make(checkout, ".venv/installed", "PYTHON=./python", ANY_DISK)
        assert done.returncode == 0, done.stderr
        assert installs(checkout) == 1
    now = (checkout / ".venv" / "installed").stat().st_mtime
    os.utime(checkout / "constraints.txt", (now + 5, now + 5))
    assert make(checkout, ".venv/installed", "PYTHON=./python", ANY_DISK).returncode == 0
    assert installs(checkout) == 2


def test_an_installation_that_broke_off_is_taken_up_again(checkout: Path):
    (checkout / "broken").touch()
    assert make(checkout, "demo", "PYTHON=./python", ANY_DISK).returncode != 0
    assert installs(checkout) == 1
    assert not (checkout / ".venv" / "installed").exists()
    (checkout / "broken").unlink()
    assert make(checkout, ".venv/installed", "PYTHON=./python", ANY_DISK).returncode == 0
    assert installs(checkout) == 2


@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_full_disk_and_a_missing_python_are_told_in_a_sentence(checkout: Path, target: str):
    done = make(checkout, target, "PYTHON=./python", "DISK_NEEDED=10000000")
    assert done.returncode != 0
    sentence = done.stderr.splitlines()[0]
    assert sentence.startswith("The disk is too full: the environment needs 10000000 GB, and ")
    assert "Make room" in sentence
    done = make(checkout, target, "PYTHON=no-such-python")
    assert done.returncode != 0
    assert done.stdout == "There is no no-such-python: install Python 3.11 or newer.\n"
    assert installs(checkout) == 0
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_told_in_a_sentence(checkout: Path):
    old = checkout / "old"  # says 3.9 of itself
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); $(printf '
        '%s "$2")"\n'
    )
    old.chmod(0o755)
    done = make(checkout, "demo", "PYTHON=./old")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "Python 3.11 or newer is needed, and ./old is 3.9: install one, or name it with PYTHON=..."
    )
    assert not (checkout / ".venv").exists()


def test_both_commands_run_what_they_promise():
    demo = make(REPOSITORY, "-n", "-o", ".venv/installed", "demo").stdout
    assert demo.splitlines() == [".venv/bin/maskrcnn-lit train experiment=demo"]
    test = make(REPOSITORY, "-n", "-o", ".venv/installed", "test").stdout
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest -n 2"):
        assert f".venv/bin/{tool}" in test
    fast = make(REPOSITORY, "-n", "-o", ".venv/installed", "test-fast", "LEAVE_OUT=or data").stdout
    assert "--one-each" in fast
    assert f"-m 'not (process or long or slow or {NEEDS_MORE} or data)'" in fast
    every = make(REPOSITORY, "-n", "-o", ".venv/installed", "test-fast", "CASES=").stdout
    assert "--one-each" not in every
    slow = make(REPOSITORY, "-n", "-o", ".venv/installed", "test-slow").stdout
    assert f"-m 'slow and not ({NEEDS_MORE} )'" in slow
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
