"""What a search varies, from its command line."""

from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.space import Choices, Range, is_search, read_search

TPE = ["sweep.search=tpe", "sweep_dir=there"]


def space(*overrides: str) -> dict[str, Choices | Range]:
    return read_search([*TPE, *overrides]).space


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("log(1e-5,1e-2)", Range(1e-5, 1e-2, True, False)),
        ("log(1e-5, 1e-2)", Range(1e-5, 1e-2, True, False)),
        ("uniform(0,1)", Range(0.0, 1.0, False, False)),
        ("interval(0,1)", Range(0.0, 1.0, False, False)),
        ("tag(log, interval(1e-5,1e-2))", Range(1e-5, 1e-2, True, False)),
        ("int(1,4)", Range(1, 4, False, True)),
        ("int(interval(1,4))", Range(1, 4, False, True)),
        ("int_log(1,64)", Range(1, 64, True, True)),
        ("range(1,5)", Range(1, 4, False, True)),
        ("range(1,9,4)", Choices(("1", "5"))),
        ("1e-3,1e-4", Choices(("0.001", "0.0001"))),
        ("choice(1,2)", Choices(("1", "2"))),
    ],
)
def test_ranges_and_lists(value: str, part: Choices | Range):
    assert space(f"optimizer.lr={value}") == {"optimizer.lr": part}


def test_single_values_are_fixed():
    search = read_search([*TPE, "backbone=resnet18,resnet34", "data.batch_size=2", "seed=3"])
    assert search.fixed == ["data.batch_size=2", "seed=3"]
    assert search.described["seed"] == 3
    assert search.folder == Path("there")


def test_the_grid_of_an_experiment_is_searched():
    found = space("experiment=backbones", "seed=1", "optimizer.lr=log(1e-5,1e-2)")
    assert found["backbone"] == Choices(
        ("resnet50", "resnet101", "mobilenet_v3_large", "efficientnet_b0")
    )


def test_a_job_has_the_values_of_its_trial():
    search = read_search([*TPE, "optimizer.lr=log(1e-5,1e-2)", "backbone=resnet18,resnet34"])
    job = search.job(7, {"optimizer.lr": 0.0012345, "backbone": "resnet34"})
    assert job.name == "007,lr=0.00123,backbone=resnet34"
    assert job.overrides == ["optimizer.lr=0.0012345", "backbone=resnet34"]
    assert (job.config.optimizer.lr, job.config.run_dir) == (0.0012345, f"there/{job.name}")


def test_pruning_is_a_callback_of_the_job():
    goals = "sweep.goals=[val/box_ap:max,cost/flops:min]"
    search = read_search([*TPE, "optimizer.lr=log(1e-5,1e-2)", "sweep.prune=true", goals])
    assert dict(search.job(0, {"optimizer.lr": 0.001}).config.callbacks.prune) == {
        "_target_": "maskrcnn_lit.callbacks.prune.SuccessiveHalving",
        "goals": ["val/box_ap:max", "cost/flops:min"],
        "first": 1,
        "keep": 3,
    }


def test_more_trials_are_the_same_search():
    def folder(*more: str) -> Path:
        return read_search(["sweep.search=tpe", "optimizer.lr=log(1e-5,1e-2)", *more]).folder

    assert folder() == folder("sweep.trials=50")
    assert folder() != folder("sweep.prune=true")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer.lr=1e-3"], "nothing to search"),
        (["optimizer.lr=lgo(1e-5,1e-2)"], r"unknown range lgo\(...\); did you mean log"),
        (["optimizer.lr=log(1e-5)"], r"needs two numbers: optimizer\.lr=log\(low,high\)"),
        (["optimizer.lr=log(1e-2,1e-5)"], "its first number must be lower"),
        (["optimizer.lr=log(0,1e-5)"], "must begin above 0"),
        (["seed=1,2"], "seed has several values, but a search tries each setting once"),
        (["~logger", "backbone=resnet18,resnet34"], "removes an option"),
        (["optimizer.lr=log(1e-5,1e-2)", "sweep.search=grid"], "list the values"),
        (["optimizer.lr=log(1e-5,1e-2)", "sweep.search=tpee"], "must be one of tpe"),
        (
            ["optimizer.lr=log(1e-5,1e-2)", "sweep.prune=true", "sweep.goals=[cost/flops:min]"],
            "needs a metric of the validation",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(overrides: list[str], said: str):
    with pytest.raises(UserError, match=said):
        read_search([*TPE, *overrides])


@pytest.mark.long
def test_values_are_checked_at_both_ends():
    with pytest.raises(UserError, match=r"did you mean optimizer\.lr"):
        _ = read_search([*TPE, "optimiser.lr=log(1e-5,1e-2)"]).probes
    with pytest.raises(UserError, match=r"data\.batch_size=0"):
        _ = read_search([*TPE, "data.batch_size=int(0,4)"]).probes
    with pytest.raises(UserError, match="there is no backbone 'resnet5'"):
        _ = read_search([*TPE, "backbone=resnet18,resnet5"]).probes


def test_a_search_is_asked_for():
    assert is_search(["sweep.search=random"])
    assert not is_search(["seed=1,2"])


@pytest.mark.parametrize(
    ("overrides", "goal"),
    [
        (["optimizer.lr=1e-3,1e-4"], "val/mask_ap:max"),
        (["optimizer.lr=1e-3,1e-4", "model=faster_rcnn"], "val/box_ap:max"),
        (["optimizer.lr=1e-3,1e-4", "model.mask_head=null"], "val/box_ap:max"),
        (["model=mask_rcnn,faster_rcnn"], "val/box_ap:max"),
        (["model=mask_rcnn,pafpn"], "val/mask_ap:max"),
    ],
)
def test_the_goal_is_an_ap_that_every_model_has(overrides: list[str], goal: str):
    assert list(map(str, read_search([*TPE, *overrides]).goals)) == [goal]


@pytest.mark.parametrize("metric", ["mask_ap50", "boundary_ap"])
def test_a_goal_of_masks_needs_masks(metric: str):
    searched = ["optimizer.lr=1e-3,1e-4", f"sweep.goals=[cost/flops:min,val/{metric}:max]"]
    assert len(read_search([*TPE, *searched]).goals) == 2
    models = "model=mask_rcnn,faster_rcnn"
    wanted = (
        rf"sweep.goals has val/{metric}:max, but a model of .* give val/box_ap:max in its place"
    )
    with pytest.raises(UserError, match=wanted):
        read_search([*TPE, *searched, models])
    advised = [text.replace(f"val/{metric}:max", "val/box_ap:max") for text in searched]
    assert len(read_search([*TPE, *advised, models]).goals) == 2


@pytest.mark.parametrize("order", ["masks,boxes", "boxes,masks"])
def test_experiments_decide_on_masks_in_any_order(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "experiment").mkdir()
    head = "# @package _global_\n"
    (tmp_path / "experiment" / "masks.yaml").write_text(f"{head}seed: 1\n")
    (tmp_path / "experiment" / "boxes.yaml").write_text(f"{head}model: {{mask_head: null}}\n")
    monkeypatch.setenv("MASKRCNN_LIT_CONFIG_DIR", str(tmp_path))
    assert list(map(str, read_search([*TPE, f"experiment={order}"]).goals)) == ["val/box_ap:max"]
