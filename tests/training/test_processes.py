"""Several processes of a run: each has the config and the folder of the first, and they end
together.
"""

import os

import pytest
import torch

from maskrcnn_lit.training.processes import first_process, from_first, launched, per_machine

pytest_plugins = ("tiny_verbs",)


def test_alone(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)  # of a cluster's node that runs this test
    assert launched() is None and first_process() and from_first(lambda: "made") == "made"


def test_under_slurm(monkeypatch: pytest.MonkeyPatch):
    told = {
        "NTASKS": "8",
        "NNODES": "2",
        "NTASKS_PER_NODE": "4",
        "PROCID": "5",
        "LOCALID": "1",
        "NODEID": "1",
        "JOB_NAME": "train",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = launched()
    assert found is not None and found.global_rank() == 5 and not first_process()
    assert per_machine(found) == (4, 2)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert launched() is None, "one task, that starts its own processes"
    assert torch.distributed.is_available()
