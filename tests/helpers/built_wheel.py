"""The package as a wheel, and commands that do not see the checkout. A pytest plugin: a test module
that wants its fixture says `pytest_plugins = ("built_wheel",)`. (PYTEST_DONT_REWRITE)
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import REPOSITORY


def run(*command: object, cwd: Path, path: Path | None = None, code: int = 0) -> str:
    """What a command prints that must end with `code`; `path` is the only place that Python looks
    in before its own.
    """
    left_out = ("PYTHONPATH", "MASKRCNN_LIT_CONFIG_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as `pip install` gets it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built
