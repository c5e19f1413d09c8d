"""Fixtures for every test: where the real data lies, one thread a process, a seed."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # torch reads it: threads that spin starve other processes

import torch
from repository import REPOSITORY

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


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with coco_mini, nuclei, corrupt...: its absence is a failure, not a skip."""
    folder = Path(os.environ.get("MASKRCNN_LIT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "coco_mini").is_dir():
        pytest.fail(
            f"no real test data in {folder}: set MASKRCNN_LIT_TEST_DATA to the folder that has coco_mini/"
        )
    return folder
