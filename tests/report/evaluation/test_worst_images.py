"""The worst images: what is drawn, in which color, and how large."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_sample import HEIGHT, WIDTH, analysis, ground_truth, results

from maskrcnn_lit.report.draw import MANY
from maskrcnn_lit.report.evaluation import worst_images
from maskrcnn_lit.report.evaluation.worst_images import COLORS, Picture, draw_worst


def gray(image_id: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


def draw(**more: Any) -> list[Picture]:
    given = {
        "worst": analysis()["worst"],
        "ground_truth": ground_truth(),
        "results": results(),
        "read_image": gray,
    }
    return list(draw_worst(**(given | more)))


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB"), np.float64)


def tint(picture: Picture, x: int, y: int) -> str:
    """Towards which color the middle of an object is tinted, from the gray that it was."""
    factor = picture.width // WIDTH
    moved = pixels(picture)[y * factor, x * factor] - 90
    if abs(moved).max() < 8:
        return "none"
    directions = {kind: np.array(color) - 90.0 for kind, color in COLORS.items()}
    cosines = {
        k: moved @ d / np.linalg.norm(moved) / np.linalg.norm(d) for k, d in directions.items()
    }
    return max(cosines, key=lambda kind: cosines[kind])


def test_what_is_missed_false_and_merged_has_its_color():
    first, second = draw()
    assert (tint(first, 20, 22), tint(first, 50, 30), tint(first, 55, 10)) == (
        "missed",
        "false",
        "merged",
    )
    assert tint(first, 70, 50) == "none"
    assert tint(second, 20, 30) == "false"
    assert first.counts == {
        "missed": 1,
        "false": 1,
        "merged": 1,
    }  # what merges is not called false again
    assert second.counts == {"missed": 0, "false": 1, "merged": 0}
    assert (first.image_id, first.name, first.readable) == (7, "7.png", True)


def test_labels_say_the_kind_the_class_and_the_score(monkeypatch: pytest.MonkeyPatch):
    labels: list[str] = []
    drawing = worst_images.draw_instances

    def keep(image: np.ndarray, **given: Any) -> np.ndarray:
        labels.extend(given["names"])
        return drawing(image, **given)

    monkeypatch.setattr(worst_images, "draw_instances", keep)
    draw()
    assert labels == ["missed star", "merged circle 0.75", "false circle 0.75", "false circle 0.75"]

    labels.clear()
    draw(worst=[{"image_id": 7, "missed": [], "false": [0] * MANY, "merged": []}])
    assert labels == [""] * MANY  # the legend says it


def test_results_without_masks_are_drawn_as_boxes():
    boxes = [
        {key: value for key, value in entry.items() if key != "segmentation"} for entry in results()
    ]
    (picture, _) = draw(results=boxes)
    factor = picture.width // WIDTH
    column = abs(pixels(picture)[:, 50 * factor] - 90).max(1)
    assert column[30 * factor] < 8  # inside
    assert column[39 * factor : 41 * factor].max() > 50  # on the edge


def test_without_boxes_the_box_is_that_of_the_mask():
    masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results()]
    assert [picture.jpeg for picture in draw(results=masks)] == [picture.jpeg for picture in draw()]


def test_an_image_that_cannot_be_read_is_drawn_grey():
    first, _ = draw(read_image=lambda image_id: None)
    assert not first.readable
    assert tint(first, 20, 22) == "missed"
