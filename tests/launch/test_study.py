"""The trials of a search in their file."""

import json
import math
import sys
from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.goals import Goal
from maskrcnn_lit.launch.space import Choices, Range, Space
from maskrcnn_lit.launch.study import JOURNAL, Study, Trial

AP, LATENCY = Goal("val/mask_ap", True), Goal("cost/latency_seconds", False)
SPACE: Space = {"lr": Range(1e-5, 1e-1, True, False), "net": Choices(("a", "b"))}


def score(params: dict[str, float]) -> float:
    return 0.5 - 0.1 * (math.log10(params["lr"]) + 3) ** 2


def searched(
    folder: Path, method: str, trials: int, *, reopened: bool, seed: int = 1
) -> list[Trial]:
    study = Study(folder, SPACE, [AP], method, seed)
    for number in range(trials):
        study = Study(folder, SPACE, [AP], method, seed) if reopened else study
        params = study.suggest()
        assert params is not None
        trial = study.add(str(number), params)
        study = Study(folder, SPACE, [AP], method, seed) if reopened else study
        if number % 4:
            study.end(trial, "complete", [score(params)])
        else:
            study.end(trial, "pruned", validations=[score(params) / 2])
    return study.trials()


def values(trials: list[Trial]) -> list[object]:
    return [(t.number, t.state, t.params, t.values, t.validations) for t in trials]


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_study_opened_again_suggests_the_same(tmp_path: Path, method: str):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = searched(tmp_path / "a", method, 16, reopened=False)
    assert values(one) == values(searched(tmp_path / "b", method, 16, reopened=True))
    assert len({str(trial.params) for trial in one}) == 16


def test_another_seed_suggests_others(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = searched(tmp_path / "a", "random", 3, reopened=False)
    other = searched(tmp_path / "b", "random", 3, reopened=False, seed=2)
    assert [t.params for t in one] != [t.params for t in other]


def test_tpe_looks_where_it_was_good(tmp_path: Path):
    """Closer to the best rate than a random search, after its first ten trials."""

    def distance(method: str) -> float:
        late = []
        for seed in range(1, 5):
            folder = tmp_path / method / str(seed)
            folder.mkdir(parents=True)
            trials = searched(folder, method, 30, reopened=False, seed=seed)
            late += [abs(math.log10(float(trial.params["lr"])) + 3) for trial in trials[10:]]
        return sum(late) / len(late)

    assert distance("tpe") < 0.8 * distance("random")


def test_several_goals_and_pruned_trials_go_together(tmp_path: Path):
    study = Study(tmp_path, SPACE, [AP, LATENCY], "tpe", 1)
    for number in range(14):
        params = study.suggest()
        assert params is not None
        trial = study.add(str(number), params)
        if number % 2:
            study.end(trial, "pruned", validations=[0.1, 0.2])
        else:
            study.end(trial, "complete", [score(params), 0.01 * number])
    assert study.trials()[13].validations == [0.1, 0.2]
    assert study.importance().keys() == {AP.name, LATENCY.name}


def test_each_step_of_a_trial_is_one_line(tmp_path: Path):
    study = Study(tmp_path, SPACE, [AP], "tpe", 1)

    def lines() -> list[str]:
        return (tmp_path / JOURNAL).read_text().splitlines()

    before = len(lines())
    trial = study.add("x", {"lr": 0.01, "net": "a"})
    assert len(lines()) == before + 1
    assert json.loads(lines()[-1])["params"] == {"lr": 0.01, "net": 0}
    study.end(trial, "complete", [0.5])
    assert len(lines()) == before + 2
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL], "no file of a lock"


def test_a_trial_has_what_it_was_given(tmp_path: Path):
    study = Study(tmp_path, SPACE, [AP, LATENCY], "tpe", 1)
    study.end(study.add("x", {"lr": 0.01, "net": "b"}, retry_of=None), "failed")
    study.end(study.add("y", {"lr": 0.01, "net": "b"}, retry_of=0), "complete", [0.5, 0.25])
    failed, complete = study.trials()
    assert (failed.state, failed.values, failed.retry_of) == ("failed", None, None)
    assert (complete.name, complete.values, complete.retry_of) == ("y", [0.5, 0.25], 0)
    assert complete.params == {"lr": 0.01, "net": "b"}
    assert complete.started is not None
    assert complete.ended is not None


def test_a_grid_is_tried_in_order_and_ends(tmp_path: Path):
    grid: Space = {"n": Range(1, 2, False, True), "net": Choices(("a", "b"))}
    study = Study(tmp_path, grid, [AP], "grid", 1)
    tried = []
    while (params := study.suggest()) is not None:
        tried.append(tuple(params.values()))
        study.end(study.add(str(len(tried)), params), "complete", [0.5])
    assert tried == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_a_finite_space_is_tried_once(tmp_path: Path):
    study = Study(tmp_path, {"net": Choices(("a", "b", "c"))}, [AP], "tpe", 1)
    tried = []
    while (params := study.suggest()) is not None:
        tried.append(params["net"])
        study.end(study.add(str(len(tried)), params), "complete", [0.5])
    assert sorted(map(str, tried)) == ["a", "b", "c"]


def test_importance_is_of_the_option_that_matters(tmp_path: Path):
    searched(tmp_path, "random", 30, reopened=False)
    shares = Study(tmp_path, SPACE, [AP], "random", 1).importance()["val/mask_ap"]
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_a_choice_that_decides(tmp_path: Path):
    """As in a search of two backbones of which one had not learned yet."""
    study = Study(tmp_path, SPACE, [AP], "random", 1)
    for number, lr in enumerate((1e-3, 2e-3, 4e-3, 6e-3, 8e-3)):
        for net, value in (("a", 0.2 - lr), ("b", 0.0)):
            study.end(study.add(f"{number}{net}", {"lr": lr, "net": net}), "complete", [value])
    assert study.importance()["val/mask_ap"]["net"] > 0.8


def test_equal_values_have_no_importance(tmp_path: Path):
    study = Study(tmp_path, SPACE, [AP], "random", 1)
    for number in range(5):
        params = study.suggest()
        assert params is not None
        study.end(study.add(str(number), params), "complete", [0.0])
    assert study.importance() == {}


def test_a_value_of_zero_counts_for_the_importance(tmp_path: Path):
    study = Study(tmp_path, SPACE, [AP], "random", 1)
    for number in range(4):
        params = study.suggest()
        assert params is not None
        study.end(study.add(str(number), params), "complete", [0.0 if number else 0.5])
    assert AP.name in study.importance()


def test_importance_needs_some_trials(tmp_path: Path):
    searched(tmp_path, "random", 3, reopened=False)
    assert Study(tmp_path, SPACE, [AP], "random", 1).importance() == {}


def test_optuna_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = r"sweep.search needs the package optuna, .*'maskrcnn_lit\[search\]'"
    with pytest.raises(UserError, match=said):
        Study(tmp_path, SPACE, [AP], "tpe", 1)
