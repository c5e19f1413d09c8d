from maskrcnn_lit.report.rate_plot import rate_plot
from maskrcnn_lit.report.theme import LIGHT, render

TEST = {
    "rates": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
    "losses": [3.0, 2.9, 2.0, 1.9, 40.0],
    "smooth": [3.0, 2.95, 2.5, 2.2, 9.0],
    "suggested": 0.001,
}


def test_losses_their_average_and_the_suggestion():
    (ax,) = rate_plot(TEST, LIGHT).axes
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {"a step", "moving average", "suggested: 0.001"}
    assert list(lines["moving average"].get_ydata()) == TEST["smooth"]
    assert list(lines["suggested: 0.001"].get_xdata()) == [0.001, 0.001]
    assert ax.get_ylim()[1] < 10  # the last loss, after the divergence, does not set the scale
    assert {label.get_text() for label in ax.get_xticklabels()} >= {"1e-05", "0.001", "0.1"}
    assert render(rate_plot, TEST, LIGHT)[:4] == b"\x89PNG"


def test_without_a_suggestion_there_is_no_line():
    (ax,) = rate_plot({**TEST, "suggested": None}, LIGHT).axes
    assert {line.get_label() for line in ax.lines} == {"a step", "moving average"}
