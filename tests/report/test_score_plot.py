from maskrcnn_lit.report.score_plot import score_plot
from maskrcnn_lit.report.theme import LIGHT, render

FACTS = {
    "metrics": {"val/mask_ap": 0.4, "val/mask_ap50": 0.6, "val/box_ap": 0.5, "val/loss": 2.0},
    "intervals": {"val/mask_ap": [0.3, 0.5], "val/box_ap": None},
}


def test_bars_of_masks_and_boxes_and_an_interval():
    (ax,) = score_plot(FACTS, LIGHT).axes
    heights = {
        container.get_label(): [round(bar.get_height(), 3) for bar in container]
        for container in ax.containers
    }
    assert heights == {"mask": [0.4, 0.6], "box": [0.5]}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["AP", "AP50"]
    (line,) = ax.collections
    assert line.get_segments()[0][:, 1].tolist() == [0.3, 0.5]
    assert render(score_plot, FACTS, LIGHT)[:4] == b"\x89PNG"


def test_a_run_without_scores_has_an_empty_plot():
    (ax,) = score_plot({"metrics": {}, "intervals": {}}, LIGHT).axes
    assert not ax.containers
