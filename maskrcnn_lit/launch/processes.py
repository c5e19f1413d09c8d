"""Start the processes of a run on this machine."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.stop import SIGNALS


def memory_hint(signal: int) -> str:
    """Advice for a process killed by `signal`: the system sends 9 when it runs out of memory."""
    return (
        ": if the machine ran out of memory, use a smaller data.batch_size" if signal == 9 else ""
    )


def register(config: Path) -> None:
    """Register this process to receive the signals that `start` forwards."""
    config.with_name(f"{os.getpid()}.pid").touch()


def start(config: Path, processes: int) -> None:
    """Run `python -m maskrcnn_lit.launch.run CONFIG` in `processes` processes on this machine; they
    end together. config: a yaml file that this program has just written, in its own folder.

    Stop signals are forwarded: the processes save a checkpoint and exit.

    Raises:
        SystemExit: one of them failed and has reported it; with its exit code.
        UserError: one of them was killed.
        KeyboardInterrupt: they were interrupted.
    """
    # Divide the cores among the processes, unless the user has set the number of threads.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # it would report a failure again, at length
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="maskrcnn_lit",
        max_restarts=0,
        signals_to_handle="SIGINT,SIGQUIT",
    )
    try:
        with _passed_on(config.parent, processes) as passed:
            elastic_launch(how, sys.executable)("-P", "-m", "maskrcnn_lit.launch.run", str(config))
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode == 130 or -failure.exitcode in passed:
            raise KeyboardInterrupt from error
        if failure.exitcode > 0:
            raise SystemExit(failure.exitcode) from error
        raise UserError(
            f"process {rank} of {processes} was killed by signal "
            f"{-failure.exitcode}{memory_hint(-failure.exitcode)}"
        ) from error


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The rank and the failure that ended the run: one that was killed, since the others fail when
    its connection breaks, or else the first.
    """
    killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0]
    return killed[0] if killed else error.get_first_failure()


@contextmanager
def _passed_on(folder: Path, processes: int) -> Iterator[list[int]]:
    """Forward SIGNALS to the processes registered in `folder`; yields the received signals.
    Restores the signal handlers that elastic_launch replaces.
    """
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(number)
        known = [int(file.stem) for file in folder.glob("*.pid")]
        if len(known) < processes:  # they have not started, so there is nothing to save
            raise SignalException(f"signal {number}", sigval=signal.Signals.SIGTERM)
        for pid in known:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():  # Python allows it only there
        yield passed
        return
    numbers = (*SIGNALS, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in SIGNALS:
            signal.signal(number, pass_on)
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
