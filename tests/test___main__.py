"""python -m maskrcnn_lit is the console script."""

import subprocess
import sys

import pytest
from tiny_commands import environment

from maskrcnn_lit import __version__

pytestmark = pytest.mark.process


def test_it_runs_the_command_line():
    command = [sys.executable, "-m", "maskrcnn_lit", "--version"]
    done = subprocess.run(
        command, env=environment(warm=False), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"maskrcnn-lit {__version__}\n"
