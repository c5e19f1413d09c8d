"""Runs of a search that end early."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from maskrcnn_lit.callbacks.prune import (
    RUNGS,
    SuccessiveHalving,
    is_rung,
    read_others,
    read_rungs,
)
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.sealed import write_sealed_json


def beside(folder: Path, values: dict[str, list[list[float]]]) -> Path:
    """A search with these runs and one of this test, whose folder it returns."""
    jobs = [{"name": name, "overrides": []} for name in (*values, "own")]
    write_sealed_json(folder / "sweep.json", {"jobs": jobs})
    for name, rungs in values.items():
        write_json(folder / name / RUNGS, {"values": rungs})
    return folder / "own"


def validated(
    callback: SuccessiveHalving, run_dir: Path, score: float, epoch: int = 0, epochs: int = 9
) -> bool:
    """Whether training stops after a validation with this mask AP."""
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        callback_metrics={"val/mask_ap": score},
        sanity_checking=False,
        is_global_zero=True,
        should_stop=False,
        current_epoch=epoch,
        max_epochs=epochs,
        world_size=1,
        default_root_dir=str(run_dir),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    module: Any = SimpleNamespace(model=nn.Linear(2, 3))
    callback.on_validation_end(trainer, module)
    return trainer.should_stop


def halving(*goals: str, **more: int) -> SuccessiveHalving:
    return SuccessiveHalving(goals=goals or ["val/mask_ap:max"], **more)


def test_one_of_three_goes_on(tmp_path: Path):
    own = beside(tmp_path, {"a": [[0.1]], "b": [[0.3]], "c": [[0.2]], "d": [[0.4]], "e": [[0.05]]})
    assert not validated(halving(), own, 0.35)  # second of six
    assert validated(halving(), own, 0.25)  # third of six


def test_few_runs_go_on(tmp_path: Path):
    own = beside(tmp_path, {"a": [[0.9]]})
    assert not validated(halving(), own, 0.1)
    assert validated(halving(keep=2), own, 0.1)


def test_runs_are_compared_after_as_many_validations(tmp_path: Path):
    others = {"a": [[0.1], [0.9], [0.2]], "b": [[0.1], [0.9], [0.3]], "c": [[0.1]]}
    own, callback = beside(tmp_path, others), halving()
    scores = (0.2, 0.0, 0.1)  # first, 1 and 3 are rungs
    assert [validated(callback, own, score, epoch) for epoch, score in enumerate(scores)] == [
        False,
        False,
        True,
    ]
    assert read_rungs(own) == [[0.2], [0.0], [0.1]]


def test_the_last_validation_ends_nothing(tmp_path: Path):
    own = beside(tmp_path, {"a": [[0.9]], "b": [[0.8]]})
    assert not validated(halving(), own, 0.1, epoch=8, epochs=9)


def test_a_cheap_run_is_kept_for_the_front(tmp_path: Path):
    goals = ("val/mask_ap:max", "cost/parameters:min", "cost/seconds:min")
    own = beside(tmp_path, {"a": [[0.9, 100.0]], "b": [[0.8, 90.0]]})
    assert not validated(halving(*goals), own, 0.1), "9 parameters"
    own = beside(tmp_path, {"a": [[0.9, 8.0]], "b": [[0.8, 9.0]]})
    assert validated(halving(*goals), own, 0.1)


def test_nan_is_the_worst(tmp_path: Path):
    own = beside(tmp_path, {"a": [[0.0]], "b": [[0.1]]})
    assert validated(halving(), own, math.nan)
    assert json.loads((own / RUNGS).read_text())["values"] == [[None]]


def test_a_resumed_run_decides_the_same(tmp_path: Path):
    own = beside(tmp_path, {"a": [[0.9], [0.9]], "b": [[0.8], [0.8]]})
    callback = halving(first=2)
    assert not validated(callback, own, 0.1)
    again = halving(first=2)
    again.load_state_dict(callback.state_dict())
    assert validated(again, own, 0.1, epoch=1)
    assert again.pruned
    ended: Any = SimpleNamespace(should_stop=False)
    later = halving(first=2)
    later.load_state_dict(again.state_dict())
    later.on_train_start(ended, ended)
    assert ended.should_stop
    assert later.metrics == {"val/mask_ap": 0.1}


def test_a_run_outside_of_its_search_is_compared_with_none(tmp_path: Path):
    beside(tmp_path, {"a": [[0.9]], "b": [[0.8]]})
    assert read_others(tmp_path / "elsewhere") == []
    assert read_others(tmp_path / "alone" / "run") == []
    assert read_others(tmp_path / "own") == [[[0.9]], [[0.8]]]


def test_a_damaged_file_counts_as_none(tmp_path: Path):
    own = beside(tmp_path, {"a": [[0.9]], "b": [[0.8]]})
    (tmp_path / "a" / RUNGS).write_text('{"values": [[0.')
    assert not validated(halving(), own, 0.1)


def test_rungs():
    assert [n for n in range(1, 30) if is_rung(n, 1, 3)] == [1, 3, 9, 27]
    assert [n for n in range(1, 30) if is_rung(n, 2, 2)] == [2, 4, 8, 16]


def test_options_are_checked():
    with pytest.raises(UserError, match=r"sweep\.prune_keep=1"):
        halving(keep=1)
