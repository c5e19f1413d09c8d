"""The difference from the images as they are, in numbers and words."""

import pytest
from box_scenes import scene

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.scores import match_all, score_results
from maskrcnn_lit.launch.gain import against_plain, difference_lines, seconds_line

LIMITS = (1, 10, 100)


def test_the_same_results_differ_by_nothing():
    objects = [(n, "ant", (x, 0, 20, 20)) for n in range(1, 11) for x in (0, 60)]
    truth, results = scene(objects, [(*one, 0.9) for one in objects[::2]], 10)
    categories = tuple(Category(entry["id"], entry["name"]) for entry in truth["categories"])
    row = against_plain(match_all(truth, results, 100), results, truth, categories, LIMITS)
    expected = score_results(truth, results).metrics
    assert row["plain"] == pytest.approx(
        {name: expected[name] for name in row["plain"]}, nan_ok=True
    )
    assert [one["value"] for one in row["differences"].values()] == [0, 0]
    ap = f"{expected['val/box_ap']:.3f}"
    assert f"tile=9: box AP {ap}, without {ap}: +0.000, 95 % interval" in next(
        difference_lines("tile=9", row)
    )


def test_the_price_in_time_and_without_an_image():
    row = {"seconds_per_image": 0.5, "plain_seconds_per_image": 0.2}
    assert seconds_line("a", row) == "a: 0.500 s of the model an image, without 0.200 s (2.5 times)"
    row = {"seconds_per_image": 0.0, "plain_seconds_per_image": 0.0}
    assert seconds_line("a", row) == "a: 0.000 s of the model an image, without 0.000 s"
