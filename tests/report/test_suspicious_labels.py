"""The page of suspicious labels: pictures, words, no remote asset."""

import base64
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_lit.evaluation.analysis.suspicious_labels import suspicious_labels
from maskrcnn_lit.report.suspicious_labels import (
    SUGGESTED,
    SUSPECT,
    TITLES,
    draw_suspicions,
    labels_page,
)

SIDE = 80


def box(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    outline = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": [x, y, w, h], "segmentation": [outline]}


def case() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A sloppy outline (annotation 1), a missing label, and a label that is right."""
    labels = [box(10, 10, 20, 10), box(50, 50, 20, 20)]
    truth = {
        "images": [{"id": 4, "file_name": "<a>.png", "height": SIDE, "width": SIDE}],
        "annotations": [
            {"id": n, "image_id": 4, "category_id": 1, "area": 400.0, "iscrowd": 0} | label
            for n, label in enumerate(labels, 1)
        ],
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    found = [box(10, 10, 20, 20), box(50, 50, 20, 20), box(50, 10, 20, 20)]
    results = [
        {"image_id": 4, "category_id": 1, "score": 0.9 - n / 10} | one
        for n, one in enumerate(found)
    ]
    return truth, results


def gray(_: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 90, np.uint8)


def near(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels.astype(int) - color).max(2) < 40).any())


def test_a_picture_has_the_label_and_the_prediction():
    truth, results = case()
    suspicions = suspicious_labels(truth, results)["suspicions"]
    shown = draw_suspicions(suspicions, truth, results, gray)
    assert {one.title for one in shown} == {TITLES["outline"], TITLES["missing"]}
    for one in shown:
        pixels = np.asarray(Image.open(io.BytesIO(one.jpeg)))
        assert pixels.shape == (one.height, one.width, 3)
        left, right = np.split(pixels[:, : one.width // 2 * 2], 2, axis=1)
        labeled = one.suspicion["annotation"] is not None
        assert near(left, SUSPECT) is labeled
        assert near(right, SUGGESTED)
        assert "image 4, <a>.png" in one.caption
        assert one.suspicion["what"] in one.caption
        assert ("annotation 1" in one.caption) is labeled


def test_the_page_loads_nothing_and_escapes_names():
    truth, results = case()
    analysis = suspicious_labels(truth, results)
    page = labels_page(
        analysis, truth, results, gray, first=1, facts=[("run", "R<1>")], trained_on_them=True
    )
    assert "&lt;a&gt;.png" in page
    assert "<a>.png" not in page
    assert "R&lt;1&gt;" in page
    assert len(re.findall("<figure>", page)) == 1
    assert "was trained on these labels" in page
    for source in re.findall(r'src="([^"]*)"', page):
        assert source.startswith("data:image/jpeg;base64,")
        base64.b64decode(source.partition(",")[2], validate=True)


def test_an_unreadable_image_and_an_empty_list_are_said():
    truth, results = case()
    analysis = suspicious_labels(truth, results)
    (first, _) = draw_suspicions(analysis["suspicions"], truth, results, lambda _: None)
    assert "the file cannot be read" in first.caption
    nothing = suspicious_labels(truth, [])
    page = labels_page(nothing, truth, [], gray, first=9, facts=[], trained_on_them=False)
    assert "No label contradicts the model." in page
    assert "was trained on" not in page
