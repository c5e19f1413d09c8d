"""Which of the processes of a run this one is."""

import os

import pytest
import torch

from maskrcnn_lit.training.ranks import cluster_environment, is_rank_zero, processes_per_node


def test_alone(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)  # of a cluster's node that runs this test
    assert cluster_environment() is None
    assert is_rank_zero()


def test_under_torchrun(monkeypatch: pytest.MonkeyPatch):
    told = {"RANK": "5", "GROUP_RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**told, "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    found = cluster_environment()
    assert found is not None
    assert found.global_rank() == 5
    assert not is_rank_zero()
    assert processes_per_node(found) == (4, 2)


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
    found = cluster_environment()
    assert found is not None
    assert found.global_rank() == 5
    assert not is_rank_zero()
    assert processes_per_node(found) == (4, 2)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert cluster_environment() is None, "one task, that starts its own processes"
    assert torch.distributed.is_available()
