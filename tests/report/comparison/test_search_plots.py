"""The plots of a search."""

import io

import numpy as np
import pytest
from colored import colors_of
from PIL import Image
from search_sample import record

from maskrcnn_lit.report.comparison.search_plots import (
    course,
    importance,
    parallel,
    search_plots,
    search_titles,
    slice_of,
)
from maskrcnn_lit.report.theme import DARK, LIGHT, render

ONE_GOAL = ["search_course", "search_importance", "search_parallel"]
SLICES = ["search_slice_1", "search_slice_2", "search_slice_3"]


@pytest.mark.parametrize("goals", [1, 2])
def test_every_plot_is_drawn_and_titled(goals: int):
    own = record(goals)
    plots = search_plots(own)
    front = ["search_front"] if goals == 2 else []
    assert sorted(plots) == sorted([*ONE_GOAL, *front, *SLICES])
    for name, draw in plots.items():
        for theme in (LIGHT, DARK):
            picture = np.asarray(Image.open(io.BytesIO(render(draw, own, theme))))
            assert picture.shape[1] == 960
            assert len(colors_of(picture)) > 10
        assert name in search_titles(own)


def test_the_slices_are_in_the_order_of_importance():
    titles = search_titles(record())
    assert [titles[name] for name in SLICES] == [
        "mask AP against optimizer.lr",
        "mask AP against backbone",
        "mask AP against model.fpn.channels",
    ]


def test_the_course_has_every_scored_trial():
    (ax,) = course(record(), LIGHT).axes
    lines = {line.get_label(): line for line in ax.lines}
    assert {name: len(line.get_xdata()) for name, line in lines.items()} == {
        "pruned, last validation": 3,
        "finished": 7,
        "best": 1,
        "best so far": 9,
    }
    assert np.all(np.diff(lines["best so far"].get_ydata()) >= 0)


def test_bars_are_the_shares():
    (ax,) = importance(record(), LIGHT).axes
    assert sorted(bar.get_width() for bar in ax.patches) == [0.1, 0.2, 0.7]


def test_a_line_for_each_scored_trial():
    (ax,) = parallel(record(), LIGHT).axes
    across = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert len(across) == 11
    assert all(0 <= y <= 1 for line in across for y in line.get_ydata())


def test_a_slice_of_a_range_is_logarithmic_if_the_range_is():
    own = record()
    scales = [slice_of(own, LIGHT, axis=axis).axes[0].get_xscale() for axis in own.ranked_axes]
    assert scales == ["log", "linear", "linear"]


def test_without_a_score_there_is_no_plot():
    own = record(trials=1)
    assert [trial.state for trial in own.trials] == ["failed"]
    assert search_plots(own) == {}
