import math
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_file import small_index
from torch.utils.data import DataLoader, Dataset

from maskrcnn_lit.data import loaders as workers
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.loaders import (
    CudaPrefetcher,
    ExplainedLoader,
    PrefetchingBatchSampler,
    check_workers,
    choose_workers,
    fetched_ahead,
)
from maskrcnn_lit.data.samplers import BLANK, EpochBatches
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sources import Remote


@pytest.mark.parametrize(
    ("cores", "processes", "cuda", "expected"),
    [
        (1, 1, False, 0),
        (2, 1, False, 1),
        (64, 1, False, 1),
        (64, 8, True, 7),
        (64, 1, True, 16),
        (4, 4, True, 0),
    ],
)
def test_auto_workers(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, cuda: bool, expected: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert choose_workers("auto", processes=processes, cuda=cuda) == expected
    assert choose_workers(3, processes=processes, cuda=cuda) == 3


@pytest.mark.parametrize("number", ["many", -1, 1.5])
def test_another_number_of_workers_is_told(number: object):
    with pytest.raises(
        UserError, match=f"data.workers={number} must be auto or a number of processes"
    ):
        choose_workers(number, processes=1, cuda=False)  # type: ignore[arg-type]


class Far(Remote):
    """Files that are noted when they are asked for."""

    def __init__(self, filled: list[str]) -> None:
        self.filled = filled

    def fill(self, name: str) -> None:
        self.filled.append(name)


def test_images_are_asked_for_batches_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "AHEAD", 2)
    index, filled = small_index(tmp_path), list[str]()
    batches = [[(0, 0), (0, 1)], [(0, 2), (0, BLANK)], [(0, 3)], [(0, 4)], [(0, 5)]]
    ahead = PrefetchingBatchSampler(batches, index, Far(filled))
    walk = iter(ahead)
    assert len(ahead) == 5
    assert next(walk) == batches[0]
    waited = time.monotonic() + 30
    while len(filled) < 4 and time.monotonic() < waited:
        time.sleep(0.01)
    assert sorted(filled) == [
        "00.jpg",
        "01.jpg",
        "02.jpg",
        "03.jpg",
    ]  # of three batches, no file for the blank
    assert list(walk) == batches[1:]
    assert PrefetchingBatchSampler(batches, index, Far(filled)).sampler is None


def test_the_images_that_objects_are_pasted_from_are_asked_for_too(tmp_path: Path):
    index, filled = small_index(tmp_path), list[str]()
    batches = [[(0, 0), (0, 1)], [(1, 0), (0, BLANK)]]
    second = {(0, 0): 4, (0, 1): None, (1, 0): 5}
    ahead = PrefetchingBatchSampler(batches, index, Far(filled), second.__getitem__)
    assert list(ahead) == batches
    waited = time.monotonic() + 30
    while len(filled) < 5 and time.monotonic() < waited:
        time.sleep(0.01)
    assert sorted(filled) == ["00.jpg", "00.jpg", "01.jpg", "04.jpg", "05.jpg"]


def test_the_epoch_gets_through_to_the_batches(tmp_path: Path):
    batches = EpochBatches(chains=[[np.arange(6)]], batch_size=2, seed=1)
    ahead = PrefetchingBatchSampler(batches, small_index(tmp_path), Far([]))
    ahead.sampler.set_epoch(3)
    assert list(ahead) == list(batches)
    assert {epoch for batch in batches for epoch, _ in batch} == {3}


def test_only_images_from_far_away_are_fetched_ahead(tmp_path: Path):
    index, batches = small_index(tmp_path), [[(0, 0)]]
    assert fetched_ahead(batches, index) is batches
    assert isinstance(
        fetched_ahead(batches, replace(index, source=Far([]))), PrefetchingBatchSampler
    )


class Numbered(Dataset[Batch]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return {"images": torch.tensor(index)}


class Noted:
    """What a stream of a GPU is told, in a list of its own and of all streams."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told, self.events = name, told, 0

    def record_event(self) -> str:
        self.events += 1
        self.told.append(f"{self.name} recorded {self.events}")
        return f"{self.name} {self.events}"

    def wait_event(self, event: str) -> None:
        self.told.append(f"{self.name} waits for {event}")


def test_a_batch_is_copied_before_the_one_in_front_of_it_is_handed_out(
    monkeypatch: pytest.MonkeyPatch,
):
    """On noted streams in place of a GPU's; tests/training/test_gpu.py has the real ones."""
    told: list[str] = []
    current = Noted("the step", told)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Noted("the copy", told))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: told.append(f"{stream.name} reads")
    )
    loader = DataLoader(Numbered(3), batch_size=None)
    ahead = CudaPrefetcher(loader, torch.device("cpu"))
    assert len(ahead) == 3
    assert ahead.batch_sampler is loader.batch_sampler
    for epoch in range(2):
        for number, batch in enumerate(ahead):
            told.append(f"step {int(batch['images'])}")
            assert int(batch["images"]) == number
        assert told == [
            *(
                "the copy recorded 1",
                "the copy recorded 2",
                "the step waits for the copy 1",
                "the step reads",
                "step 0",
            ),
            *("the copy recorded 3", "the step waits for the copy 2", "the step reads", "step 1"),
            *("the step waits for the copy 3", "the step reads", "step 2"),
        ], epoch
        told.clear()
    assert list(CudaPrefetcher(DataLoader(Numbered(0), batch_size=None), torch.device("cpu"))) == []


@pytest.mark.parametrize("value", [None, True, -1, 1.0, "", "4", [], math.nan, 10**6])
def test_workers_of_the_wrong_kind_are_named(value: Any):
    with pytest.raises(UserError) as caught:
        check_workers(value)
    assert str(caught.value).startswith(f"data.workers={value} must be auto or a number")


class Failing(Dataset[Any]):
    """Sample 5 is a fault."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> int:
        if i == 5:
            if self.fault is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.fault
        return i


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            RuntimeError("unable to write to file </torch_12_34_5>: No space left on device (28)"),
            r"/dev/shm is too small .*--shm-size.*data\.workers=0 \(unable to write",
        ),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write"), "/dev/shm"),
        (OSError(24, "Too many open files"), r"raise the limit \(ulimit -n 65536\)"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(12, "Cannot allocate memory"), "ran out of memory"),
    ],
)
def test_why_the_loader_processes_cannot_go_on(fault: Exception, said: str):
    with pytest.raises(UserError, match=said) as error:
        list(ExplainedLoader(Failing(fault)))
    assert "\n" not in str(error.value)


@pytest.mark.process
@pytest.mark.parametrize("fault", [None, OSError(24, "Too many open files")])
def test_a_fault_in_a_process_is_one_sentence(fault: Exception | None):
    """Of what torch hands on with a traceback only the last line is told."""
    loader = ExplainedLoader(Failing(fault), num_workers=1, persistent_workers=True)
    with pytest.raises(UserError, match=r"loader process(es need more|.* was killed)") as error:
        list(loader)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_pass_and_samples_are_all_there(workers: int):
    with pytest.raises(ValueError, match="of the data set"):
        list(ExplainedLoader(Failing(ValueError("of the data set")), num_workers=workers))
    with pytest.raises(RuntimeError, match="No space left"):  # of a disk
        list(ExplainedLoader(Failing(RuntimeError("No space left")), num_workers=workers))
    loader = ExplainedLoader(range(4), num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        assert [int(value) for value in loader] == [0, 1, 2, 3]


@pytest.mark.process
def test_a_death_between_two_batches_is_explained_too():
    """torch raises in a handler of SIGCHLD, outside of the loader."""
    loader = ExplainedLoader(range(100), num_workers=1, prefetch_factor=2, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    with pytest.raises(UserError, match="a loader process was killed"):
        for worker in loader._iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)
        for _ in range(100):
            time.sleep(0.05)
