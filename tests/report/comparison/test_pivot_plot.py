"""The plot of a table for a paper: its points are the cells."""

import pytest
from comparison_sample import job

from maskrcnn_lit.report.comparison.pivot import Pivot, Request, pivot
from maskrcnn_lit.report.comparison.pivot_plot import pivot_plot
from maskrcnn_lit.report.theme import LIGHT


def table(columns: tuple[str, ...], *metrics: str) -> Pivot:
    values = {("a", 1): 0.1, ("a", 2): 0.3, ("b", 1): 0.2} if columns else {("a", 1): 0.1}
    runs = [
        job(
            f"{name}{images}{seed}",
            ap=ap + seed / 100,
            seed=seed,
            config={"backbone": {"name": name}, "data": {"train_images": images}},
        )
        for (name, images), ap in values.items()
        for seed in (0, 2)
    ]
    return pivot(runs, Request(("backbone",), columns, metrics))


def test_a_line_for_each_row():
    (ax,) = pivot_plot(table(("data.train_images",)), LIGHT).axes
    lines = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in ax.containers}
    assert lines == {
        "a": [[0, pytest.approx(0.11)], [1, pytest.approx(0.31)]],
        "b": [[0, pytest.approx(0.21)]],
    }
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("data.train_images", "mask AP")


def test_the_values_of_several_columns_stand_below_each_other():
    """Side by side they would be one line of letters."""
    runs = [
        job(
            f"{images}{epochs}",
            ap=images / 10,
            config={"data": {"train_images": images}, "trainer": {"epochs": epochs}},
        )
        for images in (1, 2)
        for epochs in (5, 6)
    ]
    across = ("data.train_images", "trainer.epochs")
    (ax,) = pivot_plot(pivot(runs, Request(("seed",), across)), LIGHT).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1\n5", "1\n6", "2\n5", "2\n6"]
    assert ax.get_xlabel() == "data.train_images, trainer.epochs"
    assert ax.get_xticklabels()[0].get_rotation() == 0


def test_long_values_below_the_axis_are_slanted():
    names = [f"{'long_name_of_a_backbone'}_{n}" for n in range(4)]
    runs = [job(name, ap=0.1, config={"backbone": {"name": name}}) for name in names]
    (ax,) = pivot_plot(pivot(runs, Request(("seed",), ("backbone",))), LIGHT).axes
    assert ax.get_xticklabels()[0].get_rotation() == 30


def test_bars_without_columns_in_the_unit_of_a_cost():
    (ax,) = pivot_plot(table((), "latency_seconds"), LIGHT).axes
    assert [bar.get_width() for bar in ax.patches] == [31.25]
    assert ax.get_xlabel() == "latency, ms"
