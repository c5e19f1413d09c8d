"""Launchers for the jobs of a sweep: one after the other, one on each GPU, or by SLURM.

A launcher is a function of commands that yields the name and exit code of each when it ends. It
takes the next command when it can start it, so that a search can choose it by what has ended.
"""

import os
import queue
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import torch

from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.launch.processes import memory_hint

POLL_SECONDS = 2.0  # between two polls of SLURM's jobs


class Command(NamedTuple):
    """A process to run; its output is appended to `log`."""

    name: str
    words: Sequence[str]
    log: Path


def sequential(commands: Iterable[Command]) -> Iterator[tuple[str, int]]:
    """Run the commands one after the other."""
    for command in commands:
        yield command.name, run(command)


def local_gpus(
    commands: Iterable[Command], *, devices: Sequence[int | str] | None = None
) -> Iterator[tuple[str, int]]:
    """Run one command on each GPU, which sees only this GPU; further commands start when a GPU
    becomes free.

    UserError: there is no GPU.
    """
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    names = [str(device) for device in devices] if devices is not None else _visible_devices()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not names:
        raise UserError(
            f"launcher=local_gpus, but torch {torch.__version__} sees no CUDA device here: use "
            "launcher=sequential"
        )
    for name in names:
        free.put(name)
    # Each job gets its share of the cores, or it would start loader processes for all of them.
    shares = {name: cores[number :: len(names)] for number, name in enumerate(names)}

    def on_a_free_one(command: Command) -> tuple[str, int]:
        device = free.get()
        try:
            return command.name, run(command, {"CUDA_VISIBLE_DEVICES": device}, shares[device])
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(len(names))
    waiting = iter(commands)
    try:
        running = {pool.submit(on_a_free_one, command) for command in islice(waiting, len(names))}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= {pool.submit(on_a_free_one, one) for one in islice(waiting, 1)}
    except KeyboardInterrupt:
        _RUNNING.interrupt()
        raise
    finally:
        pool.shutdown(
            cancel_futures=True
        )  # on an interrupt: running jobs are interrupted, too, and no more are started


def slurm(
    commands: Iterable[Command],
    *,
    cluster: str,
    partition: str | None,
    gpus: int,
    cpus: int,
    memory_gb: int,
    hours: float,
    at_once: int | None = None,
    requeues: int = 3,
) -> Iterator[tuple[str, int]]:
    """Submit each command as a SLURM job (submitit) or, with `cluster` "local", as a local submitit
    process. At most `at_once` are in the queue at a time; None: all. A job that is preempted goes
    back into the queue, and one that reaches its `hours` up to `requeues` times.

    UserError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            "launcher=slurm needs submitit: pip install 'maskrcnn_lit[slurm]'"
        ) from None
    if cluster not in ("slurm", "local"):
        raise UserError(f"launcher.cluster is {cluster!r}; expected slurm or local")
    check_whole(0, launcher__gpus=gpus, launcher__requeues=requeues)
    check_whole(1, launcher__cpus=cpus, launcher__memory_gb=memory_gb)
    wanted: dict[str, Any] = {
        "timeout_min": round(60 * hours),
        "cpus_per_task": cpus,
        "mem_gb": memory_gb,
        "gpus_per_node": gpus,
    }
    if partition is not None:
        wanted["slurm_partition"] = partition

    def submit(command: Command) -> Any:
        executor = submitit.AutoExecutor(
            folder=command.log.parent / "submitit",
            cluster=cluster,
            slurm_max_num_timeout=requeues,
        )
        executor.update_parameters(name="maskrcnn_lit", **wanted)
        return executor.submit(RequeuedJob(), command)

    waiting = iter(commands)
    running: list[tuple[Command, Any]] = []
    try:
        while True:
            free = None if at_once is None else at_once - len(running)
            for command in islice(waiting, free):
                running.append((command, submit(command)))
            if not running:
                return
            for command, job in [pair for pair in running if pair[1].done()]:
                running.remove((command, job))
                yield command.name, _exit_code(job, command)
            sleep(POLL_SECONDS if running else 0)
    finally:  # on an interrupt, leave nothing in the queue
        for _, job in running:
            job.cancel()


class RequeuedJob:
    """`run` as a job of submitit, which calls `checkpoint` before the time limit or a preemption,
    and then puts the job back into the queue.
    """

    def __call__(self, command: Command) -> int:
        return run(command)

    def checkpoint(self, command: Command) -> Any:
        from submitit.helpers import DelayedSubmission

        _RUNNING.save()
        return DelayedSubmission(self, command)


def _exit_code(job: Any, command: Command) -> int:
    """The exit code of a SLURM job that has ended."""
    failure = job.exception()
    if failure is None:
        return int(job.result())
    with open(command.log, "a") as log:  # SLURM cancelled it, or never started it
        log.write(f"{failure}\n")
    return 1


class _Running:
    """The processes of the running jobs."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def tracked(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        self._processes.append(process)
        try:
            yield
        finally:
            self._processes.remove(process)

    def interrupt(self) -> None:
        """Interrupt the processes, too. A terminal's Ctrl-C reaches them directly, a `kill` of the
        sweep does not; a run that is already stopping ignores a second interrupt.
        """
        for process in list(self._processes):
            process.send_signal(signal.SIGINT)

    def save(self) -> None:
        """Let the processes save and end (training/stop.py), and wait for that. It may be called by
        a signal handler while `run` waits for the same process, so it leaves their exit codes.
        """
        for process in list(self._processes):
            process.send_signal(signal.SIGUSR1)
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


_RUNNING = _Running()


def run(
    command: Command, environment: Mapping[str, str] | None = None, cores: Sequence[int] = ()
) -> int:
    """Run a command and return its exit code; a negative one is the signal that killed it. On an
    interrupt, wait until the process has ended.

    cores: the CPU cores that it may use; empty: all.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with open(command.log, "ab") as log:
        process = subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        if cores:
            os.sched_setaffinity(process.pid, cores)
        with _RUNNING.tracked(process):
            try:
                return process.wait()
            except KeyboardInterrupt:
                _RUNNING.interrupt()
                process.wait()
                raise


def reason(code: int, log: Path) -> str:
    """Why a command failed: the signal that killed it, or the last line of its log."""
    if code < 0:
        return f"killed by signal {-code}{memory_hint(-code)}"
    lines = (
        [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if log.is_file()
        else []
    )
    return (
        lines[-1].removeprefix("maskrcnn-lit: ")
        if lines
        else f"it ended with exit code {code} without a message"
    )


def _visible_devices() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]
