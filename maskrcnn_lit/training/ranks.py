"""Which of the processes of a run this one is; see processes.py.

Lightning, which takes seconds to import, is asked only in a process that torchrun or srun started.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

LAUNCHERS = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}  # variables of torchrun and of srun


def cluster_environment() -> "ClusterEnvironment | None":
    """The environment with this process's rank if torchrun or srun started several processes; None
    for a single process.
    """
    if not LAUNCHERS & os.environ.keys():
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
        # conf/train.yaml's `requeue` does it, not Lightning
        return SLURMEnvironment(auto_requeue=False)
    return None


def is_rank_zero() -> bool:
    """Whether this process is rank zero, which writes files and prints."""
    environment = cluster_environment()
    return environment is None or environment.global_rank() == 0


def processes_per_node(environment: "ClusterEnvironment") -> tuple[int, int]:
    """Processes per node, and number of nodes."""
    world = environment.world_size()
    if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, world // here
    machines = int(os.environ.get("SLURM_NNODES", "1"))
    return world // machines, machines
