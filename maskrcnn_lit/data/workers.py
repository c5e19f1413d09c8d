"""Who loads: how many processes, and what is fetched ahead of them from far away."""

import os
from collections.abc import Iterator
from typing import Any

from maskrcnn_lit.data.cache import Prefetch, told_ahead
from maskrcnn_lit.data.index import AnnotationIndex
from maskrcnn_lit.data.sampling import BLANK, Key
from maskrcnn_lit.data.source import Remote
from maskrcnn_lit.errors import UserError

AHEAD = 32  # batches: more than the loader processes hold, and at 50 ms a request enough for 8 at a time


class FetchedAhead:
    """The same `batches`, of an index whose images are far away: when one is handed out, the images of the batch that
    is AHEAD behind it are asked for, and wait in the cache when a loader process wants them."""

    def __init__(self, batches: Any, index: AnnotationIndex, source: Remote) -> None:
        self.batches, self.index, self.source = batches, index, source
        self._prefetch: Prefetch | None = None  # its threads begin after the loader processes are forked

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return told_ahead(self.batches, self._tell, AHEAD)

    def _tell(self, batch: list[Key]) -> None:
        if self._prefetch is None:
            self._prefetch = Prefetch(self.source.fill)
        self._prefetch.submit(self.index.file_name(i) for _, i in batch if i != BLANK)

    @property
    def sampler(self) -> Any:
        """Lightning looks for `set_epoch` at `dataloader.batch_sampler.sampler`."""
        return getattr(self.batches, "sampler", None)


def choose_workers(workers: int | str, *, processes: int, cuda: bool) -> int:
    """Loader processes of one training process. "auto": a GPU is fed by all cores but one, at most 16, shared among the
    training processes of the machine; on the CPU training needs the cores, and one loader keeps up with it."""
    if workers != "auto":
        if not isinstance(workers, int) or workers < 0:
            raise UserError(f"data.workers={workers} must be auto or a number of processes, 0 or more")
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spare = max(0, cores // processes - 1)
    return min(spare, 16 if cuda else 1)
