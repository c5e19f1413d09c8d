import os

import pytest

from maskrcnn_lit.data.workers import choose_workers
from maskrcnn_lit.errors import UserError


@pytest.mark.parametrize(
    ("cores", "processes", "cuda", "expected"),
    [(1, 1, False, 0), (2, 1, False, 1), (64, 1, False, 1), (64, 8, True, 7), (64, 1, True, 16), (4, 4, True, 0)],
)
def test_auto_workers(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, cuda: bool, expected: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert choose_workers("auto", processes=processes, cuda=cuda) == expected
    assert choose_workers(3, processes=processes, cuda=cuda) == 3


@pytest.mark.parametrize("workers", ["many", -1, 1.5])
def test_another_number_of_workers_is_told(workers: object):
    with pytest.raises(UserError, match=f"data.workers={workers} must be auto or a number of processes"):
        choose_workers(workers, processes=1, cuda=False)  # type: ignore[arg-type]
