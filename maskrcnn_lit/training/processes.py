"""The processes of a run: ranks, launchers, and broadcasting from rank zero.

There is one process per device. torchrun or srun (SLURM) starts all of them, or else the user's
command starts those of its machine. Each gets only the run folder and reads everything else from
there.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.ranks import cluster_environment

RANK_TIMEOUT = 5.0  # minutes, of runs that were written before the option


def rank_timeout(trainer: Mapping[str, Any]) -> float | None:
    """`trainer.rank_timeout_minutes` of a config, which old runs do not have."""
    minutes: float | None = trainer.get("rank_timeout_minutes", RANK_TIMEOUT)
    return minutes


def broadcast_from_rank_zero(
    make: Callable[[], str], minutes: float | None = None, *, long: bool = False
) -> str:
    """Call `make` on rank zero and broadcast its result, or its UserError, to every rank.

    minutes: how long the processes wait for one that does not come; None: without limit. long:
    `make` may take longer.

    Raises:
        UserError: one did not come in time, or `make` raised it.
    """
    environment = cluster_environment()
    if environment is None:
        return make()
    meet("start", minutes)
    store = _store(environment, None if long and environment.global_rank() > 0 else minutes)
    if environment.global_rank() > 0:
        with _named_failures(0, environment.world_size(), minutes):
            kind, _, text = store.get("made").decode().partition(":")
        if kind == "error":
            raise UserError(text)
        return text
    try:
        result = make()
    except UserError as error:
        store.set("made", f"error:{error}")
        raise
    store.set("made", f"made:{result}")
    return result


def meet(place: str, minutes: float | None) -> None:
    """Wait until every process of the run has come here. The limit of torch, which ends in a
    traceback, counts for what comes after.

    place: a name that all of them give; minutes: see `broadcast_from_rank_zero`.

    Raises:
        UserError: some did not come in time; it names them.
    """
    environment = cluster_environment()
    if environment is None or environment.world_size() == 1:
        return
    world = environment.world_size()
    number = next(_meetings)  # a process may train several times
    deadline = time.monotonic() + 60 * (math.inf if minutes is None else minutes)
    with _named_failures(0, world, minutes):
        store = _store(environment, minutes)
        keys = [f"{place}/{number}/{rank}" for rank in range(world)]
        store.set(keys[environment.global_rank()], "")
        while missing := [rank for rank, key in enumerate(keys) if not store.check([key])]:
            if time.monotonic() > deadline:
                who = f"process {missing[0]} of {world} has not come"
                if len(missing) > 1:
                    names = ", ".join(map(str, missing))
                    who = f"processes {names} of {world} have not come"
                raise UserError(_not_come(who, minutes))
            time.sleep(MEETING_SECONDS)


MEETING_SECONDS = 0.05  # between two looks for the others

_meetings = itertools.count()


def _store(environment: ClusterEnvironment, minutes: float | None) -> torch.distributed.Store:
    """What the processes share before there is a process group; that of torchrun's agent, or one
    that the first process serves.
    """
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = environment.global_rank() == 0 and not agents
    seconds = FOREVER if minutes is None else max(60 * minutes, 0.1)
    store = _open_store(environment.main_address, environment.main_port, serves, seconds)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return torch.distributed.PrefixStore(f"maskrcnn_lit/{attempt}", store)


FOREVER = 1e8  # seconds


@cache  # to the end of the process: the others may still ask
def _open_store(address: str, port: int, serves: bool, seconds: float) -> torch.distributed.Store:
    return torch.distributed.TCPStore(
        address,
        port,
        is_master=serves,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


@contextmanager
def _named_failures(rank: int, world: int, minutes: float | None) -> Iterator[None]:
    """What torch raises where the store of process `rank` does not answer, as a sentence."""
    try:
        yield
    except torch.distributed.DistError as error:
        who = f"process {rank} of {world} does not answer"
        raise UserError(_not_come(who, minutes)) from error


def _not_come(who: str, minutes: float | None) -> str:
    limit = ""
    if minutes is not None:
        limit = f" within {minutes:g} minutes" if minutes >= 1 else f" within {60 * minutes:.3g} s"
    return (
        f"{who}{limit}, and the others wait for it, so all end: look at its machine and its output "
        "(trainer.rank_timeout_minutes sets the limit)"
    )
