"""The page: every section, the numbers of the data, definitions beside them."""

from typing import Any

import pytest
from report_sample import NAMES, Page, analysis, evaluation, ground_truth, results

from maskrcnn_lit.evaluation.roi_accuracy import DEFINITIONS
from maskrcnn_lit.report.evaluation.page import SECTIONS, build_page
from maskrcnn_lit.report.evaluation.plots import PLOTS
from maskrcnn_lit.report.evaluation.sentences import summary
from maskrcnn_lit.report.evaluation.worst_images import draw_worst

DRAWN = {name: (f"{name} light".encode(), f"{name} dark".encode()) for name in PLOTS}


def build(found: dict[str, Any] | None = None, **more: Any) -> Page:
    found = found or analysis()
    pictures = list(draw_worst(found["worst"], ground_truth(), results(), lambda image_id: None))
    return Page(build_page(evaluation() | more, found, DRAWN, pictures, "2026-11-27 10:00"))


def shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def test_every_section_stands_and_is_linked():
    page = build()
    assert page.ids == list(SECTIONS)
    assert [link for link in page.loads if not link.startswith("data:")] == [
        f"#{name}" for name in SECTIONS
    ]
    for title in SECTIONS.values():
        assert title in page.text


def test_every_plot_stands_in_light_and_dark_and_every_picture():
    assert len(build().images) == 2 * len(PLOTS) + len(analysis()["worst"])


def test_the_sentences_stand():
    page = build()
    for sentence in summary(analysis()):
        assert sentence in page.text


def test_the_numbers_of_a_class_are_those_of_the_analysis():
    page, found = build(), analysis()
    head, *rows = page.tables["Classes by AP"]
    keys = [
        "objects",
        "detections",
        "mask_ap",
        "mask_ap50",
        "mask_ap_small",
        "mask_ap_medium",
        "boundary_ap",
        "box_ap",
    ]
    keys += ["threshold", "precision", "recall", "f1"]
    assert [row[0] for row in rows] == list(NAMES)
    assert len(head) == 1 + len(keys)
    assert "large" not in head  # no class has a large object
    for row, entry in zip(rows, found["per_class"], strict=True):
        assert row[1:] == [shown(entry[key]) for key in keys]


def test_the_scores_are_those_of_the_evaluation():
    head, mask, box = build().tables["COCO metrics over all classes"]
    assert head == ["", "AP", "AP50", "AP75", "small", "medium", "large", "AR1", "AR10", "AR100"]
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    metrics = evaluation()["metrics"]
    assert mask == ["mask", *(shown(metrics.get(f"val/mask_{key}")) for key in keys)]
    assert box == ["box", *(shown(metrics.get(f"val/box_{key}")) for key in keys)]


def test_roi_accuracy_stands_beside_its_definition():
    page = build()
    assert "roi_accuracy 0.938 not an AP: see below the classes" in page.text
    assert f"roi_accuracy: {DEFINITIONS['all']}" in page.text
    assert "roi_accuracy" not in page.tables["Classes by AP"][0]
    per_class = {
        name: {"roi_accuracy": value} for name, value in zip(NAMES, (0.75, 1.0, None), strict=True)
    }
    head, *rows = build(per_class=per_class).tables["Classes by AP"]
    assert [row[head.index("roi_accuracy")] for row in rows] == ["0.750", "1.000", "-"]
    metrics = {key: value for key, value in evaluation()["metrics"].items() if "roi" not in key}
    record = {key: value for key, value in evaluation().items() if key != "roi_accuracy"} | {
        "metrics": metrics
    }
    pictures = list(
        draw_worst(analysis()["worst"], ground_truth(), results(), lambda image_id: None)
    )
    text = Page(build_page(record, analysis(), DRAWN, pictures, "2026-11-27 10:00")).text
    assert "roi_accuracy" not in text  # of the results of another tool


def test_results_without_masks():
    found = analysis() | {"kind": "box", "mask_ap": None, "boundary_ap": None}
    for entry in found["per_class"]:
        entry |= {key: None for key in entry if key.startswith(("mask", "boundary"))}
    metrics = {key: value for key, value in evaluation()["metrics"].items() if "mask" not in key}
    page = build(found, metrics=metrics)
    assert "mask AP" not in page.text
    assert "boundary" not in page.text.lower()
    assert [row[0] for row in page.tables["Classes by AP"]][1:] == list(NAMES)


def test_intervals_and_differences_stand_where_there_are_some():
    found = {"value": -0.0125, "interval": (-0.03, 0.005), "p_value": 0.1875}
    intervals = {"val/mask_ap": [0.48, 0.55], "val/box_ap": [None, None]}
    page = build(intervals=intervals, against="other/run", differences={"val/mask_ap": found})
    assert (
        "mask AP 0.500 0.480 to 0.550, 95 % confidence interval (bootstrap over images)"
        in page.text
    )
    assert (
        "The mask AP is -0.013 from that of other/run, 95 % interval -0.030 to +0.005, "
        "p = 0.188 (paired bootstrap over images)."
    ) in page.text
    assert "95 %" not in build().text


@pytest.mark.parametrize("name", ["run", "results"])
def test_the_title_says_what_was_evaluated(name: str):
    given = {"run": None, "results": None, name: "some/<thing>", "overrides": []}
    page = build(**given)
    assert page.text.count("Evaluation of some/<thing>") == 2  # in the title of the window too
    assert "shapes: 2 images, 2026-11-27 10:00" in page.text
    assert "options none" in page.text


def test_an_official_ap_stands_beside_coco_s():
    metrics = evaluation()["metrics"] | {"val/cityscapes_ap": 0.306, "val/cityscapes_ap50": 0.512}
    per_class = {name: values | {"cityscapes_ap": 0.25} for name, values in rows().items()}
    page = build(metrics=metrics, per_class=per_class)
    assert "Cityscapes AP" in page.text
    assert "0.306" in page.text
    assert "by the benchmark's own rules; its AP50 is 0.512" in page.text
    head, *lines = page.tables["Classes by AP"]
    column = head.index("Cityscapes AP")
    assert "0.250" in [line[column] for line in lines]
    assert "Cityscapes" not in build().text


def rows() -> dict[str, Any]:
    return evaluation()["per_class"]


def test_the_page_says_which_views_or_tiles_it_used():
    """In the facts, a sentence for each AP, and a table with and without."""
    values = {"value": 0.031, "interval": [0.01, 0.05], "p_value": 0.002}
    metrics = evaluation()["metrics"]
    plain = {name: None if value is None else value / 2 for name, value in metrics.items()}
    row = {
        "seconds_per_image": 0.2,
        "plain_seconds_per_image": 0.1,
        "plain": plain,
        "differences": {"val/mask_ap": values},
    }
    tta = build(tta=row | {"kind": "flip", "views": 2})
    assert "flip, 2 views of an image" in tta.text
    tile = build(tile=row | {"tile": 1024, "overlap": 0.2, "tiles_per_image": 12.25})
    assert (
        "With tile (1024 pixels, overlap 0.2, 12.2 tiles an image) the mask AP is +0.031 from that "
        "of the images as they are, 95 % interval +0.010 to +0.050, p = 0.002"
    ) in tile.text
    head, *rows = tile.tables["The same with and without the option"]
    assert [row[0] for row in rows] == ["mask, tile", "mask, without", "box, tile", "box, without"]
    assert rows[1][head.index("AP")] == shown(plain["val/mask_ap"])
    assert "The same with and without the option" not in build().tables
