"""Damaged masks are told, before pycocotools sees them."""

from typing import Any

import numpy as np
import pytest
from coco_cases import box, found, small_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.rasterize import expand_counts
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco import results as coco_masks
from maskrcnn_lit.evaluation.coco.results import check_masks
from maskrcnn_lit.evaluation.coco.scores import score_results

IMAGES = {3: {"height": 5, "width": 7}}


def entry(mask: Any) -> dict[str, Any]:
    return {"image_id": 3, "segmentation": mask}


def rle(counts: Any) -> dict[str, Any]:
    return {"size": [5, 7], "counts": counts}


def compressed(*counts: int) -> dict[str, Any]:
    made = rle_tools.frPyObjects({"size": [5, 7], "counts": list(counts)}, 5, 7)
    return made | {"counts": made["counts"].decode()}


SOUND = [
    compressed(35),
    compressed(0, 35),
    compressed(3, 4, 20, 1, 6, 1),
    rle([11, 3, 2, 3, 2, 3, 2, 3, 6]),
    [[2, 1, 6, 1, 6, 4, 2, 4]],
    [[2.5, 1, 6, 1, 6, 4], [0, 0, 1, 0, 1, 1]],
]


def test_sound_masks_pass_in_any_order() -> None:
    check_masks([], IMAGES)
    check_masks([entry(mask) for mask in SOUND[:3]], IMAGES)
    check_masks([entry(mask) for mask in SOUND], IMAGES)
    binary = rle_tools.encode(np.ones((5, 7), np.uint8, order="F"))
    check_masks([entry(binary), entry(binary | {"size": (5, 7)})], IMAGES)


BAD = [
    (rle([5, 5]), "has counts [5, 5] of 10 pixels, but the image has 35"),
    (rle([40, -5]), "has counts [40, -5] with a negative run"),
    (rle([34.0, 1]), "neither text nor a list of whole numbers"),
    (rle([]), "has counts [] of 0 pixels"),
    (rle(None), "has counts None: neither text nor a list of whole numbers"),
    (rle("zzzz"), "has counts 'zzzz': not a compressed RLE"),
    (rle(""), "has counts '': not a compressed RLE"),
    (rle("\u00fc"), "not a compressed RLE"),
    (rle("o" * 20 + "0"), "a number of more than 60 bits"),
    (rle("ooooooooo0"), "pixels, but the image has 35"),
    (compressed(5, 5), "of 10 pixels, but the image has 35"),
    (rle("34Nj0"), "with a negative run"),
    (compressed(35) | {"size": 7}, "has size 7 (height, width), but the image is [5, 7]"),
    (compressed(35) | {"size": [7, 5]}, "has size [7, 5] (height, width), but the image is [5, 7]"),
    (compressed(35) | {"size": ["5", "7"]}, "has size ['5', '7']"),
    ({"counts": "1"}, "is {'counts': '1'}"),
    (None, "is None"),
    ("x", "is 'x'"),
    ([], "is []: not polygons"),
    ([[]], "is [[]]: not polygons"),
    ([[1, 2]], "is [[1, 2]]: not polygons"),
    ([1, 2, 3, 4], "is [1, 2, 3, 4]: not polygons"),
    ([[1, 2, 3, 4, 5, 6, 7]], "not polygons"),
    ([[1, 2, 3, 4, 5, None]], "not polygons"),
    ([[1, 2, 3, 4, 5, 1e300]], "not polygons"),
    ([[1, 2, 3, 4, 5, float("nan")]], "not polygons"),
]


@pytest.mark.parametrize(("mask", "said"), BAD)
def test_a_damaged_mask_is_told(mask: Any, said: str) -> None:
    for sound in (SOUND[:3], SOUND):
        with pytest.raises(UserError) as error:
            check_masks([*map(entry, sound), entry(mask), entry(None)], IMAGES)
        told = str(error.value)
        assert told.startswith(f"entry {len(sound)} of the results, a mask of image 3, ")
        assert said in told
        assert told.endswith(": give RLE (size and counts) of the full image, or polygons")


def test_damage_is_told_from_whatever_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_masks, "_AT_ONCE", 2)
    for n in range(5):
        entries = [entry(SOUND[0])] * 5
        entries[n] = entry(rle("zzzz"))
        with pytest.raises(UserError, match=f"entry {n} of the results"):
            check_masks(entries, IMAGES)


def test_scoring_asks() -> None:
    truth = small_truth([box(1, 1, [0, 0, 50, 50])])
    good = found(1, 1, [0, 0, 50, 50], 0.9)
    with pytest.raises(UserError, match="entry 1 of the results, a mask of image 1, has counts"):
        score_results(
            truth, [good, good | {"segmentation": good["segmentation"] | {"counts": [5, 5]}}]
        )


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(st.lists(st.integers(0, 2**20), min_size=1, max_size=9), st.text("0123OPQo_`n"))
    )
)
def test_together_they_are_unpacked_as_each_alone_is(drawn: list) -> None:
    texts = [
        rle_tools.frPyObjects({"size": [1, 1], "counts": one}, 1, 1)["counts"]
        if isinstance(one, list)
        else one.encode()
        for one in drawn
    ]
    expected: list[int] | None = []
    for text in texts:
        try:
            runs = expand_counts(text)
        except ValueError:
            expected = None
            break
        if runs.min() < 0:
            expected = None
            break
        expected.append(int(runs.sum()))
    totals = coco_masks._pixels(texts) if texts else np.zeros(0)
    if totals is None:
        assert expected is None or any(
            len(text) > 7 for text in texts
        )  # a number of more than 35 bits
    else:
        assert totals.tolist() == expected
