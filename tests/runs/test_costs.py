from maskrcnn_lit.runs.costs import COSTS, MODEL_COSTS


def test_costs_that_AP_is_weighed_against_have_their_phrases():
    assert MODEL_COSTS == ("parameters", "flops", "latency_seconds")
    assert all(bool(cost.phrase) == bool(cost.least) for cost in COSTS.values())


def test_titles_are_distinct():
    assert len({cost.title for cost in COSTS.values()}) == len(COSTS)
