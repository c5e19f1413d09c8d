"""Runs an iterator ahead in a thread, with a bounded queue."""

import logging
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that the thread may take to end, e.g. in a read of a network

_log = logging.getLogger(__name__)


def read_ahead(items: Iterator[T], size: int, *, newest: bool = False) -> Generator[T, None, None]:
    """The `items` in order, of which up to `size` are made ahead. An error of theirs is raised
    here, after the items before it. Close the iterator to end the thread before the last item.

    Args:
        newest: for items that do not wait, such as the frames of a camera: where the queue is full,
            the oldest goes. A line of the log says how many went.
    """
    worker = _Worker(items, size, newest)
    thread = threading.Thread(target=worker.run, daemon=True, name="read_ahead")
    thread.start()
    try:
        while (item := worker.get()) is not None:
            yield item[0]
    finally:
        worker.stopped.set()
        thread.join(_PATIENCE)
        if worker.dropped:
            _log.info(f"{worker.dropped} frames were dropped: the model is slower than the camera")


class _Worker:
    """Makes the items in a thread."""

    def __init__(self, items: Iterator[Any], size: int, newest: bool) -> None:
        self.items, self.newest = items, newest
        self.stopped, self.dropped = threading.Event(), 0
        self._queue: queue.Queue[tuple[Any] | BaseException | None] = queue.Queue(size)

    def get(self) -> tuple[Any] | None:
        """The next item as a tuple of one; None: the end. Raises what the items raised."""
        entry = self._queue.get()
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def run(self) -> None:
        try:
            for item in self.items:
                self._put((item,))
                if self.stopped.is_set():
                    break
        except BaseException as error:
            self._put(error)
        else:
            self._put(None)
        finally:
            if isinstance(self.items, Generator):
                self.items.close()  # in the thread that runs it

    def _put(self, entry: tuple[Any] | BaseException | None) -> None:
        if self.newest and isinstance(entry, tuple):
            self._drop_old()
        while not self.stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(entry, timeout=0.1)
                return

    def _drop_old(self) -> None:
        """Make room; the consumer may be faster."""
        while self._queue.full():
            with suppress(queue.Empty):
                self._queue.get_nowait()
                self.dropped += 1
