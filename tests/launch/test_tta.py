"""Whether test-time augmentation was worth its time, in numbers and words."""

import pytest
from box_scenes import scene
from models import make_model

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.scores import match_all, score_results
from maskrcnn_lit.launch.tta import gain, gain_text
from maskrcnn_lit.model.tta import WithViews

LIMITS = (1, 10, 100)


def test_the_gain_is_that_of_the_same_images():
    """In each of 30 images two objects, of which one is detected without the views."""
    objects = [(n, "ant", (x, 0, 20, 20)) for n in range(1, 31) for x in (0, 60)]
    truth, results = scene(objects, [(*one, 0.9) for one in objects], 30)
    plain = [entry for entry in results if entry["bbox"][0] == 0]
    categories = tuple(Category(entry["id"], entry["name"]) for entry in truth["categories"])
    model = WithViews(make_model(), [64, 96], lambda ids, size: {})
    model.images, model.seconds, model.plain_seconds = 30, 6.0, 1.5
    row = gain("scales", model, match_all(truth, results, 100), plain, truth, categories, LIMITS)
    expected = score_results(truth, plain).metrics
    assert row["plain"] == pytest.approx(
        {name: expected[name] for name in row["plain"]}, nan_ok=True
    )
    difference = row["differences"]["val/mask_ap"]
    assert difference["value"] == pytest.approx(1 - expected["val/mask_ap"])
    assert difference["p_value"] < 0.05
    assert gain_text(row).splitlines()[-1] == (
        "tta=scales (4 views of an image): 0.200 s of the model an image, without 0.050 s "
        "(4.0 times)"
    )
    assert (
        f"mask AP 1.000, without {expected['val/mask_ap']:.3f}: +{difference['value']:.3f}, 95 %"
        in gain_text(row)
    )
