"""The processes of one run: who started them, which one this is, and how a run on several devices starts its own.

One process a device. torchrun, or srun of SLURM, may have started them all, or else the command that the user typed
starts those of its machine, each with the run folder alone: whatever a rank does, it reads from there.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maskrcnn_lit.errors import UserError


def launched() -> ClusterEnvironment | None:
    """What tells this process its rank, where torchrun or srun has started several; None: it is the only one."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
        return SLURMEnvironment()
    return None


def first_process() -> bool:
    """Of several processes, on however many machines, one writes."""
    environment = launched()
    return environment is None or environment.global_rank() == 0


def per_machine(environment: ClusterEnvironment) -> tuple[int, int]:
    """Processes a machine, and machines."""
    world = environment.world_size()
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, world // here
    machines = int(os.environ.get("SLURM_NNODES", "1"))
    return world // machines, machines


def from_first(make: Callable[[], str]) -> str:
    """What `make` returns in the first process, in every process; it is called there alone. So is a UserError."""
    environment = launched()
    if environment is None:
        return make()
    place = {"MASTER_ADDR": environment.main_address, "MASTER_PORT": environment.main_port}
    rank = {"RANK": environment.global_rank(), "WORLD_SIZE": environment.world_size()}
    os.environ.update({name: str(value) for name, value in (place | rank).items()})
    store, number, _ = next(torch.distributed.rendezvous("env://"))
    key = f"maskrcnn_lit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if number > 0:
        kind, _, text = store.get(key).decode().partition(":")
        if kind == "error":
            raise UserError(text)
        return text
    try:
        made = make()
    except UserError as error:
        store.set(key, f"error:{error}")
        raise
    store.set(key, f"made:{made}")
    return made


def memory_hint(signal: int) -> str:
    """What to say of a process that ended by `signal`: a system without memory sends 9."""
    return ": if the memory was full, take a smaller data.batch_size" if signal == 9 else ""


def start(run_dir: Path, processes: int) -> None:
    """Run `python -m maskrcnn_lit.job run_dir` in so many processes of this machine; they end together.

    Raises:
        SystemExit: one of them failed and has said why, with its exit code.
        UserError: one of them was killed.
        KeyboardInterrupt: they were interrupted.
    """
    # Threads that would wait for one another: the cores are shared out, unless the user has said otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it tells of a failure once more, at length
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=run_dir.name,
        max_restarts=0,
    )
    try:
        elastic_launch(how, sys.executable)("-m", "maskrcnn_lit.job", str(run_dir))
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == 130:
            raise KeyboardInterrupt from error
        if failure.exitcode > 0:
            raise SystemExit(failure.exitcode) from error
        raise UserError(
            f"process {rank} of {processes} was killed by signal {-failure.exitcode}{memory_hint(-failure.exitcode)}"
        ) from error
