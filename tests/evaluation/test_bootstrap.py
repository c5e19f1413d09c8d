"""The bootstrap against images that are copied and scored by pycocotools."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_cases import box, coco_ap, found, jitter, small_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_coco import plain

from maskrcnn_lit.evaluation import bootstrap
from maskrcnn_lit.evaluation.bootstrap import (
    bootstrap_ap,
    draw_weights,
    intervals,
    mean_resampled,
    paired_bootstrap,
    recalls_reached,
    resample,
    weighted_ap,
)
from maskrcnn_lit.evaluation.coco.matching import Matches, match_results
from maskrcnn_lit.evaluation.coco.precision import RECALLS


@pytest.fixture(scope="module")
def truth(test_data: Path) -> dict[str, Any]:
    return json.loads((test_data / "coco_mini/annotations/instances_val2017.json").read_text())


@pytest.fixture(scope="module")
def results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """No two scores are equal: between copies of images pycocotools orders equal ones otherwise."""
    scores = np.random.default_rng(1).permutation(10_000).tolist()
    return [r | {"score": scores[n] / 10_000} for n, r in enumerate(jitter(truth))]


def matched(
    truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str = "bbox"
) -> Matches:
    return match_results(truth, results, iou_type=iou_type, limit=100)


def copied(entries: list[dict], weights: dict[int, int], key: str) -> list[dict]:
    """Image i as often as it is drawn; its copies have the ids 1000 i, 1000 i + 1, ..."""
    return [e | {key: 1000 * e[key] + n} for e in entries for n in range(weights[e[key]])]


def by_copying(
    truth: dict[str, Any], results: list[dict], drawn: list[int], iou_type: str
) -> float:
    """AP by pycocotools on a data set in which the images are copied."""
    weights = dict(zip(sorted(image["id"] for image in truth["images"]), drawn, strict=True))
    annotations = copied(truth["annotations"], weights, "image_id")
    repeated = {
        "images": copied(truth["images"], weights, "id"),
        "categories": truth["categories"],
        "annotations": [a | {"id": n} for n, a in enumerate(annotations, start=1)],
    }
    ap = plain(repeated, copied(results, weights, "image_id"), iou_type)[0][0]
    return math.nan if ap == -1 else ap


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_weights_count_as_copies_of_images_do(truth: dict, results: list, iou_type: str) -> None:
    matches = matched(truth, results, iou_type)
    weights = draw_weights(matches.images, 2, seed=3)
    expected = [by_copying(truth, results, drawn, iou_type) for drawn in weights.T.tolist()]
    assert weighted_ap(matches, weights) == pytest.approx(expected, abs=1e-9)
    assert 0.02 < expected[0] < 0.98
    assert abs(expected[0] - expected[1]) > 1e-4


_boxes = st.tuples(
    st.integers(0, 60), st.integers(0, 60), st.integers(1, 110), st.integers(1, 110)
).map(list)
_ids = st.integers(1, 2)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(
    objects=st.lists(st.tuples(_ids, _ids, _boxes, st.integers(0, 1)), max_size=8),
    seen=st.lists(st.tuples(_ids, _ids, _boxes), max_size=8),
    copies=st.integers(0, 8),
    drawn=st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any),
)
def test_weights_count_as_copies_of_images_do_in_small_sets(
    objects: list, seen: list, copies: int, drawn: tuple
):
    truth = small_truth([box(*some) for some in objects])
    places = [*seen, *(some[:3] for some in objects[:copies])]
    results = [found(*place, (n * 7 % 17) / 17) for n, place in enumerate(places)]
    (ap,) = weighted_ap(matched(truth, results), np.array(drawn, dtype=np.int32)[:, None])
    assert ap == pytest.approx(
        by_copying(truth, results, list(drawn), "bbox"), abs=1e-9, nan_ok=True
    )


def test_a_class_whose_only_detection_is_ignored_at_some_thresholds() -> None:
    """It covers an object by half, and lies in a crowd region: right at an IoU of 0.5, ignored from
    0.55 on.
    """
    truth = small_truth([box(1, 1, [0, 0, 10, 10], 0), box(1, 1, [0, 0, 10, 20], 1)])
    matches = matched(truth, [found(1, 1, [0, 0, 10, 20], 0.9)])
    assert bootstrap_ap(matches, resamples=20).value == pytest.approx(0.1)
    weights = np.array([[2], [0]], np.int32)
    assert weighted_ap(matches, weights) == pytest.approx([0.1])


@pytest.mark.long
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_every_image_once_gives_the_ap(truth: dict, iou_type: str) -> None:
    results = jitter(truth)  # with equal scores
    matches = matched(truth, results, iou_type)
    (ap,) = weighted_ap(matches, np.ones((matches.images, 1), np.int32))
    assert ap == pytest.approx(coco_ap(truth, results, iou_type=iou_type)["ap"], abs=1e-12)


def test_the_interval_holds_the_value_and_narrows_with_the_images(
    truth: dict, results: list
) -> None:
    few = {image["id"] for image in truth["images"][::4]}
    part = truth | {
        "images": [image for image in truth["images"] if image["id"] in few],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in few],
    }
    widths = []
    for ground_truth in (truth, part):
        kept = {image["id"] for image in ground_truth["images"]}
        matches = matched(ground_truth, [r for r in results if r["image_id"] in kept])
        value, (low, high) = bootstrap_ap(matches, resamples=200)
        assert low < value < high
        widths.append(high - low)
    assert 0.005 < widths[0] < widths[1] < 0.3


def test_a_seed_draws_the_same_and_another_one_otherwise(truth: dict, results: list) -> None:
    matches = matched(truth, results)
    one, same, other = (bootstrap_ap(matches, resamples=50, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.value == other.value
    assert one.interval != other.interval
    weights = draw_weights(30, 40, seed=0)
    assert weights.shape == (30, 40)
    assert (weights.sum(0) == 30).all()
    assert weights.std() > 0.5


@pytest.mark.long
def test_a_clear_difference_is_told_from_none(truth: dict, results: list) -> None:
    matches = matched(truth, results)
    worse = matched(truth, [r for n, r in enumerate(results) if n % 3])
    difference = paired_bootstrap(matches, worse, resamples=200)
    assert difference.value == pytest.approx(
        bootstrap_ap(matches).value - bootstrap_ap(worse).value
    )
    assert 0 < difference.interval[0] < difference.value < difference.interval[1]
    assert difference.p_value == pytest.approx(1 / 201)
    back = paired_bootstrap(worse, matches, resamples=200)
    assert back.value == -difference.value
    assert back.interval[1] == pytest.approx(-difference.interval[0])
    none = paired_bootstrap(matches, matches, resamples=200)
    assert none == (0.0, (0.0, 0.0), 1.0)


def test_the_mean_of_runs_is_resampled_as_they_are(truth: dict, results: list) -> None:
    first, second = (
        resample(matched(truth, some), resamples=50) for some in (results, results[::2])
    )
    mean = mean_resampled([first, second])
    assert mean.value == pytest.approx((first.value + second.value) / 2)
    assert mean.drawn == pytest.approx((first.drawn + second.drawn) / 2)
    assert bootstrap.difference(mean, mean) == (0.0, (0.0, 0.0), 1.0)
    alone = bootstrap.difference(first, second)
    assert alone == paired_bootstrap(
        matched(truth, results), matched(truth, results[::2]), resamples=50
    )
    other = resample(matched(small_truth([box(1, 1, [0, 0, 9, 9])]), []), resamples=50)
    with pytest.raises(ValueError, match="the same ground truth"):
        mean_resampled([first, other])


def test_a_small_difference_between_noisy_runs_is_not_called_one(
    truth: dict, results: list
) -> None:
    """The same detections with a little noise on the scores of each."""
    rng = np.random.default_rng(0)
    first, second = (
        [r | {"score": r["score"] + rng.normal(0, 0.3)} for r in results] for _ in range(2)
    )
    difference = paired_bootstrap(matched(truth, first), matched(truth, second), resamples=200)
    assert difference.p_value > 0.05
    assert difference.interval[0] < 0 < difference.interval[1]


def test_other_ground_truth_is_refused() -> None:
    one, other = (matched(small_truth([box(image, 1, [0, 0, 9, 9])]), []) for image in (1, 2))
    with pytest.raises(ValueError, match="the same ground truth"):
        paired_bootstrap(one, other)


def test_no_objects_give_no_numbers() -> None:
    value, interval = bootstrap_ap(matched(small_truth([]), [found(1, 1, [0, 0, 9, 9], 0.5)]))
    assert math.isnan(value)
    assert all(map(math.isnan, interval))
    assert intervals({"box": matched(small_truth([]), [])}) == {"val/box_ap": None}


@pytest.mark.long
def test_what_is_counted_at_once_does_not_matter(
    truth: dict, results: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = matched(truth, results)
    weights = draw_weights(matches.images, 40, seed=4)
    expected, parts = weighted_ap(matches, weights), []

    def mean_ap(matches: Matches, part: np.ndarray, count: Any = bootstrap._mean_ap) -> Any:
        parts.append(part.shape[1])
        return count(matches, part)

    monkeypatch.setattr(bootstrap, "_mean_ap", mean_ap)
    for room, sizes in ((8 * 7 * bootstrap._most_rows(matches), [7] * 5 + [5]), (1, [1] * 40)):
        parts.clear()
        monkeypatch.setattr(bootstrap, "_BYTES", room)
        assert weighted_ap(matches, weights) == pytest.approx(expected, abs=1e-12)
        assert sorted(parts)[::-1] == sizes


def test_the_rows_of_the_largest_class_are_known() -> None:
    """Of class one 3 objects and 2 right detections, the second after 4 wrong ones."""
    truth = small_truth(
        [box(1, 1, [0, 0, 9, 9]), box(2, 1, [0, 0, 9, 9]), box(2, 1, [50, 50, 9, 9])]
    )
    wrong = [found(1, 1, [80, 80, 9, 9], 0.8 - n / 100) for n in range(4)]
    results = [found(1, 1, [0, 0, 9, 9], 0.9), *wrong, found(2, 1, [0, 0, 9, 9], 0.1)]
    assert bootstrap._most_rows(matched(truth, results)) == 5
    assert bootstrap._most_rows(matched(truth, results[:1])) == 3
    assert bootstrap._most_rows(matched(small_truth([]), [])) == 2  # images


def test_an_interval_of_ap_stays_between_0_and_1() -> None:
    """One of two objects is found, after a wrong detection: the plain interval begins below 0."""
    truth = small_truth([box(image, 1, [0, 0, 9, 9]) for image in (1, 2)])
    results = [found(1, 1, [0, 0, 9, 9], 0.5), found(2, 1, [80, 80, 9, 9], 0.9)]
    matches = matched(truth, results)
    value, interval = bootstrap_ap(matches)
    drawn = weighted_ap(matches, draw_weights(matches.images, 1000, seed=0))
    assert value + np.percentile(drawn, 2.5) - drawn.mean() < -0.01
    assert interval[0] == 0 < value < interval[1] <= 1


def test_recalls_are_counted_by_the_comparison_of_floats() -> None:
    for objects in (1, 3, 7, 49, 100, 101, 300):
        right = np.arange(objects + 1)[:, None]
        expected = (right / objects >= RECALLS).sum(1)
        assert (recalls_reached(right, np.array([objects]))[:, 0] == expected).all()
