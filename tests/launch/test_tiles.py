"""Whether tiles were worth their time, in numbers and words."""

import pytest
from box_scenes import scene
from models import make_model

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches
from maskrcnn_lit.launch.tiles import tile_gain, tile_gain_text
from maskrcnn_lit.model.tiles import Tiling, WithTiles

LIMITS = (1, 10, 100)


def test_the_gain_is_that_of_small_objects():
    """In each of 30 images a small and a medium object; without tiles the small one is missed."""
    objects = [(n, "ant", (0, 0, 20, 20)) for n in range(1, 31)]
    objects += [(n, "ant", (30, 30, 60, 60)) for n in range(1, 31)]
    truth, results = scene(objects, [(*one, 0.9) for one in objects], 30)
    plain = [entry for entry in results if entry["bbox"][2] == 60]
    categories = tuple(Category(entry["id"], entry["name"]) for entry in truth["categories"])
    model = WithTiles(make_model(), Tiling(64, 0.25), 64, lambda image_id: None)
    model.images, model.tiles, model.seconds, model.plain_seconds = 30, 135, 6.0, 1.5
    matches = match_all(truth, results, 100)
    row = tile_gain(model, matches, plain, truth, categories, LIMITS)
    assert (row["tile"], row["overlap"], row["tiles_per_image"]) == (64, 0.25, 4.5)
    assert row["differences"]["val/mask_ap"]["value"] == pytest.approx(
        1 - row["plain"]["val/mask_ap"]
    )
    metrics = score_matches(matches, truth["categories"], LIMITS).metrics
    text = tile_gain_text(row, metrics).splitlines()
    assert text[-1] == (
        "tile=64 (4.5 tiles an image): 0.200 s of the model an image, without 0.050 s (4.0 times)"
    )
    assert (
        "tile=64 (4.5 tiles an image): mask AP of objects by size: small 1.000, without 0.000; "
        "medium 1.000, without 1.000"
    ) in text
