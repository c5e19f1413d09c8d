"""What a training says of itself at its start and its end."""

import math
from typing import Any

import pytest
import torch
from tiny_commands import MODEL, coco_data, metric_rows, printed_by, result

from maskrcnn_lit.launch.summary import (
    MOST_CAUSES,
    Facts,
    describe_best,
    describe_device,
    describe_weights,
    is_near_zero,
    likely_causes,
    trained_weights,
)

pytest_plugins = ("tiny_commands",)

# A run that should have learnt: nothing in it speaks for a cause.
SOUND = Facts(
    images=20_000,
    random=False,
    optimizer="AdamW",
    rate=5e-4,
    steps=2000,
    first_loss=2.5,
    last_loss=0.8,
    val_loss=1.0,
    side=40.0,
    image_size=512,
    left_out=0,
    annotations=100_000,
    crowd=100,
)


def weights(model: Any = None, backbone: Any = None) -> dict[str, Any]:
    return {"model": {"weights": model, "backbone": {"weights": backbone}}}


@pytest.mark.parametrize(
    ("config", "images", "told"),
    [
        (weights("torchvision_v2"), 60, "the full model from torchvision_v2"),
        (weights("none", "imagenet"), 60, "the backbone from imagenet, the heads random"),
        (weights("none", "none"), 20_000, "random; they need about three times the epochs"),
        (
            weights(),
            60,
            "random; 60 training images are few for that: on photos, pretrained weights",
        ),
    ],
)
def test_weights_and_what_random_ones_mean(config: dict[str, Any], images: int, told: str):
    assert describe_weights(config, images).startswith(told)


def test_weights_that_are_not_named_are_random():
    assert trained_weights({}) == trained_weights(weights("none", "none")) == (None, None)
    assert trained_weights(weights("a.pth", None)) == ("a.pth", None)


def test_the_cpu_has_no_other_name():
    assert describe_device(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"rate": 1.25e-5, "steps": 360, "last_loss": 2.4},
            "360 steps are few at a learning rate of at most 1.25e-05 (train/loss went from "
            "2.5 to 2.4): raise optimizer.lr or trainer.epochs",
        ),
        (
            {"rate": 1e-3, "steps": 32},
            "32 steps are few at a learning rate of at most 0.001 (",
        ),
        (
            {"optimizer": "SGD", "last_loss": 2.4, "rate": 1e-6},
            "2000 steps are few at a learning rate of at most 1e-06",
        ),
        (
            {"last_loss": 3.0},
            "the learning rate 0.0005 is too high (train/loss went from 2.5 to 3): lower "
            "optimizer.lr",
        ),
        ({"rate": 0.02}, "the learning rate 0.02 is high for AdamW: lower optimizer.lr to 1e-3"),
        (
            {"left_out": 900, "annotations": 100, "crowd": 0},
            "900 faulty annotations or images were left out of training, 100 annotations were used",
        ),
        ({"annotations": 0, "crowd": 0, "side": math.nan}, "the training images have no annotat"),
        ({"annotations": 100, "crowd": 60}, "60 of 100 training annotations are crowd regions"),
        (
            {"side": 5.26, "image_size": 128},
            "half of the training objects are smaller than 5.3 pixels after the resize to "
            "data.image_size=128: raise data.image_size",
        ),
        (
            {"random": True, "images": 60},
            "the initial weights were random, and 60 images are few for that",
        ),
        ({"last_loss": 0.3}, "val/loss is 1 and train/loss 0.3: the validation images or their"),
    ],
)
def test_a_cause_is_told_by_what_the_run_shows(change: dict[str, Any], told: str):
    (cause,) = likely_causes(SOUND._replace(**change))
    assert cause.startswith(told)


def test_a_sound_run_has_no_cause():
    assert likely_causes(SOUND) == []
    assert likely_causes(SOUND._replace(optimizer="SGD", rate=0.02)) == []
    assert likely_causes(SOUND._replace(random=True)) == []  # images enough
    unknown = {"first_loss": math.nan, "last_loss": math.nan, "val_loss": math.nan}
    assert likely_causes(SOUND._replace(**unknown)) == []


def test_the_three_surest_causes_are_told():
    everything = SOUND._replace(
        rate=1e-6, left_out=10**6, side=2.0, random=True, images=5, last_loss=0.4
    )
    causes = likely_causes(everything)
    assert len(causes) == MOST_CAUSES == 3
    assert "rate" in causes[0]
    assert "faulty" in causes[1]
    assert "smaller" in causes[2]


@pytest.mark.parametrize(
    ("box", "mask", "near"),
    [
        (0.0, 0.049, True),
        (0.0, 0.05, False),
        (0.3, 0.0, False),
        (math.nan, math.nan, False),
        (0.0, math.nan, False),
        (math.nan, 0.0, False),
    ],
)
def test_near_zero(box: float, mask: float, near: bool):
    assert is_near_zero({"val/box_ap50": box, "val/mask_ap50": mask}) == near


def test_weights_that_are_better_than_the_last_ones_are_told():
    (told,) = describe_best(0.31, {"val/mask_ap": 0.3})
    assert told.startswith("An earlier validation had mask AP 0.310, the last weights have 0.300;")
    assert describe_best(0.302, {"val/mask_ap": 0.3}) == describe_best(None, {}) == []
    assert describe_best(0.3, {"val/mask_ap": math.nan}) == []


@pytest.mark.long
def test_a_run_that_learns_nothing_says_why(strange: Any, run_dir: Any):
    """The rate of a batch of 2 as it was scaled once, 1.25e-5, from random weights."""
    options = ("optimizer.lr=1.25e-5", "optimizer.scaling=none", "trainer.epochs=2")
    told = printed_by("train", *coco_data(strange), *MODEL, *options, f"run_dir={run_dir}")
    start, _, end = told.partition("Trained 8 steps")
    assert "device: cpu; precision 32-true\n" in start
    assert "weights: random; 8 training images are few for that" in start
    assert f"run folder: {run_dir}; to monitor it: " in start
    assert f"--logdir {run_dir.parent}\n" in start
    learn = [line for line in start.splitlines() if line.startswith("parameters: ")]
    assert learn == ["parameters: 2.1 million, 2.1 million of them trainable"]
    assert result(run_dir)["metrics"]["val/mask_ap50"] < 0.05
    assert "AP is near zero (mask AP50 0.0" in end
    assert "  - 8 steps are few at a learning rate of at most 1.25e-05 (train/loss" in end
    assert "  - the initial weights were random, and 8 images are few for that" in end
    losses = [row["train/loss"] for row in metric_rows(run_dir) if row.get("train/loss")]
    assert len(losses) == 2  # one row an epoch, though trainer.log_every_n_steps is 10
