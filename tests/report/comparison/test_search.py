"""What a report says of a search."""

import math
from pathlib import Path

import pytest
from search_sample import content, jobs, record

from maskrcnn_lit.report.comparison.search import (
    Axis,
    cost_rows_of,
    read_record,
    search_sentences,
    trial_rows,
)


def test_the_best_trial_and_its_options():
    best = max((t for t in content()["trials"] if t["values"]), key=lambda t: t["values"][0])
    said = search_sentences(record())[0]
    assert f"trial {best['number']} has the best mask AP: {best['values'][0]:.3f}" in said
    assert f"backbone={best['params']['backbone']}" in said
    assert said.startswith("Of 8 finished trials (tpe)")


def test_several_goals_have_a_front():
    said = search_sentences(record(2))[0]
    assert "the Pareto front of mask AP and latency is trial " in said
    assert said.count("; trial") == 1, "one of each network"
    assert "latency 40.0 ms" in said
    assert "latency 10.0 ms" in said


def test_the_cost_is_the_sum_of_its_trainings():
    said = search_sentences(record())[1]
    # 8 of 50 s, 4 of 20 s; 11 min 50 s from the first start to the last end
    assert said == (
        "The search cost 8 min of training in 12 trials, 12 min from the first start to the last "
        "end."
    )


def test_pruned_trials_have_saved_time():
    saved = search_sentences(record())[2]
    assert saved.startswith("3 trials ended early.")
    assert "2 min more" in saved  # 3 x 30 s


def test_importance_says_from_how_many_trials():
    (said,) = search_sentences(record())[3:]
    assert "optimizer.lr 70%, backbone 20%, model.fpn.channels 10%" in said
    assert said.endswith("These are few trials: 11.")


def test_a_row_for_each_trial_the_best_first():
    head, rows = trial_rows(record())
    assert head == ["trial", "state", "mask AP", "backbone", "lr", "channels", "training, s"]
    assert rows[0][1] == "best"
    assert rows[-1][:3] == ["11", "failed", "-"]
    assert len(rows) == 12
    scores = [float(row[2]) for row in rows[:8]]
    assert scores == sorted(scores, reverse=True)
    assert rows[8][1] == "pruned after 2 validations"


def test_the_cost_by_how_trials_ended():
    _head, rows = cost_rows_of(record())
    assert rows == [
        ["complete", "8", "400", "50", "83%"],
        ["pruned", "3", "60", "20", "12%"],
        ["failed", "1", "20", "20", "4%"],
    ]


def test_an_axis_goes_from_0_to_1():
    axis = Axis("lr", low=1e-5, high=1e-1, log=True)
    assert axis.share(1e-3) == pytest.approx(0.5)
    assert Axis("n", low=1, high=5).share(2) == pytest.approx(0.25)
    assert [Axis("net", choices=("a", "b", "c")).share(net) for net in "abc"] == [0, 0.5, 1]


def test_a_search_without_a_finished_trial():
    nothing = content()
    nothing["trials"] = [trial | {"values": None, "state": "failed"} for trial in nothing["trials"]]
    for trial in nothing["trials"]:
        trial["validations"] = []
    empty = read_record(nothing, Path("there"), jobs(Path("there")))
    assert search_sentences(empty)[0] == "No trial has finished."
    assert all(math.isnan(trial.values[0]) for trial in empty.trials)
