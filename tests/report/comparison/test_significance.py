"""Which differences are told as such, and which as chance."""

from dataclasses import replace

import numpy as np
import pytest
from comparison_sample import job

from maskrcnn_lit.evaluation.bootstrap import Difference, Resampled
from maskrcnn_lit.evaluation.t_test import welch
from maskrcnn_lit.report.comparison.settings import Ranking, rankings
from maskrcnn_lit.report.comparison.significance import (
    MOST,
    Comparison,
    compare,
    sentences,
    significant,
    verdicts,
)

OBJECTS = np.array([[0, 1], [1, 1]])


def group(name: str, *aps: float, **options: object):
    typed = [f"backbone={name}", *(f"{key}={value}" for key, value in options.items())]
    config = {"backbone": {"name": name}, **options}
    return [
        job(f"{name}-{seed}-{options}", *typed, ap=ap, seed=seed, config=config)
        for seed, ap in enumerate(aps)
    ]


def drawn(jobs, noise: float = 0.0):
    """The AP of each on 1000 resamples: the same ones but for `noise` of its own."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.05, 1000)
    aps = {j.name: j.metric("val/mask_ap") for j in jobs}
    return {
        name: Resampled(ap, ap + common + rng.normal(0, noise, 1000), OBJECTS)
        for name, ap in aps.items()
    }


def test_equal_results_are_said_to_be_no_difference():
    jobs = [*group("resnet50", 0.3, 0.32), *group("resnet18", 0.3, 0.32)]
    (ranking,) = rankings(jobs)
    (found,) = compare(ranking, drawn(jobs))
    assert found.value == 0
    assert found.over_images.p_value == 1
    assert found.over_seeds.p_value == 1
    told, judged = sentences(ranking, [found])
    assert told.startswith(
        "The difference between resnet50 and resnet18, 0.000 mask AP, is not significant (over "
        "images"
    )
    assert judged.startswith(
        "1 comparison with the best setting. Tested over the validation images (paired bootstrap)"
    )
    assert judged.endswith("at 0.05 for all comparisons together (Holm's method).")


def test_a_clear_difference_is_told_with_its_numbers():
    jobs = [*group("resnet50", 0.50, 0.51, 0.49), *group("resnet18", 0.20, 0.21, 0.19)]
    (ranking,) = rankings(jobs)
    (found,) = compare(ranking, drawn(jobs, noise=0.001))
    assert significant([found]) == [True]
    assert found.value == pytest.approx(0.3)
    assert found.over_seeds == welch([0.50, 0.51, 0.49], [0.20, 0.21, 0.19])
    low, high = found.over_seeds.interval
    told = sentences(ranking, [found])[0]
    assert told.startswith(
        "resnet50 is better than resnet18 by 0.300 mask AP (over images 95 % interval +0.2"
    )
    assert f"over seeds 95 % interval {low:+.3f} to {high:+.3f}, p < 0.001)." in told


def test_one_test_that_says_chance_is_enough():
    jobs = [
        *group("resnet50", 0.9, 0.3),
        *group("resnet18", 0.2, 0.25),
    ]  # sure over images, not over seeds
    (ranking,) = rankings(jobs)
    (found,) = compare(ranking, drawn(jobs, noise=0.001))
    assert found.over_images.p_value < 0.01 < found.over_seeds.p_value
    assert significant([found]) == [False]


def test_of_one_seed_the_images_alone_speak_and_it_is_said():
    jobs = [*group("resnet50", 0.5), *group("resnet18", 0.2, 0.21)]
    (ranking,) = rankings(jobs)
    (found,) = compare(ranking, drawn(jobs, noise=0.001))
    assert found.over_seeds is None
    assert significant([found]) == [True]
    told, judged = sentences(ranking, [found])
    assert told.endswith("; too few seeds to test over them).")
    assert judged.endswith("With a single seed, the variance over seeds is unknown.")


def test_without_detections_nothing_is_claimed():
    jobs = [*group("resnet50", 0.5), *group("resnet18", 0.2, 0.21)]
    (ranking,) = rankings(jobs)
    (found,) = compare(ranking, drawn(jobs[:2]))  # one of the second setting's is missing
    assert found.over_images is None
    assert significant([found]) == [None]
    assert sentences(ranking, [found])[0].endswith("above resnet18; the difference was not tested.")


def test_the_settings_nearest_to_the_best_are_compared_first():
    jobs = [j for i, name in enumerate("abcdefgh") for j in group(name, 0.1 + i / 100, width=1)]
    jobs += [j for i, name in enumerate("abh") for j in group(name, 0.3 + i / 100, width=2)]
    (ranking,) = rankings(jobs)
    found = compare(ranking, drawn(jobs))
    assert len(found) == MOST
    assert found[0].first.label == "h, 2"
    assert {c.second.label for c in found[:3]} == {"h, 1", "b, 2", "a, 2"}  # one option apart
    assert (
        "8 comparisons with the best setting; the other 2 settings, which differ in more options, "
        "were not tested" in (sentences(ranking, found)[-1])
    )


def with_baseline(ranking: Ranking, label: str) -> Ranking:
    (baseline,) = [setting for setting in ranking.settings if setting.label == label]
    return replace(ranking, baseline=baseline)


def test_the_others_are_compared_with_a_baseline():
    jobs = [
        *group("plain", 0.30, 0.31, 0.32),
        *group("better", 0.50, 0.51, 0.49),
        *group("worse", 0.10, 0.11, 0.12),
        *group("same", 0.31, 0.30, 0.32),
    ]
    (ranking,) = rankings(jobs)
    ranking = with_baseline(ranking, "plain")
    found = compare(ranking, drawn(jobs, noise=0.001))
    assert [(c.first.label, c.second.label) for c in found] == [
        ("better", "plain"),
        ("same", "plain"),
        ("worse", "plain"),
    ]
    assert [c.value for c in found] == pytest.approx([0.19, 0.0, -0.2])
    assert found[2].over_seeds == welch([0.10, 0.11, 0.12], [0.30, 0.31, 0.32])
    assert verdicts(ranking, found) == [
        "Significantly better than plain: better.",
        "Significantly worse than plain: worse.",
        "Not significantly different from plain: same.",
    ]
    better, same, worse, judged = sentences(ranking, found)
    assert better.startswith("better is better than plain by 0.190 mask AP (over images 95 %")
    assert same.startswith("The difference between same and plain, 0.000 mask AP, is not signif")
    assert worse.startswith(
        "worse is worse than plain by 0.200 mask AP (over images 95 % interval -"
    )
    assert judged.startswith("3 comparisons with plain. Tested over")


def test_a_label_may_have_braces():
    jobs = [*group("{p: 1}", 0.3, 0.31), *group("{}", 0.5, 0.51)]
    (ranking,) = rankings(jobs)
    ranking = with_baseline(ranking, "{p: 1}")
    found = compare(ranking, drawn(jobs, noise=0.001))
    assert verdicts(ranking, found) == ["Significantly better than {p: 1}: {}."]


def test_what_was_not_tested_is_below_the_baseline():
    jobs = [*group("plain", 0.5), *group("other", 0.2)]
    (ranking,) = rankings(jobs)
    ranking = with_baseline(ranking, "plain")
    told = sentences(ranking, compare(ranking, {}))[0]
    assert told == "other is 0.300 mask AP below plain; the difference was not tested."


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.04,), [True]),
        ((0.04, 0.03), [False, False]),  # 0.03 is above 0.05 / 2
        ((0.04, 0.02), [True, True]),
        ((0.02, 0.016, 0.03), [True, True, True]),
        ((0.02, 0.017, 0.03), [False, False, False]),
        ((0.001, None, 0.06), [True, None, False]),
    ],
)
def test_of_several_comparisons_the_smaller_p_must_be_smaller(values, expected):
    (one,) = rankings([*group("a", 0.2), *group("b", 0.1)])
    best, other = one.settings
    tests = [None if p is None else Difference(0.1, (0.0, 0.2), p) for p in values]
    assert significant([Comparison(best, other, 0.1, test, None) for test in tests]) == expected


def test_a_single_setting_has_nothing_to_be_compared_with():
    (ranking,) = rankings(group("resnet50", 0.5, 0.6))
    assert compare(ranking, {}) == []
    assert sentences(ranking, []) == []
