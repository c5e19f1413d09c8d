from collections.abc import Iterator

import pytest
import torch

from maskrcnn_lit import threads
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.threads import share_cores


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: {0, 2, 5, 7}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("workers", "left"), [(0, 4), (1, 3), (3, 1), (4, 1), (100, 1), ("auto", 3)])
def test_torch_computes_on_the_cores_that_loaders_leave(four_cores: None, workers: int | str, left: int):
    assert share_cores(workers) == left == torch.get_num_threads()


def test_the_users_own_number_stays(four_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert share_cores(3) == 2 == torch.get_num_threads()


def test_where_affinity_is_unknown_all_cores_count(four_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(threads.os, "sched_getaffinity")
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 6)
    assert share_cores(2) == 4


@pytest.mark.parametrize("workers", [-1, "many"])
def test_a_number_of_workers_that_is_none(four_cores: None, workers: int | str):
    with pytest.raises(UserError, match=f"data.workers={workers} must be auto or a number"):
        share_cores(workers)
