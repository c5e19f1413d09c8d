"""The processes of a run: ranks, launchers, and broadcasting from rank zero.

There is one process per device. torchrun or srun (SLURM) starts all of them, or else the user's
command starts those of its machine. Each gets only the run folder and reads everything else from
there.
"""

import os
from collections.abc import Callable

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from maskrcnn_lit.errors import UserError


def cluster_environment() -> ClusterEnvironment | None:
    """The environment with this process's rank if torchrun or srun started several processes; None
    for a single process.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
        return SLURMEnvironment()
    return None


def is_rank_zero() -> bool:
    """Whether this process is rank zero, which writes files and prints."""
    environment = cluster_environment()
    return environment is None or environment.global_rank() == 0


def processes_per_node(environment: ClusterEnvironment) -> tuple[int, int]:
    """Processes per node, and number of nodes."""
    world = environment.world_size()
    if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, world // here
    machines = int(os.environ.get("SLURM_NNODES", "1"))
    return world // machines, machines


def broadcast_from_rank_zero(make: Callable[[], str]) -> str:
    """Call `make` on rank zero and broadcast its result, or its UserError, to every rank."""
    environment = cluster_environment()
    if environment is None:
        return make()
    address = {"MASTER_ADDR": environment.main_address, "MASTER_PORT": environment.main_port}
    rank = {"RANK": environment.global_rank(), "WORLD_SIZE": environment.world_size()}
    os.environ.update({name: str(value) for name, value in (address | rank).items()})
    store, number, _ = next(torch.distributed.rendezvous("env://"))
    key = f"maskrcnn_lit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if number > 0:
        kind, _, text = store.get(key).decode().partition(":")
        if kind == "error":
            raise UserError(text)
        return text
    try:
        result = make()
    except UserError as error:
        store.set(key, f"error:{error}")
        raise
    store.set(key, f"made:{result}")
    return result
