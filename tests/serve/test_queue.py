"""The queue of the server: batches of one kind, in order, and an answer for each item."""

import threading
from collections.abc import Hashable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress

import pytest

from maskrcnn_lit.serve.queue import BatchQueue


class Worker:
    """Doubles numbers, one batch for each `go`; refuses negative ones."""

    def __init__(self) -> None:
        self.batches: list[tuple[Hashable, list[int]]] = []
        self.go, self.began = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, kind: Hashable, items: list[int]) -> list[int | Exception]:
        self.batches.append((kind, items))
        self.began.release()
        self.go.acquire()
        if 13 in items:
            raise ValueError("13")
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def queue(worker: Worker) -> Iterator[BatchQueue[int, int]]:
    made = BatchQueue[int, int](worker, batch_size=3)
    yield made
    worker.go.release(100)
    made.close()


def fill(queue: BatchQueue[int, int], worker: Worker, *items: tuple[str, int]) -> list:
    """Futures of items, of which the first is at work and the others wait."""
    first = queue.submit(*items[0])
    worker.began.acquire()
    return [first, *(queue.submit(*item) for item in items[1:])]


def test_batches_are_of_one_kind_in_order_of_arrival(queue: BatchQueue[int, int], worker: Worker):
    futures = fill(
        queue, worker, ("a", 1), ("a", 2), ("b", 3), ("a", 4), ("a", 5), ("a", 6), ("b", 7)
    )
    assert len(queue) == 6
    worker.go.release(100)
    assert [future.result(30) for future in futures] == [2, 4, 6, 8, 10, 12, 14]
    assert worker.batches == [("a", [1]), ("a", [2, 4, 5]), ("b", [3, 7]), ("a", [6])]
    assert len(queue) == 0


def test_an_item_that_fails_leaves_the_others(queue: BatchQueue[int, int], worker: Worker):
    futures = fill(queue, worker, ("a", 0), ("a", -1), ("a", 2))
    worker.go.release(100)
    assert futures[2].result(30) == 4
    with pytest.raises(ValueError, match="-1"):
        futures[1].result(30)


def test_work_that_fails_is_the_error_of_its_batch_alone(
    queue: BatchQueue[int, int], worker: Worker
):
    futures = fill(queue, worker, ("a", 0), ("a", 13), ("a", 2), ("b", 5))
    worker.go.release(100)
    for future in futures[1:3]:
        with pytest.raises(ValueError, match="13"):
            future.result(30)
    assert futures[3].result(30) == 10


def test_a_canceled_item_is_not_worked_on(queue: BatchQueue[int, int], worker: Worker):
    futures = fill(queue, worker, ("a", 0), ("a", 1), ("a", 2))
    assert futures[1].cancel()
    worker.go.release(100)
    assert futures[2].result(30) == 4
    assert worker.batches == [("a", [0]), ("a", [2])]


def test_closing_cancels_what_waits(queue: BatchQueue[int, int], worker: Worker):
    futures = fill(queue, worker, ("a", 1), ("a", 2))
    worker.go.release(100)
    queue.close()
    assert futures[0].result(30) == 2
    with suppress(CancelledError):
        assert futures[1].result(30) == 4  # the thread was faster
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit("a", 3)
