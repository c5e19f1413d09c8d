"""What varies, which jobs are one setting, and which may be ranked together."""

from dataclasses import replace
from typing import Any

import pytest
from comparison_sample import job

from maskrcnn_lit.report.comparison.settings import (
    NOT_RUN,
    VALIDATIONS,
    Job,
    endings,
    label,
    limit,
    option,
    pareto,
    rankings,
    repeated_seeds,
    settings,
    varying,
)
from maskrcnn_lit.runs.result import RunResult


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """A config of these dotted names."""
    config: dict[str, Any] = {}
    for name, value in values.items():
        group, _, option = name.partition(".")
        config.setdefault(group, {})[option] = value
    return config


def backbone(name: str, seed: int, ap: float, **more):
    config = {"backbone": {"name": name}, "optimizer": {"lr": 0.001}, "data": {"seed": seed}}
    return job(
        f"{name}-{seed}",
        f"backbone={name}",
        f"seed={seed}",
        ap=ap,
        seed=seed,
        config=config,
        **more,
    )


def test_what_varies_is_what_somebody_typed_and_is_not_the_same_in_all():
    jobs = [
        job(
            "a",
            "backbone=resnet18",
            "optimizer.lr=1e-3",
            "seed=1",
            "run_dir=a",
            config={"optimizer": {"lr": 0.001}},
        ),
        job("b", "backbone=resnet50", "seed=2", "run_dir=b", config={"optimizer": {"lr": 0.001}}),
        job(
            "c",
            "+trainer.epochs=7",
            config={"backbone": {"name": "resnet18"}, "trainer": {"epochs": 7}},
        ),
    ]
    assert varying(jobs) == {
        "backbone": ["resnet18", "resnet50", "resnet18"],
        "optimizer.lr": ["0.001", "0.001", "default"],
        "trainer.epochs": ["default", "default", "7"],
    }
    assert varying(jobs[:1]) == {}
    assert option(job("d", config={"data": {"train_images": None}}), "data.train_images") == "null"


def test_jobs_that_differ_in_the_seed_alone_are_one_setting():
    jobs = [
        backbone("resnet18", 1, 0.2),
        backbone("resnet50", 1, 0.3),
        backbone("resnet18", 2, 0.4),
    ]
    first, second = settings(jobs, varying(jobs))
    assert (first.label, [j.seed for j in first.jobs], first.values("val/mask_ap")) == (
        "resnet18",
        [1, 2],
        [0.2, 0.4],
    )
    assert first.mean("val/mask_ap").value == pytest.approx(0.3)
    assert first.mean("val/mask_ap").interval is not None
    assert second.mean("val/mask_ap").interval is None
    assert second.mean("val/none") is None
    assert first.cost("parameters") == 4_000_000
    assert first.cost("energy_joules") is None


def test_a_config_that_differs_in_anything_else_is_another_setting():
    jobs = [backbone("resnet18", 1, 0.2), backbone("resnet18", 2, 0.2)]
    jobs[1].config["optimizer"]["lr"] = 0.01  # an experiment's yaml has changed: nobody typed it
    found = settings(jobs, varying(jobs))
    assert [setting.label for setting in found] == ["resnet18-1", "resnet18-2"]


def test_jobs_that_chose_the_same_batch_by_other_measurements_are_one_setting():
    jobs = [backbone("resnet18", seed, 0.2) for seed in (1, 2)]
    chosen = [
        replace(one, config={**one.config, "auto_batch": {"chosen": {"limit_gb": 8.0 + n}}})
        for n, one in enumerate(jobs)
    ]
    assert len(settings(chosen, varying(chosen))) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"prepare": {"root": "DIR", "size": 128}}},  # a resumed job has none
        {"auto_batch": {"margin": 0.1, "most": None}},  # a job of an older version has none
    ],
)
def test_how_data_were_made_or_a_batch_chosen_is_no_other_setting(other: dict[str, Any]):
    first, second = (backbone("resnet18", seed, 0.2) for seed in (1, 2))
    merged = {key: {**second.config.get(key, {}), **value} for key, value in other.items()}
    second = replace(second, config={**second.config, **merged})
    assert len(settings([first, second], varying([first, second]))) == 1


def test_jobs_of_different_searches_are_one_setting():
    jobs = [
        job(
            f"a{seed}",
            f"+callbacks.prune={{keep: {seed}}}",
            ap=0.2,
            seed=seed,
            config={"callbacks": {"prune": {"keep": seed}}},
        )
        for seed in (1, 2)
    ]
    assert not varying(jobs)
    assert len(settings(jobs, varying(jobs))) == 1


def test_a_job_without_a_config_is_like_no_other():
    jobs = [replace(backbone("resnet18", seed, 0.2), config={}) for seed in (1, 2)]
    assert len(settings(jobs, varying(jobs))) == 2


def test_of_two_runs_of_a_seed_the_last_counts():
    jobs = [
        backbone("resnet18", 1, 0.2),
        replace(backbone("resnet18", 1, 0.5), name="again"),
        backbone("resnet18", 2, 0.4),
    ]
    (setting,) = settings(jobs, {})
    assert setting.values("val/mask_ap") == [0.5, 0.4]
    assert repeated_seeds(setting) == [1]


def test_only_what_has_finished_with_an_ap_is_ranked():
    jobs = [
        backbone("resnet18", 1, 0.2),
        backbone("resnet50", 1, 0.9, status="failed"),
        job("no_ap", metrics={"val/roi_accuracy": 0.9}),
        job("nan", ap=float("nan")),
        Job("never", None, ("backbone=x", "seed=4"), {}, RunResult(status="failed")),
    ]
    (ranking,) = rankings(jobs)
    assert [j.name for j in ranking.jobs] == ["resnet18-1"]
    assert jobs[-1].status == NOT_RUN
    assert jobs[-1].seed == 4


def test_the_best_setting_comes_first():
    jobs = [backbone("resnet18", 1, 0.2), backbone("resnet50", 1, 0.3), backbone("vgg", 1, 0.25)]
    (ranking,) = rankings(jobs)
    assert [setting.label for setting in ranking.settings] == ["resnet50", "vgg", "resnet18"]
    assert ranking.letters == ["A", "B", "C"]
    assert ranking.ap == "val/mask_ap"
    assert ranking.title == "50 validation images of made up"


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"val": {"images": 50, "ids_sha256": "other"}}},
        {"data": {"name": "other"}},
        {"data": {"categories": [[1, "ant"]]}},
        {"metrics": {"val/images": 49.0}},
        {"truth": "other objects"},
    ],
)
def test_what_was_scored_on_something_else_is_ranked_apart(other: dict):
    jobs = [
        backbone("resnet18", 1, 0.2),
        backbone("resnet18", 2, 0.2),
        backbone("resnet50", 1, 0.9, **other),
    ]
    first, second = rankings(jobs)
    assert [j.name for j in first.jobs] == ["resnet18-1", "resnet18-2"]
    assert [j.name for j in second.jobs] == ["resnet50-1"]
    assert first.title != second.title or "truth" not in other


def test_what_varies_between_rankings_alone_is_no_option_of_either():
    jobs = [backbone("resnet18", 1, 0.2), backbone("resnet50", 1, 0.3)]
    other = job(
        "o",
        "backbone=vgg",
        "data.name=other",
        ap=0.4,
        config={"data": {"name": "other"}},
        data={"name": "other"},
    )
    first, second = rankings([*jobs, other])
    assert [list(s.options) for s in first.settings] == [
        ["backbone"],
        ["backbone"],
    ]
    assert second.settings[0].label == "o"


def test_rankings_of_data_with_one_name_are_titled_by_the_option_that_differs():
    def drawn(overlap: float | None, seed: int, truth: str) -> Job:
        typed = ["data=shapes", f"seed={seed}", *([f"data.overlap={overlap}"] if overlap else [])]
        config = {"data": {"overlap": overlap, "seed": seed}}
        return job(f"{overlap}-{seed}", *typed, ap=0.2, seed=seed, config=config, truth=truth)

    jobs = [drawn(0.5, 1, "a"), drawn(0.5, 2, "a"), drawn(None, 1, "b")]
    first, second = (ranking.title for ranking in rankings(jobs))
    assert first.endswith(", overlap=0.5")
    assert second == first.replace("0.5", "null")
    both = [drawn(0.5, 1, "a"), drawn(0.5, 1, "b")]
    assert [ranking.title.endswith(" (2)") for ranking in rankings(both)] == [False, True]
    assert not any("overlap" in ranking.title for ranking in rankings(both))


def test_rankings_whose_images_the_seed_draws_are_titled_by_it():
    jobs = [
        job(
            f"{seed}-{lr}", f"optimizer.lr={lr}", f"seed={seed}", ap=0.2, seed=seed, truth=str(seed)
        )
        for seed in (1, 2)
        for lr in (0.1, 0.2)
    ]
    first, second = (ranking.title for ranking in rankings(jobs))
    assert first.endswith(", seed=1")
    assert second.endswith(", seed=2")


def test_images_that_nobody_could_read_again_are_taken_for_those_of_the_same_ids():
    jobs = [backbone("resnet18", 1, 0.2, truth=None), backbone("resnet50", 1, 0.3)]
    assert len(rankings(jobs)) == 1
    assert len(rankings([*jobs, backbone("vgg", 1, 0.3, truth="other objects")])) == 3


def test_the_number_of_detections_that_count_separates_too():
    jobs = [backbone("resnet18", 1, 0.2), backbone("resnet50", 1, 0.3)]
    jobs[1].config["metrics"] = {"max_detections": [1, 10, 400]}
    assert [limit(j) for j in jobs] == [100, 400]
    assert len(rankings(jobs)) == 2


def test_runs_without_masks_are_ranked_by_box_ap():
    box = {"val/box_ap": 0.5, "val/mask_ap": float("nan")}
    (ranking,) = rankings(
        [job("a", metrics=box), job("b", config={"x": 1}, metrics={"val/box_ap": 0.6})]
    )
    assert ranking.ap == "val/box_ap"
    assert [s.values(ranking.ap) for s in ranking.settings] == [
        [0.6],
        [0.5],
    ]


def test_runs_with_and_without_masks_are_ranked_by_the_ap_that_all_have():
    jobs = [
        job("masks", "model=mask_rcnn", ap=0.3, config={"model": 1}),
        job("boxes", "model=faster_rcnn", config={"model": 2}, metrics=BOXES),
    ]
    (ranking,) = rankings(jobs)
    assert ranking.ap == "val/box_ap"
    assert [s.values(ranking.ap) for s in ranking.settings] == [[0.5], [0.31]]
    (asked,) = rankings(jobs, "val/mask_ap")
    assert [s.values("val/mask_ap") for s in asked.settings] == [[0.3], []]


BOXES = {"val/box_ap": 0.5, "val/images": 50.0}


@pytest.mark.parametrize("name", VALIDATIONS)
@pytest.mark.parametrize(
    ("option", "value", "apart"),
    [
        ("trainer.patience", None, False),
        ("trainer.patience", 3, True),
        ("optimizer.schedule", "plateau", True),
    ],
)
def test_how_often_a_run_was_validated_counts_if_it_waits_for_that(
    option: str, value: Any, apart: bool, name: str
):
    jobs = [
        job(
            f"every{n}",
            f"{name}={n}",
            ap=0.1,
            seed=n,
            config=nested({name: n, option: value}),
        )
        for n in (1, 5)
    ]
    assert (len(settings(jobs, varying(jobs))) == 2) is apart
    assert bool(varying(jobs)) is apart


def test_the_pareto_front_holds_what_nothing_beats():
    points = [(4, 0.3), (1, 0.1), (2, 0.3), (3, 0.2), (5, 0.5), (2, 0.3), (1, 0.05)]
    assert pareto(points) == [1, 2, 5, 4]  # two are equal, and neither beats the other
    assert pareto([]) == []
    assert pareto([(1, 0.0)]) == [0]


def test_options_are_called_by_their_end_and_by_more_of_it_where_two_end_alike():
    names = [
        "backbone",
        "model.rpn.pre_nms.train",
        "model.rpn.post_nms.train",
        "data.train_images",
        "a.post_nms.train",
    ]
    assert endings(names) == [
        "backbone",
        "pre_nms.train",
        "rpn.post_nms.train",
        "train_images",
        "a.post_nms.train",
    ]
    assert (
        label({"backbone": "resnet18", "optimizer.lr": "0.1", "x.lr": "2"})
        == "resnet18, optimizer.lr=0.1, x.lr=2"
    )
    assert endings([]) == []
    assert endings(["seed"]) == ["seed"]


@pytest.mark.parametrize("count", [4, 5])
def test_a_setting_of_many_options_is_called_by_its_letter(count: int):
    names = [f"model.a{n}" for n in range(count)]
    jobs = [
        job(
            f"run {x}",
            *(f"{name}={x}" for name in names),
            ap=ap,
            config={"model": {f"a{n}": x for n in range(count)}},
        )
        for x, ap in ((1, 0.2), (2, 0.4))
    ]
    (ranking,) = rankings(jobs)
    long = [", ".join(f"a{n}={x}" for n in range(count)) for x in (2, 1)]
    assert [setting.label for setting in ranking.settings] == (
        long if count == 4 else ["setting A", "setting B"]
    )
