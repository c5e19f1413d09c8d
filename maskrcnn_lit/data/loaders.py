"""Data loading: number of processes, prefetch of remote files and of copies to a GPU, errors of
dead processes.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
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

# batches: more than the loader processes have in flight, and enough for 8 parallel requests of 50
# ms
AHEAD = 32

MAX_WORKERS = 1024


class PrefetchingBatchSampler:
    """Yields `batches` of an index with remote images and prefetches: with each batch, the images
    of the batch AHEAD positions later are requested, so they are in the cache when a loader process
    needs them. second: the position of another image that a key needs, or None.
    """

    def __init__(
        self,
        batches: Any,
        index: AnnotationIndex,
        source: Remote,
        second: Callable[[Key], int | None] | None = None,
    ) -> None:
        self.batches, self.index, self.source, self.second = batches, index, source, second
        self._prefetch: Prefetch | None = (
            None  # its threads start after the loader processes are forked
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return lookahead(self.batches, self._announce, AHEAD)

    def _announce(self, batch: list[Key]) -> None:
        if self._prefetch is None:
            self._prefetch = Prefetch(self.source.fill)
        self._prefetch.submit(self.index.file_name(i) for i in self._positions(batch))

    def _positions(self, batch: list[Key]) -> Iterator[int]:
        for key in batch:
            if key[1] != BLANK:
                yield key[1]
                second = None if self.second is None else self.second(key)
                if second is not None:
                    yield second

    @property
    def sampler(self) -> Any:
        """Lightning calls `set_epoch` of `dataloader.batch_sampler.sampler`."""
        return getattr(self.batches, "sampler", None)


def fetched_ahead(
    batches: Any, index: AnnotationIndex, second: Callable[[Key], int | None] | None = None
) -> Any:
    """`batches`, with prefetch if their images are remote."""
    return (
        PrefetchingBatchSampler(batches, index, index.source, second)
        if isinstance(index.source, Remote)
        else batches
    )


# torch's message when loader processes fail -> advice. The first match counts.
_KILLED = (
    "a loader process was killed, most often because the machine ran out of memory: use fewer "
    "processes, data.workers=N (0: none), or a smaller data.batch_size, and continue the run "
    "with resume=RUN"
)

_ADVICE = {
    r"Too many open files|received 0 items of ancdata": (
        "the loader processes need more open files than this shell allows: raise the limit (ulimit "
        "-n 65536), or load in the training process, data.workers=0"
    ),
    r"Bus error|torch_\d+\S*: No space left|shared memory|\(shm\)|SemLock": (
        "/dev/shm is too small for the batches of the loader processes: enlarge it (docker run "
        "--shm-size=2g, or --ipc=host), or load in the training process, data.workers=0"
    ),
    r"Cannot allocate memory|DataLoader worker.*(killed by signal|exited unexpectedly)": _KILLED,
}


class ExplainedLoader(DataLoader[Any]):
    """A DataLoader with a one-sentence error, and advice, when its processes fail.

    Iterating raises UserError for a killed process, a full /dev/shm and too many open files;
    exceptions of the dataset are unchanged.
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
    except (EOFError, ConnectionError) as error:  # killed while it wrote, and not yet noticed
        time.sleep(1)  # SIGCHLD arrives during the sleep
        raise UserError(f"{_KILLED} ({type(error).__name__})") from error
    except (RuntimeError, OSError) as error:
        text = str(error)
        advice = next((say for pattern, say in _ADVICE.items() if re.search(pattern, text)), None)
        if advice is None:
            raise
        # The last line of a process's error is its message, the others are the traceback.
        raise UserError(f"{advice} ({text.strip().splitlines()[-1].rstrip('. ')})") from error


def _explain_deaths() -> None:
    """Wrap torch's SIGCHLD handler, which raises anywhere in the training process, to raise our
    message.
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
    """The batches of `loader` on a GPU, each copied from pinned memory on a side stream during an
    earlier step. When a batch is returned, the device waits for its copy; the host does not wait.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.batch_sampler = loader.batch_sampler  # Lightning sets the epoch on it

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
            )  # else the next copy could reuse the memory while a step still reads it
        return batch


Loader = DataLoader[Any] | CudaPrefetcher


def check_workers(workers: int | str) -> None:
    """Raise UserError unless `data.workers` is "auto" or a valid number of processes."""
    is_integer = isinstance(workers, int) and not isinstance(workers, bool)
    if workers != "auto" and not (is_integer and 0 <= int(workers) <= MAX_WORKERS):
        raise UserError(
            f"data.workers={workers} must be auto or a number of processes from 0 to {MAX_WORKERS}"
        )


def choose_workers(workers: int | str, *, processes: int, cuda: bool) -> int:
    """The number of loader processes per training process. "auto": on a GPU all cores but one, at
    most 16, divided among the training processes of the machine; on the CPU one, since training
    needs the cores.
    """
    check_workers(workers)
    if isinstance(workers, int):
        return workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    spare = max(0, cores // processes - 1)
    return min(spare, 16 if cuda else 1)
