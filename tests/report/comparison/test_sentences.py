"""Sentences: every number in them is one of the data's, and what must not be compared is told."""

from dataclasses import replace
from pathlib import Path

from comparison_sample import job

from maskrcnn_lit.report.comparison.sentences import (
    cautions,
    counts,
    differences,
    ranking_sentences,
)
from maskrcnn_lit.report.comparison.settings import Job, rankings
from maskrcnn_lit.runs.result import RunResult


def group(name: str, *aps: float, cost=None, **more):
    config = {"backbone": {"name": name}, **more.pop("config", {})}
    return [
        job(f"{name}{s}", f"backbone={name}", ap=ap, seed=s, config=config, cost=cost, **more)
        for s, ap in enumerate(aps)
    ]


def test_jobs_are_counted_by_what_became_of_them():
    jobs = [
        *group("a", 0.1, 0.2),
        job("b", status="failed"),
        Job("c", None, (), {}, RunResult(status="failed")),
    ]
    assert counts(jobs) == "4 jobs: 2 finished, 1 failed, 1 not run."
    assert counts(jobs[:1]) == "1 job: 1 finished."
    assert counts(jobs[2:3]) == "1 job: 1 failed."


def test_the_best_setting_is_told_with_its_interval():
    (ranking,) = rankings([*group("a", 0.1), *group("b", 0.2, 0.3)])
    first, *_ = ranking_sentences(ranking, {})
    assert first == (
        "Of 2 settings on the 50 validation images of made up, b has the highest mask AP: 0.250 "
        "(the mean of 2 seeds, "
        "95 % interval -0.385 to 0.885)."
    )


def test_a_single_run_is_told_with_its_interval_over_images():
    (ranking,) = rankings(group("a", 0.1, intervals={"val/mask_ap": [0.05, 0.15]}))
    assert ranking_sentences(ranking, {}) == [
        "The mask AP on the 50 validation images of made up is 0.100 (one seed, 95 % interval over "
        "images 0.050 to "
        "0.150)."
    ]


def test_what_is_tested_stands_in_short_and_at_length():
    (ranking,) = rankings([*group("a", 0.1, 0.11), *group("b", 0.2, 0.21), *group("c", 0.2, 0.205)])
    first, *_ = ranking_sentences(ranking, {})
    assert first.endswith(
        ". It is significantly better than a. Its difference from c is not significant."
    )
    told = differences(ranking, {})
    assert len(told) == 3
    assert told[-1].startswith("2 comparisons with the best setting.")


def test_fronts_that_are_the_same_are_one_sentence():
    small, large = (
        {"parameters": 1, "flops": 1, "latency_seconds": 2},
        {"parameters": 2, "flops": 2, "latency_seconds": 1},
    )
    (ranking,) = rankings([*group("small", 0.2, cost=small), *group("large", 0.3, cost=large)])
    told = ranking_sentences(ranking, {})
    assert (
        told[-2]
        == "Pareto front of mask AP against parameters and FLOPs, from the cheapest: small; large."
    )
    assert told[-1] == "large has the best mask AP and the lowest latency."


def test_a_front_says_which_settings_it_leaves_out():
    """The setting without masks has the fewest parameters, and is in no front of mask AP."""
    boxes = {"val/box_ap": 0.5, "val/images": 50.0}
    jobs = [
        *group("a", 0.2, cost={"parameters": 20}),
        *group("b", 0.3, cost={"parameters": 10}),
        job("c0", "backbone=c", config={"backbone": {"name": "c"}}, metrics=boxes),
    ]
    jobs[-1].result.cost["parameters"] = 5
    (by_masks,), (by_boxes,) = rankings(jobs, "val/mask_ap"), rankings(jobs)
    first, *fronts = ranking_sentences(by_masks, {})
    assert first.startswith("Of 2 settings with a mask AP on the 50 validation images")
    assert fronts == [
        "Of the 2 settings with a mask AP: b has the best mask AP and the fewest parameters."
    ]
    assert ranking_sentences(by_boxes, {})[1:] == [
        "c has the best box AP and the fewest parameters."
    ]
    (alone,) = rankings(jobs[1:], "val/mask_ap")
    first, *fronts = ranking_sentences(alone, {})
    assert first.startswith("b alone has a mask AP on the 50 validation images of made up: 0.300 (")
    assert fronts == []


def test_a_cost_that_does_not_vary_has_no_front():
    (ranking,) = rankings([*group("a", 0.2), *group("b", 0.3)])
    assert not [
        text
        for text in ranking_sentences(ranking, {})
        if "Pareto" in text or "has the best" in text
    ]


def test_other_images_make_another_ranking_and_it_is_said():
    jobs = [*group("a", 0.2), *group("b", 0.3), *group("c", 0.9, data={"name": "easy"})]
    (told,) = cautions(jobs, rankings(jobs))
    assert (
        "50 validation images of made up (2 jobs); 50 validation images of easy (1 job). They are "
        "2 rankings" in told
    )
    assert cautions(jobs[:2], rankings(jobs[:2])) == []


def test_roi_accuracy_is_no_part_of_the_ranking_and_its_kinds_are_apart():
    jobs = [*group("a", 0.2, metrics={"val/roi_accuracy": 0.9}), *group("b", 0.3)]
    (told,) = cautions(jobs, rankings(jobs))
    assert told.startswith("roi_accuracy is the share of ground-truth boxes")
    assert "not part of the ranking" in told
    study = {"metrics": {"roi_accuracy": {"boxes": "study"}}}
    jobs += [job("s", metrics={"val/roi_accuracy": 0.46}, config=study)]
    told = cautions(jobs, rankings(jobs))
    assert "Finished without an AP, so in no ranking: s." in told
    assert "roi_accuracy counts the study's 15 slots per image in s: it has its own column." in told


def test_other_devices_limits_and_seeds_are_told():
    limits = {"metrics": {"max_detections": [1, 10, 400]}}
    jobs = [
        *group("a", 0.2, cost={"device": "one"}, config=limits),
        *group("b", 0.3, cost={"device": "two"}, config=limits),
    ]
    jobs.append(
        job(
            "again",
            "backbone=b",
            ap=0.4,
            seed=0,
            config=dict(jobs[1].config),
            cost={"device": "two"},
        )
    )
    told = cautions(jobs, rankings(jobs))
    assert (
        "Times were measured on different devices (one; two), so they do not compare the models."
        in told
    )
    assert "AP counts up to 400 detections per image and class; COCO uses 100." in told
    assert "b was trained more than once with seed 0: the last run counts." in told


def test_mask_and_box_ap_are_not_compared():
    jobs = [*group("a", 0.2), job("box", metrics={"val/box_ap": 0.6}, data={"name": "boxes"})]
    assert any(
        "only a box AP: these are not compared" in text for text in cautions(jobs, rankings(jobs))
    )


def test_a_run_that_goes_on_from_another_says_so(tmp_path: Path):
    first, longer = group("a", 0.1)[0], group("b", 0.2)[0]
    first = replace(first, folder=tmp_path)
    parent = {"run": str(tmp_path), "checkpoint_sha256": "0" * 64, "step": 8, "epoch": 2}
    longer.result.parent = parent
    said = cautions([first, longer], rankings([first, longer]))
    assert "b0 continues a0 from step 8: its costs include those of that run." in said
    alone = cautions([longer], rankings([longer]))
    assert f"b0 continues {tmp_path} from step 8: its costs include those of that run." in alone


def test_a_best_setting_that_has_learnt_nothing_is_told():
    jobs = [*group("a", 0.001), *group("b", 0.004)]
    for one in jobs:
        one.result.metrics["val/mask_ap50"] = 0.04
    first, *_ = ranking_sentences(rankings(jobs)[0], {})
    assert first.startswith("No model detects anything: no mask AP50 is above 0.05. Of 2 settings")
    jobs[0].result.metrics["val/mask_ap50"] = 0.06
    first, *_ = ranking_sentences(rankings(jobs)[0], {})
    assert first.startswith("Of 2 settings")
