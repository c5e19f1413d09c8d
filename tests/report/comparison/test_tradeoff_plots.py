"""AP against cost, data, epochs and learning rate: where the points stand."""

import numpy as np
import pytest
from comparison_sample import job

from maskrcnn_lit.report.comparison.plots import (
    LONG,
    against,
    against_cost,
    cost_points,
    heat_map,
    position,
    series,
    shorten,
    varied_costs,
)
from maskrcnn_lit.report.comparison.settings import Ranking, rankings
from maskrcnn_lit.report.theme import LIGHT


def one(
    name: str,
    ap: float,
    *,
    images: int = 100,
    epochs: int = 5,
    rate: float = 0.001,
    seed: int = 1,
    **more,
):
    config = {"backbone": {"name": name}, "trainer": {"epochs": epochs}, "optimizer": {"lr": rate}}
    config["data"] = {"train_images": images}
    typed = [
        f"backbone={name}",
        f"data.train_images={images}",
        f"trainer.epochs={epochs}",
        f"optimizer.lr={rate}",
    ]
    data = {"train": {"images": images, "ids_sha256": "x"}}
    title = f"{name}-{images}-{epochs}-{rate}-{seed}"
    return job(title, *typed, ap=ap, seed=seed, config=config, data=data, **more)


def ranking(*jobs) -> Ranking:
    (found,) = rankings(list(jobs))
    return found


def test_points_stand_at_cost_and_mean_ap_and_the_front_is_marked():
    costs = {"small": 2_000_000, "worse": 5_000_000, "large": 9_000_000}
    jobs = [
        one(name, ap, cost={"parameters": costs[name]})
        for name, ap in (("small", 0.2), ("worse", 0.1), ("large", 0.4))
    ]
    jobs.append(one("small", 0.3, seed=2, cost={"parameters": 2_000_000}))
    found = ranking(*jobs)
    assert [(s.label, c, m) for s, c, m in cost_points(found, "parameters")] == [
        ("large", 9_000_000, 0.4),
        ("small", 2_000_000, 0.25),
        ("worse", 5_000_000, 0.1),
    ]
    (axes,) = against_cost(found, LIGHT, name="parameters").axes
    marks = {line.get_marker(): [] for line in axes.lines}
    for line in axes.lines:
        marks[line.get_marker()].append((float(line.get_xdata()[0]), float(line.get_ydata()[0])))
    assert marks["D"] == [(9.0, 0.4), (2.0, 0.25)]
    assert marks["o"] == [(5.0, 0.1)]
    assert list(axes.lines[0].get_xdata()) == [2.0, 9.0]  # the steps of the front
    assert [text.get_text() for text in axes.texts] == ["A", "B", "C"]


def test_the_latency_of_the_same_network_is_no_difference():
    times = [one("a", 0.1, epochs=n, cost={"latency_seconds": n / 100}) for n in (1, 2)]
    assert varied_costs(ranking(*times)) == []
    other = one("b", 0.1, cost={"parameters": 5, "latency_seconds": 0.3})
    assert varied_costs(ranking(*times, other)) == ["parameters", "latency_seconds"]


def test_against_data_size_there_is_a_line_for_each_of_the_rest_on_a_logarithmic_axis():
    jobs = [
        one(name, ap, images=n)
        for name, n, ap in (("a", 1000, 0.3), ("a", 100, 0.1), ("b", 100, 0.2), ("b", 1000, 0.2))
    ]
    found = ranking(*jobs)
    lines = series(found, "data_size")
    assert {text: [x for x, _ in members] for text, members in lines.items()} == {
        "a": [100, 1000],
        "b": [100, 1000],
    }
    (axes,) = against(found, LIGHT, name="data_size").axes
    drawn = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }
    assert drawn == {"a": ([100, 1000], [0.1, 0.3]), "b": ([100, 1000], [0.2, 0.2])}
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "100",
        "1,000",
    ]


def test_epochs_are_on_a_plain_axis_and_rates_on_a_logarithmic_one():
    (axes,) = against(
        ranking(one("a", 0.1, epochs=5), one("a", 0.2, epochs=20)), LIGHT, name="epochs"
    ).axes
    assert axes.get_xscale() == "linear"
    assert axes.get_xlabel() == "epochs"
    (axes,) = against(
        ranking(one("a", 0.1, rate=5e-4), one("a", 0.2, rate=7e-4)), LIGHT, name="learning_rate"
    ).axes
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "0.0005",
        "0.0007",
    ]


def test_the_data_size_is_what_there_was_and_not_what_was_asked_for():
    (setting,) = ranking(one("a", 0.1)).settings
    setting.jobs[0].result.data["train"]["images"] = 93
    assert position(setting, "data_size") == 93
    assert position(setting, "epochs") == 5


def test_cells_of_the_heat_map_are_means_and_missing_ones_are_empty():
    jobs = [
        one("a", 0.1, epochs=5, rate=0.1),
        one("a", 0.2, epochs=5, rate=0.1, seed=2),
        one("a", 0.4, epochs=20, rate=0.2),
    ]
    jobs += [one("b", 0.05, epochs=5, rate=0.2)]
    first, second = heat_map(ranking(*jobs), LIGHT).axes
    values = first.images[0].get_array().filled(np.nan)
    assert values == pytest.approx(np.array([[0.15, np.nan], [np.nan, 0.4]]), nan_ok=True)
    assert (first.get_title(), second.get_title()) == ("a", "b")
    assert [text.get_text() for text in first.texts] == ["0.150", "0.400"]
    assert [t.get_text() for t in first.get_xticklabels()] == ["5", "20"]
    assert [t.get_text() for t in first.get_yticklabels()] == ["0.1", "0.2"]


def test_long_names_are_cut():
    long = "x" * (LONG + 1)
    assert shorten([long, "y"]) == ["x" * (LONG - 3) + "...", "y"]
    assert shorten(["x" * LONG]) == ["x" * LONG]
    assert shorten([long, long + "z"]) == [long, long + "z"]
