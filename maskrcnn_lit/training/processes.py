"""The processes of one run: who started them, which one this is, and how a run on several devices
starts its own.

One process a device. torchrun, or srun of SLURM, may have started them all, or else the command
that the user typed starts those of its machine, each with the run folder alone: whatever a rank
does, it reads from there.
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
    """What tells this process its rank, where torchrun or srun has started several; None: it is the
    only one.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
        return SLURMEnvironment()
    return None


def is_rank_zero() -> bool:
    """Of several processes, on however many machines, one writes."""
    environment = cluster_environment()
    return environment is None or environment.global_rank() == 0


def processes_per_node(environment: ClusterEnvironment) -> tuple[int, int]:
    """Processes a machine, and machines."""
    world = environment.world_size()
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, world // here
    machines = int(os.environ.get("SLURM_NNODES", "1"))
    return world // machines, machines


def broadcast_from_rank_zero(make: Callable[[], str]) -> str:
    """What `make` returns in the first process, in every process; it is called there alone. So is a
    UserError.
    """
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
