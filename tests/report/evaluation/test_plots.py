"""The plots show the numbers of the analysis, and nothing else."""

import ast
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image
from report_sample import NAMES, analysis

from maskrcnn_lit.report.evaluation import plots
from maskrcnn_lit.report.evaluation.plots import CONFUSED, PLOTS, most_confused
from maskrcnn_lit.report.theme import DARK, DPI, LIGHT, render

EIGHTY = tuple(f"class {i}" for i in range(80))


def place(name: str, found: dict[str, Any], number: int = 0) -> Axes:
    return PLOTS[name](found, LIGHT).axes[number]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def empty() -> dict[str, Any]:
    """Of data without an object, by a model that found nothing."""
    found = analysis(("only",))
    found["curves"] = [
        {"name": "all classes", "recall": [], "precision": [], "thresholds": [], "f1": []}
    ]
    found["errors"] |= {kind: None for kind in found["errors"] if kind != "counts"}
    for entry in found["occlusion"]:
        entry |= {"objects": 0, "ap": None, "ap50": None, "recall": None}
    for entry in found["calibration"]["bins"]:
        entry |= {"count": 0, "score": None, "precision": None}
    return found | {"mask_ap": None, "box_ap": None, "boundary_ap": None}


def boxes_only() -> dict[str, Any]:
    found = analysis()
    for entry in found["per_class"]:
        entry |= {key: None for key in entry if key.startswith(("mask", "boundary"))}
    return found | {"kind": "box", "mask_ap": None, "boundary_ap": None}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("make", [analysis, empty, boxes_only], ids=["masks", "empty", "boxes"])
def test_a_plot_is_drawn_of_whatever_there_is(name: str, make: Any):
    picture = Image.open(io.BytesIO(render(PLOTS[name], make(), DARK)))
    assert picture.format == "PNG"
    assert picture.width == 960


@pytest.mark.parametrize("name", PLOTS)
def test_axes_say_what_they_measure(name: str):
    found = PLOTS[name](analysis(), LIGHT).axes
    assert found[-1].get_xlabel()
    assert all(axes.get_ylabel() for axes in found) or len(found[0].get_yticklabels()) >= 2


def test_no_plot_knows_pyplot():
    for path in Path(plots.__file__).parent.glob("*.py"):
        imported = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom | ast.Import)
        ]
        assert not any("pyplot" in ast.unparse(node) for node in imported), path


def test_bars_of_classes_are_sorted_and_hold_the_numbers():
    found = analysis()
    found["per_class"].reverse()
    axes = place("class_ap", found)
    known = sorted(
        (c["mask_ap"], c["box_ap"], c["name"])
        for c in found["per_class"]
        if c["mask_ap"] is not None
    )
    assert [bar.get_width() for bar in axes.patches] == [ap for ap, _, _ in known]
    assert list(axes.lines[0].get_xdata()) == [ap for _, ap, _ in known]
    assert [label.get_text() for label in axes.get_yticklabels()] == [name for _, _, name in known]
    assert texts(axes) == [f"{ap:.3f}" for ap, _, _ in known]
    assert NAMES[-1] not in [name for _, _, name in known]  # no object: no AP


@pytest.mark.long
def test_eighty_classes_have_a_row_of_text_each():
    picture = Image.open(io.BytesIO(render(PLOTS["class_ap"], analysis(EIGHTY), LIGHT)))
    figure = PLOTS["class_ap"](analysis(EIGHTY), LIGHT)
    assert len(figure.axes[0].patches) == 79
    assert picture.height / 79 > 9 / 72 * DPI  # a row is taller than its text of 9 points


def test_without_masks_boxes_are_the_bars():
    axes = place("class_ap", boxes_only())
    assert sorted(bar.get_width() for bar in axes.patches) == sorted(
        c["box_ap"] for c in analysis()["per_class"] if c["box_ap"] is not None
    )
    assert not axes.lines


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [("precision_recall", "recall", "precision"), ("f1_threshold", "thresholds", "f1")],
)
def test_curves_are_those_of_the_analysis(name: str, x: str, y: str):
    found = analysis()
    lines = {
        line.get_label(): line
        for line in place(name, found).lines
        if not line.get_label().startswith("_")
    }
    assert list(lines) == ["circle", "square <b>", "all classes"]
    for curve in found["curves"]:
        assert list(lines[curve["name"]].get_xdata()) == curve[x]
        assert list(lines[curve["name"]].get_ydata()) == curve[y]
    assert lines["all classes"].get_linewidth() == max(
        line.get_linewidth() for line in lines.values()
    )


def test_of_many_classes_those_with_most_objects_have_a_color():
    found = analysis(EIGHTY)
    for entry, objects in zip(found["per_class"], range(80), strict=True):
        entry["objects"] = objects
    lines = place("precision_recall", found).lines
    colored = [line.get_label() for line in lines if to_hex(line.get_color()) in LIGHT.colors]
    assert colored == ["class 78", "class 77", "class 76", "class 75", "class 74", "class 73"]
    assert [line.get_label() for line in lines if line.get_label().endswith("more")] == ["73 more"]
    assert len(lines) == 80
    assert lines[-1].get_label() == "all classes"


def test_a_class_may_be_called_all_classes():
    found = analysis(("all classes", "b", "none"))
    found["curves"][0]["recall"] = [0.5, 0.25]
    found["curves"][0]["precision"] = [0.5, 0.5]
    lines = place("precision_recall", found).lines
    assert [line.get_label() for line in lines] == ["all classes", "b", "all classes"]
    assert [line.get_linewidth() for line in lines] == [1.2, 1.2, 2.2]
    assert list(lines[0].get_xdata()) == [0.5, 0.25]


@pytest.mark.parametrize("name", PLOTS)
def test_the_name_of_a_class_is_no_formula(name: str):
    found = analysis(("a$b{$c", "$x^$ % \\ _", "none"))
    assert render(PLOTS[name], found, LIGHT)


def test_counts_of_a_log_axis_are_plain_numbers():
    found = analysis()
    for number, entry in enumerate(found["calibration"]["bins"]):
        entry["count"] = 10 ** (number % 4)
    below = place("calibration", found, 1)
    below.figure.canvas.draw()
    written = {label.get_text() for label in below.get_yticklabels()}
    assert {"1", "1,000"} <= written
    assert not any("$" in text for text in written)
    assert not any(label.get_text() for label in below.get_yticklabels(minor=True))


def test_a_single_class_is_drawn_once():
    found = analysis(("nucleus", "none"))
    assert [line.get_label() for line in place("precision_recall", found).lines] == ["all classes"]


def test_the_best_threshold_is_marked():
    found = analysis()
    pooled = found["curves"][-1]
    best = int(np.argmax(pooled["f1"]))
    axes = place("f1_threshold", found)
    marked = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_marker() == "o"
    ]
    assert (pooled["thresholds"][best], pooled["f1"][best]) in marked
    assert len(marked) == 3
    assert texts(axes) == [
        f" F1 {pooled['f1'][best]:.2f} from {pooled['thresholds'][best]:.2f} on "
    ]


def test_rows_of_the_confusion_are_shares():
    found = analysis()
    axes = place("confusion", found)
    counts = np.array(found["confusion"]["counts"])
    shares = axes.images[0].get_array().filled(np.nan)
    for row in (0, 1):
        assert shares[row] == pytest.approx(counts[row] / counts[row].sum())
    assert np.isnan(shares[2]).all()  # no such object
    assert np.isnan(shares[-1, -1])  # nothing there and nothing found
    assert [label.get_text() for label in axes.get_xticklabels()] == found["confusion"]["labels"]
    assert len(texts(axes)) == 2 * 4 + 3
    assert f"{shares[0, 0]:.2f}" in texts(axes)


def test_of_many_classes_the_most_confused_stand():
    counts = np.eye(41, dtype=int) * 100
    counts[-1, -1] = 0
    counts[33, 4] = 7  # 33 and 4 are mixed up, and so are 8 and 9, less often
    counts[9, 8] = 3
    labels = [f"c{i}" for i in range(40)] + ["background"]
    kept, part = most_confused({"labels": labels, "counts": counts.tolist()})
    assert len(kept) == CONFUSED + 1
    assert kept[-1] == "background"
    assert {"c4", "c8", "c9", "c33"} <= set(kept)
    assert kept[:-1] == sorted(kept[:-1], key=lambda name: int(name[1:]))
    assert part[kept.index("c33"), kept.index("c4")] == 7
    assert part.shape == (21, 21)


def test_bars_of_errors_hold_the_numbers():
    found = analysis()
    axes = place("errors", found)
    kinds = [kind for kind in found["errors"] if kind not in ("ap50", "counts")][::-1]
    assert [bar.get_width() for bar in axes.patches] == [found["errors"][kind] for kind in kinds]
    colors = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colors == [LIGHT.quiet] * 2 + [LIGHT.colors[0]] * 6


def test_slices_without_objects_are_left_out():
    found = analysis()
    axes = place("occlusion", found)
    shown = [entry for entry in found["occlusion"] if entry["objects"]][::-1]
    marks = {
        line.get_label(): list(line.get_xdata())
        for line in axes.lines
        if not line.get_label().startswith("_")
    }
    assert marks == {
        name: [entry[key] for entry in shown]
        for name, key in (("AP", "ap"), ("AP50", "ap50"), ("recall", "recall"))
    }
    assert axes.get_yticklabels()[0].get_text() == "crowded images\n9 objects"


def test_calibration_is_drawn_of_the_bins_that_hold_detections():
    found = analysis()
    bins = [entry for entry in found["calibration"]["bins"] if entry["count"]]
    (line,) = [
        line for line in place("calibration", found).lines if line.get_label() == "found right"
    ]
    assert list(line.get_xdata()) == [entry["score"] for entry in bins]
    assert list(line.get_ydata()) == [entry["precision"] for entry in bins]
    assert [bar.get_height() for bar in place("calibration", found, 1).patches] == [
        entry["count"] for entry in bins
    ]


@pytest.mark.parametrize("longest", [0.004, 0.06, 0.188, 0.41, 0.99])
def test_no_tick_stands_at_the_end_of_an_axis(longest: float):
    """Its label would be cut."""
    found = analysis()
    found["errors"] |= dict.fromkeys((k for k in found["errors"] if k != "counts"), longest / 2)
    found["errors"]["missed"] = longest
    axes = place("errors", found)
    ticks, end = axes.get_xticks(), axes.get_xlim()[1]
    assert len(ticks) >= 3
    assert ticks[0] == 0
    assert ticks[-1] < 0.95 * end
    assert end > longest
