"""What a sweep says it will take: by hand, from made-up trials."""

from typing import Any

import pytest

from maskrcnn_lit.launch.grid import Job, read_sweep
from maskrcnn_lit.launch.plan import estimate, kind, length, plan_table

TRIAL = {
    **{"start_seconds": 10.0, "step_seconds": 2.0, "validation_step_seconds": 1.0},
    **{"train_images": 100, "val_images": 40, "batch_size": 8, "processes": 2},
    "accumulate": 1,
    **{"peak_memory_bytes": 2_500_000_000, "device": "a GPU"},
}


def jobs(*overrides: str) -> list[Job]:
    counts = ("data.train_images=100", "data.val_images=40")
    return read_sweep(["experiment=demo", *counts, *overrides]).jobs


@pytest.mark.long
def test_jobs_of_one_kind_take_the_same_time_a_step():
    kinds = [kind(job) for job in jobs("seed=1,2", "optimizer.lr=1e-3,2e-3", "trainer.epochs=1,2")]
    assert len(kinds) == 8
    assert len(set(kinds)) == 1
    for several in (
        "backbone=resnet18,resnet34",
        "data.image_size=64,128",
        "trainer.devices=1,2",
        "model=tiny,mask_rcnn",
    ):
        assert len({kind(job) for job in jobs(several)}) == 2, several


@pytest.mark.long
def test_steps_and_epochs_of_a_job():
    (job,) = jobs("trainer.epochs=3")
    assert length(job, TRIAL) == (3, 21), "100 images, 2 processes x 8 a step: 7 steps an epoch"
    assert length(job, TRIAL | {"accumulate": 2}) == (3, 12), "what trainer.accumulate=auto chose"
    (job,) = jobs("trainer.epochs=3", "trainer.steps=14")
    assert length(job, TRIAL) == (2, 14)
    (job,) = jobs("trainer.epochs=null", "trainer.steps=28")
    assert length(job, TRIAL) == (4, 28)


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        ([], 10 + 3 * 7 * 2 + 3 * 40 / 16),
        (["evaluation.every_n_epochs=3"], 10 + 3 * 7 * 2 + 40 / 16),
        (["evaluation.every_n_epochs=2"], 10 + 3 * 7 * 2 + 2 * 40 / 16),
        (["evaluation.images=8"], 10 + 3 * 7 * 2 + (3 * 8 + 40) / 16),
    ],
)
def test_the_time_of_a_job(overrides: list[str], seconds: float):
    (job,) = jobs("trainer.epochs=3", *overrides)
    assert estimate(job, TRIAL) == pytest.approx(seconds)


def test_the_time_of_a_job_that_accumulates_two_batches_a_step():
    (job,) = jobs("trainer.epochs=3")
    seconds = 10 + 3 * 4 * 2 * 2 + 3 * 40 / 16
    assert estimate(job, TRIAL | {"accumulate": 2}) == pytest.approx(seconds)


@pytest.mark.long
def test_the_table_has_a_line_for_each_job_that_is_to_run():
    both = jobs("backbone=resnet18,resnet34", "trainer.epochs=3")
    trials: dict[str, Any] = {kind(job): TRIAL for job in both}
    first, second, rate, last = plan_table(both, both, trials).splitlines()
    assert (
        " ".join(first.split()) == "backbone=resnet18 100 images x 3 epochs = 21 steps 60 s 2.5 GB"
    )
    assert second.startswith("backbone=resnet34")
    assert " ".join(rate.split()) == (
        "maskrcnn-lit lr, as backbone=resnet18 100 steps 4 min 2.5 GB"
    ), "10 s, and 100 steps of 2 s"
    assert last == (
        "2 of 2 jobs to run: about 2 min one after the other, measured on a GPU, without scoring "
        "and without the rate test"
    )
    trials[kind(both[1])] = "no space left"
    _, second, _, last = plan_table(both, both, trials).splitlines()
    assert "the trial failed: no space left" in second
    assert "about 60 s, and 1 of unknown time one" in last
    assert plan_table(both, both[:1], {}).splitlines()[-1] == "1 of 2 jobs to run"


@pytest.mark.long
def test_jobs_share_a_trial_whatever_their_number_of_images():
    both = jobs("data.train_images=100,50", "data.val_images=40,8", "trainer.epochs=3")
    assert len({kind(job) for job in both}) == 1
    assert [length(job, TRIAL)[1] for job in both] == [21, 21, 12, 12]
    small = next(
        j for j in both if j.config.data.train_images == 50 and j.config.data.val_images == 8
    )
    assert estimate(small, TRIAL) == pytest.approx(10 + 3 * 4 * 2 + 3 * 8 / 16)
    all_, some = jobs("data.train_images=null,50", "trainer.epochs=3")
    assert kind(all_) != kind(some), "how many all are, a trial of all says"
    assert length(all_, TRIAL) == (3, 21)
