"""Who loads: how many processes, what is fetched ahead of them from far away, what is copied ahead
to a GPU, and what to do when a process dies.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.samplers import BLANK, Key
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.cache import Prefetch, lookahead
from maskrcnn_lit.storage.sources import Remote

# batches: more than the loader processes hold, and at 50 ms a request enough for 8 at a time
AHEAD = 32

MAX_WORKERS = 1024


class PrefetchingBatchSampler:
    """The same `batches`, of an index whose images are far away: when one is handed out, the images
    of the batch that is AHEAD behind it are asked for, and wait in the cache when a loader process
    wants them.
    """

    def __init__(self, batches: Any, index: AnnotationIndex, source: Remote) -> None:
        self.batches, self.index, self.source = batches, index, source
        self._prefetch: Prefetch | None = (
            None  # its threads begin after the loader processes are forked
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return lookahead(self.batches, self._announce, AHEAD)

    def _announce(self, batch: list[Key]) -> None:
        if self._prefetch is None:
            self._prefetch = Prefetch(self.source.fill)
        self._prefetch.submit(self.index.file_name(i) for _, i in batch if i != BLANK)

    @property
    def sampler(self) -> Any:
        """Lightning looks for `set_epoch` at `dataloader.batch_sampler.sampler`."""
        return getattr(self.batches, "sampler", None)


def fetched_ahead(batches: Any, index: AnnotationIndex) -> Any:
    """The same `batches`, fetched ahead where their images are far away."""
    return (
        PrefetchingBatchSampler(batches, index, index.source)
        if isinstance(index.source, Remote)
        else batches
    )


# What torch says when its loader processes cannot go on -> what to do. The first that fits counts.
_KILLED = (
    "a loader process was killed, most often because the machine ran out of memory: use fewer "
    "of them, data.workers=N (0: none), or a smaller data.batch_size, and let the run go on "
    "with resume=RUN"
)

_ADVICE = {
    r"Too many open files|received 0 items of ancdata": (
        "the loader processes need more open files than the limit of this shell: raise it (ulimit "
        "-n 65536), or load in the training process, data.workers=0"
    ),
    r"Bus error|torch_\d+\S*: No space left|shared memory|\(shm\)|SemLock": (
        "/dev/shm is too small for the batches of the loader processes: enlarge it (docker run "
        "--shm-size=2g, or --ipc=host), or load in the training process, data.workers=0"
    ),
    r"Cannot allocate memory|DataLoader worker.*(killed by signal|exited unexpectedly)": _KILLED,
}


class ExplainedLoader(DataLoader[Any]):
    """A DataLoader that says in one sentence why its processes cannot go on, and what to do.

    Iterating raises UserError for a process that was killed, a /dev/shm that is full and a limit of
    open files that is reached; what the dataset raises passes as it is.
    """

    def __iter__(self) -> Any:
        with _explained():
            iterator = super().__iter__()
            if self.num_workers and threading.current_thread() is threading.main_thread():
                _explain_deaths()
            yield from iterator


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:  # killed while it wrote, and not yet seen as dead
        time.sleep(1)  # SIGCHLD comes in it, and no later
        raise UserError(f"{_KILLED} ({type(error).__name__})") from error
    except (RuntimeError, OSError) as error:
        text = str(error)
        advice = next((say for pattern, say in _ADVICE.items() if re.search(pattern, text)), None)
        if advice is None:
            raise
        # Of an error that came from a process the last line is its own, the rest its traceback.
        raise UserError(f"{advice} ({text.strip().splitlines()[-1].rstrip('. ')})") from error


def _explain_deaths() -> None:
    """torch raises in a handler of SIGCHLD, wherever the training process is at that moment: there
    too with our sentence.
    """
    handler: Any = signal.getsignal(signal.SIGCHLD)
    if not callable(handler) or getattr(handler, "explained", False):
        return

    def explaining(number: int, frame: Any) -> None:
        with _explained():
            handler(number, frame)

    vars(explaining)["explained"] = True
    signal.signal(signal.SIGCHLD, explaining)


class CudaPrefetcher:
    """The batches of `loader` on a GPU, each copied from pinned memory on a stream of its own while
    a step before it computes. Where a batch is handed out, the device waits for its copy, and the
    host for nothing.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.batch_sampler = loader.batch_sampler  # where Lightning sets the epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self.device)
        ahead: tuple[Batch, torch.cuda.Event] | None = None
        for batch in self.loader:
            with torch.cuda.stream(stream):
                copy = {
                    key: value.to(self.device, non_blocking=True) for key, value in batch.items()
                }
                copied = stream.record_event()
            if ahead is not None:
                yield self._ready(*ahead)
            ahead = copy, copied
        if ahead is not None:
            yield self._ready(*ahead)

    def _ready(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for value in batch.values():
            value.record_stream(
                stream
            )  # else its memory might be given to the next copy while a step still reads it
        return batch


Loader = DataLoader[Any] | CudaPrefetcher


def check_workers(workers: int | str) -> None:
    """Raise UserError for a `data.workers` that is neither "auto" nor a number of processes."""
    is_integer = isinstance(workers, int) and not isinstance(workers, bool)
    if workers != "auto" and not (is_integer and 0 <= int(workers) <= MAX_WORKERS):
        raise UserError(
            f"data.workers={workers} must be auto or a number of processes from 0 to {MAX_WORKERS}"
        )


def choose_workers(workers: int | str, *, processes: int, cuda: bool) -> int:
    """Loader processes of one training process. "auto": a GPU is fed by all cores but one, at most
    16, shared among the training processes of the machine; on the CPU training needs the cores, and
    one loader keeps up with it.
    """
    check_workers(workers)
    if isinstance(workers, int):
        return workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    spare = max(0, cores // processes - 1)
    return min(spare, 16 if cuda else 1)
