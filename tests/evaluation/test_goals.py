"""Goals of a search: their names, and which runs are better."""

import math

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.goals import Goal, dominates, front, goal_values, read_goals
from maskrcnn_lit.runs.costs import COSTS

AP, LATENCY = Goal("val/mask_ap", True), Goal("cost/latency_seconds", False)


def test_a_goal_has_a_direction():
    texts = ["val/mask_ap:max", "cost/latency_seconds:min", "val/loss", "val/mine"]
    assert [goal.rises for goal in read_goals(texts)] == [True, False, False, True]
    assert str(AP) == "val/mask_ap:max"


def test_every_cost_can_be_a_goal():
    assert [goal.name for goal in read_goals([f"cost/{name}" for name in COSTS])] == [
        f"cost/{name}" for name in COSTS
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("val/mask_app", r"val/mask_app, .*did you mean val/mask_ap\?"),
        ("cost/latency", r"did you mean cost/latency_seconds\?"),
        ("mask_ap", r"did you mean val/mask_ap\?"),
        ("val/mask_ap:up", "expected val/mask_ap:max or val/mask_ap:min"),
    ],
)
def test_a_mistyped_goal_is_refused(text: str, said: str):
    with pytest.raises(UserError, match=said):
        read_goals([text])


def test_a_goal_counts_once():
    with pytest.raises(UserError, match="val/mask_ap twice"):
        read_goals(["val/mask_ap", "val/mask_ap:min"])


def test_values_are_those_of_the_run():
    values = goal_values([AP, LATENCY], {"val/mask_ap": 0.5}, {"latency_seconds": None})
    assert values[0] == 0.5
    assert math.isnan(values[1])


def test_better_is_as_good_in_all_and_better_in_one():
    goals = [AP, LATENCY]
    assert dominates([0.5, 1.0], [0.4, 1.0], goals)
    assert dominates([0.5, 1.0], [0.5, 2.0], goals)
    assert not dominates([0.5, 1.0], [0.5, 1.0], goals)
    assert not dominates([0.5, 2.0], [0.4, 1.0], goals)
    assert dominates([0.1, 1.0], [math.nan, 1.0], goals)


def test_the_front_is_what_nothing_dominates():
    points = [[0.3, 1.0], [0.5, 2.0], [0.4, 3.0], [0.2, 1.0]]
    assert front(points, [AP, LATENCY]) == [1, 0]
    assert front([[0.3], [0.5], [0.5]], [AP]) == [1, 2]
    assert front([], [AP]) == []
