"""The plot of what fits into a budget of time."""

from maskrcnn_lit.report.budget_plot import budget_plot
from maskrcnn_lit.report.theme import LIGHT, render

ROWS = [
    {"name": name, "image_size": size, "runtime": runtime, "milliseconds": times, **aps}
    for name, size, runtime, times, aps in (
        ("mask_rcnn_edge, lite0", 320, "onnx", [20, 25], {"mask_ap": None, "box_ap": None}),
        ("mask_rcnn_edge, lite0", 320, "pytorch", [60, 70], {"mask_ap": None, "box_ap": None}),
        ("boxes", 96, "onnx", [10, 12], {"mask_ap": None, "box_ap": 0.31}),
        ("mine", [96, 128], "onnx", [9, 12], {"mask_ap": 0.27, "box_ap": 0.3}),
    )
]


def test_each_model_is_a_row_with_a_dot_for_each_runtime():
    figure = budget_plot({"budget_milliseconds": 33, "rows": ROWS}, LIGHT)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "mask_rcnn_edge\nlite0\n320 px",
        "boxes\n96 px, box AP 0.310",
        "mine\n96 x 128 px, mask AP 0.270",
    ]
    dots = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert dots == {"onnx": [20, 10, 9], "pytorch": [60], "budget": [33, 33]}


def test_it_is_a_picture():
    assert render(budget_plot, {"budget_milliseconds": 33, "rows": ROWS}, LIGHT)[:4] == b"\x89PNG"


def test_its_labels_are_plain_numbers():
    (ax,) = budget_plot({"budget_milliseconds": 33, "rows": ROWS}, LIGHT).axes
    labels = [label.get_text() for label in ax.get_xticklabels(which="both")]
    assert {"10", "20", "50"} <= set(labels)
    assert not any("$" in label for label in labels)
