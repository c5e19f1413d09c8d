"""The jobs of a command line: how many, with which options, and what they are called."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.overrides import assign, is_sweep
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.grid import Sweep, of_experiment, read_sweep

NEEDED = ("images", "annotations")  # of experiment=finetune


def names(sweep: Sweep) -> list[str]:
    return [job.name for job in sweep.jobs]


@pytest.mark.long
def test_all_combinations_named_by_what_varies():
    sweep = read_sweep(["backbone=resnet18,resnet34", "optimizer.lr=0.001", "seed=1,2"])
    assert names(sweep) == [
        f"backbone=resnet{depth},seed={seed}" for depth in (18, 34) for seed in (1, 2)
    ]
    assert [job.run_dir for job in sweep.jobs] == [sweep.folder / name for name in names(sweep)]
    job = sweep.jobs[1]
    assert job.overrides == ["backbone=resnet18", "optimizer.lr=0.001", "seed=2"]
    assert (job.config.backbone.name, job.config.optimizer.lr, job.config.seed) == (
        "resnet18",
        1e-3,
        2,
    )
    assert job.config.run_dir == str(job.run_dir)


@pytest.mark.long
def test_what_only_a_sweep_reads_is_not_in_a_run():
    (job,) = read_sweep(
        ["experiment=demo", "sweep_dir=there", "launcher=slurm", "sweep.trial_steps=0"]
    ).jobs
    assert job.name == "run"
    assert job.run_dir == Path("there/run")
    assert job.overrides == ["experiment=demo"]
    assert not {"sweep", "sweep_dir", "sweep_scale", "launcher"} & set(job.config)
    assert is_sweep(["sweep_scale=demo"])
    assert is_sweep(["sweep.plan_only=true"])
    assert is_sweep(["launcher=slurm"])
    assert not is_sweep(["seed=1", "run_dir=sweep"])


@pytest.mark.long
def test_the_folder_is_the_same_for_the_same_command_and_another_one_for_another():
    command = ["experiment=backbones", "backbone=resnet18", "seed=1"]
    folder = read_sweep(command).folder
    assert folder == read_sweep([*command, "launcher=slurm"]).folder
    assert folder.name.startswith("backbones-")
    others = [
        [*command[:2], "seed=2"],
        [*command, "sweep_scale=demo"],
        [*command, "optimizer.lr=1e-3"],
    ]
    assert len({folder, *(read_sweep(other).folder for other in others)}) == 4


@pytest.mark.long
def test_an_experiment_brings_its_grid_and_the_user_has_the_last_word():
    sweep = read_sweep(["experiment=backbones", "backbone=resnet50"])
    assert names(sweep) == ["seed=1", "seed=2", "seed=3"]
    assert sweep.jobs[0].config.data.train_images == 20000
    assert sweep.question == "Which backbone gives the most AP for its cost, at the same budget?"
    fewer = read_sweep(
        ["experiment=backbones", "backbone=resnet18,resnet50", "seed=7", "data.train_images=500"]
    )
    assert names(fewer) == ["backbone=resnet18", "backbone=resnet50"]
    assert {(job.config.seed, job.config.data.train_images) for job in fewer.jobs} == {(7, 500)}


@pytest.mark.long
def test_the_demo_of_an_experiment_is_small_and_synthetic():
    sweep = read_sweep(["experiment=epochs_lr", "sweep_scale=demo", "data.train_images=10"])
    assert names(sweep) == [
        f"epochs={epochs},lr={lr}" for epochs in (1, 2) for lr in ("0.001", "0.002")
    ]
    for job in sweep.jobs:
        assert (
            job.config.data.name,
            job.config.model.fpn.channels,
            job.config.data.train_images,
        ) == ("shapes", 64, 10)
        assert job.config.backbone.weights is None
        assert job.config.model.box_head.label_smoothing == 0.2


@pytest.mark.long
@pytest.mark.parametrize(
    "experiment", ["study", "coco_r50_lsj100", "study_r101_50k_100e", "nuclei", "overfit"]
)
def test_every_kind_of_experiment_has_a_demo(experiment: str):
    for job in read_sweep([f"experiment={experiment}", "sweep_scale=demo"]).jobs:
        data = job.config.data
        assert (data.name, data.image_size, data.image_ids, data.train.images) == (
            "shapes",
            128,
            None,
            "train",
        )


@pytest.mark.long
def test_paths_are_taken_as_they_are(tmp_path: Path):
    for name in ("größe", "a, b", 'a "b"', "a\\"):
        text = assign("run_dir", tmp_path / name)
        assert compose("train", [text]).run_dir == str(tmp_path / name), text
    (job,) = read_sweep(["data.root=2024_05_01"]).jobs
    assert Path(job.config.data.root).name == "2024_05_01"


def test_weights_of_a_whole_model_freeze_the_norms_as_in_a_run_of_its_own():
    (job,) = read_sweep(
        ["model=torchvision_v1", "model.weights=torchvision_v1", "sweep_dir=there"]
    ).jobs
    assert (job.config.model.backbone.norm, job.config.model.backbone.freeze_at) == ("frozen", 2)


@pytest.mark.long
def test_names_are_folders():
    lists = names(read_sweep(["data.image_size=[64,96],[96,128]"]))
    assert len(set(lists)) == 2
    assert all("/" not in name and "[" not in name for name in lists)
    assert names(read_sweep(["model.fpn.norm=group,batch", "model.box_head.norm=group"])) == [
        "norm=group",
        "norm=batch",
    ]
    both = names(read_sweep(["model.fpn.norm=group,batch", "model.box_head.norm=group,batch"]))
    assert both[1] == "model.fpn.norm=group,model.box_head.norm=batch", "both end in norm"
    assert names(read_sweep(["seed=1,1", "optimizer.lr=1e-3,0.001"])) == ["run"], (
        "one is as good as two"
    )
    values = ",".join(f"a/b{number}" for number in range(2))
    assert len(set(names(read_sweep([f"data.root={values}"])))) == 2
    long = read_sweep([f"data.name={'x' * 300},{'x' * 301}"])
    assert len(set(names(long))) == 2
    assert max(map(len, names(long))) < 140


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["run_dir=a", "seed=1,2"],
            "run_dir sets the folder of one run, but a sweep has many: use sweep_dir=",
        ),
        (["resume=a"], "resume sets the folder of one run"),
        (["optimizer.lr=interval(0,1)"], "list the values"),
        (["~logger"], "removes an option"),
        (["sweep_scale=tiny"], "sweep_scale=tiny must be one of full, demo"),
        (["backbone=resnet18,resnet5"], "there is no backbone 'resnet5'"),
        (["optimiser.lr=1,2"], "did you mean optimizer.lr"),
        (["seed=1,two"], "seed=two must be a whole number"),
        (
            ["experiment=backbones,demo"],
            "backbones has its own grid: sweep one such experiment at a time",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(overrides: list[str], said: str):
    with pytest.raises(UserError) as error:
        read_sweep(overrides)
    assert said in str(error.value)


@pytest.mark.long
def test_an_experiment_may_need_options(tmp_path: Path):
    data = [f"data.{part}.{name}={tmp_path}" for part in ("train", "val") for name in NEEDED]
    assert names(read_sweep(["experiment=finetune", *data, "seed=1,2"])) == ["seed=1", "seed=2"]


def test_a_grid_is_lists():
    options = OmegaConf.create({"sweep_scale": "full", "sweep": {"grid": {"seed": 3}, "demo": {}}})
    with pytest.raises(UserError, match=r"sweep\.grid\.seed is 3; expected a list of values"):
        of_experiment(options)


def test_several_experiments_are_an_axis():
    assert names(read_sweep(["experiment=demo,nuclei", "data.root=there"])) == [
        "experiment=demo",
        "experiment=nuclei",
    ]
