"""A thread that works on batches of what waits: one model pass serves several requests."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Waiting(NamedTuple, Generic[Item, Answer]):
    kind: Hashable
    item: Item
    future: Future[Answer]


class BatchQueue(Generic[Item, Answer]):
    """Runs `work` in one thread, on items of one kind at a time, in the order of their arrival.

    A batch is the item that waits longest and the next ones of its kind. An item whose future was
    canceled before its batch began is left out.

    Args:
        work: kind, items -> an answer for each, or the exception that its caller gets. If it raises
            an exception itself, all callers of the batch get it.
        batch_size: the most items of a batch.
    """

    def __init__(
        self,
        work: Callable[[Hashable, list[Item]], Sequence[Answer | Exception]],
        *,
        batch_size: int,
    ) -> None:
        self._work, self._batch_size = work, batch_size
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many items wait for a batch."""
        return len(self._waiting)

    @property
    def works(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, kind: Hashable, item: Item) -> Future[Answer]:
        """The future answer for `item`.

        Raises:
            RuntimeError: the queue is closed.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._waiting.append(_Waiting(kind, item, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Cancel what waits, and return after the batch that runs."""
        with self._changed:
            self._closed = True
            for one in self._waiting:
                one.future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer([one for one in batch if one.future.set_running_or_notify_cancel()])

    def _next(self) -> list[_Waiting[Item, Answer]]:
        """The next batch as soon as an item waits; empty: the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            kind, others = self._waiting[0].kind, deque[_Waiting[Item, Answer]]()
            batch: list[_Waiting[Item, Answer]] = []
            for one in self._waiting:
                fits = one.kind == kind and len(batch) < self._batch_size
                batch.append(one) if fits else others.append(one)
            self._waiting = others
            return batch

    def _answer(self, batch: list[_Waiting[Item, Answer]]) -> None:
        if not batch:
            return
        answers: Sequence[Answer | Exception]
        try:
            answers = self._work(batch[0].kind, [one.item for one in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for one, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                one.future.set_exception(answer)
            else:
                one.future.set_result(answer)
