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


def test_bars_without_columns_in_the_unit_of_a_cost():
    (ax,) = pivot_plot(table((), "latency_seconds"), LIGHT).axes
    assert [bar.get_width() for bar in ax.patches] == [31.25]
    assert ax.get_xlabel() == "latency, ms"
