"""Start the processes of a run on this machine."""

import logging
import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maskrcnn_lit.errors import UserError


def memory_hint(signal: int) -> str:
    """What to say of a process that ended by `signal`: a system without memory sends 9."""
    return ": if the memory was full, take a smaller data.batch_size" if signal == 9 else ""


def start(config: Path, processes: int) -> None:
    """Run `python -m maskrcnn_lit.launch.run CONFIG` in so many processes of this machine; they end
    together. config: a yaml file that this program has just written.

    Raises:
        SystemExit: one of them failed and has said why, with its exit code.
        UserError: one of them was killed.
        KeyboardInterrupt: they were interrupted.
    """
    # Threads that would wait for one another: the cores are shared out, unless the user has said
    # otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # it tells of a failure once more, at length
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="maskrcnn_lit",
        max_restarts=0,
    )
    try:
        elastic_launch(how, sys.executable)("-P", "-m", "maskrcnn_lit.launch.run", str(config))
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
