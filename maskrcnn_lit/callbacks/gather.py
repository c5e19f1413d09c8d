"""Collectives of an evaluation in which the failure of one rank ends all ranks with its message.

A failing rank writes its message to the store of the process group. The others read the store
whenever they might wait for it: after every batch, before they gather, and when a collective fails.
Without a process group these functions do nothing.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch.distributed

from maskrcnn_lit.errors import UserError

_FAILED, _READ = "maskrcnn_lit/failed", "maskrcnn_lit/failure_read"

_POLL_SECONDS = 0.02

_WAIT_SECONDS = 1800.0  # PyTorch's timeout of a collective: a killed rank leaves no message

_GRACE_SECONDS = (
    30.0  # rank zero hosts the store, so it stays until the others have read its message
)


def gather_and_combine(
    name: str, own: Any, combine: Callable[[list[Any]], Any], *, wait_seconds: float = _WAIT_SECONDS
) -> Any:
    """Call `combine` on rank zero with the `own` of all ranks, in rank order, and return its result
    on every rank.

    name: the same on every rank, and unique for each call. If `combine` fails, or another rank has
    failed, every rank raises that error. RuntimeError: a rank did not arrive within `wait_seconds`.
    """
    if not _several():
        return combine([own])
    store, world = _store(), torch.distributed.get_world_size()
    arrived, result = f"maskrcnn_lit/{name}/arrived", f"maskrcnn_lit/{name}/made"
    store.add(arrived, 1)
    _wait(
        lambda: store.add(arrived, 0) == world, f"all {world} processes in {name!r}", wait_seconds
    )
    first = torch.distributed.get_rank() == 0
    gathered: list[Any] | None = [None] * world if first else None
    torch.distributed.gather_object(own, gathered)
    outcome = [None]
    if gathered is None:
        _wait(lambda: store.check([result]), f"the result of process 0 in {name!r}", wait_seconds)
    else:
        try:
            outcome = [combine(gathered)]
        except Exception as error:
            publish_failure(error)
            raise
        store.set(result, "")
    torch.distributed.broadcast_object_list(outcome)
    return outcome[0]


def publish_failure(error: Exception) -> None:
    """Publish `error` to the other ranks, unless a failure was published before. Rank zero waits
    until all have read it.
    """
    if not _several():
        return
    store, rank = _store(), torch.distributed.get_rank()
    if _reported() is not None:
        store.set(f"{_READ}/{rank}", "")
        return
    store.set(
        _FAILED,
        json.dumps(
            {"rank": rank, "user": isinstance(error, UserError), "message": _message(error)}
        ),
    )
    others = [
        f"{_READ}/{other}" for other in range(torch.distributed.get_world_size()) if other != rank
    ]
    deadline = time.monotonic() + _GRACE_SECONDS
    while rank == 0 and not store.check(others) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def raise_remote_failure(cause: Exception | None = None) -> None:
    """Raise the error that another rank published: as a UserError if it was one, else as a
    RuntimeError.
    """
    failure = _reported() if _several() else None
    if failure is None or failure["rank"] == torch.distributed.get_rank():
        return
    _store().set(f"{_READ}/{torch.distributed.get_rank()}", "")
    kind = UserError if failure["user"] else RuntimeError
    raise kind(f"process {failure['rank']} failed: {failure['message']}") from cause


def _wait(ready: Callable[[], bool], message: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        raise_remote_failure()
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"process {torch.distributed.get_rank()} waited {seconds:g} s for {message}: one "
                "was killed (out of "
                "memory?) or hangs; see what the others printed last"
            )
        time.sleep(_POLL_SECONDS)


def _reported() -> dict[str, Any] | None:
    store = _store()
    return json.loads(store.get(_FAILED)) if store.check([_FAILED]) else None


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()
