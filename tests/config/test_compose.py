"""A small conf folder, and what a user may type: the config, or one sentence that says what to do."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from maskrcnn_lit.config import compose as config
from maskrcnn_lit.errors import UserError

FILES = {
    "train": """
        defaults:
          - optimizer: adamw
          - data: shapes
          - _self_
          - experiment: null
        seed: 1                 # of everything random
        fast: false             # skip the slow part
        clip: 1.5               # null: no limit
        size: 3
        workers: auto
        run_dir: outputs/${now:%Y}
        half: ${optimizer.lr}
        """,
    "evaluate": """
        defaults: [data: shapes, _self_]
        seed: 1
        run: ???                # a run folder
        """,
    "optimizer/adamw": """
        _target_: torch.optim.AdamW
        lr: 0.001               # for 16 images
        """,
    "optimizer/sgd": "lr: 0.02\nmomentum: 0.9\n",
    "data/shapes": "train: {images: here, count: 3}\nseed: ${seed}\n",
    "data/coco": "root: ???\ntrain: {images: there}\n",
    "experiment/demo": "# @package _global_\ndefaults:\n  - override /optimizer: sgd\nseed: 7\n",
    "experiment/broken": "# @package _global_\nseed: [1, 2\n",
    "experiment/stray": "# @package _global_\nsede: 3\n",
    "experiment/deep": "# @package _global_\ndata: {train: {cuont: 3}}\n",
    "experiment/adds": "# @package _global_\ndata: {more: {_target_: torch.nn.ReLU, inplace: true}}\n",
}


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    monkeypatch.setattr(config, "conf_dir", lambda: tmp_path)


def test_defaults_overrides_and_groups_compose():
    composed = config.compose(
        "train", ["optimizer=sgd", "optimizer.momentum=0.5", "data.train={count: 4}", "clip=2"]
    )
    assert composed.optimizer == {"lr": 0.02, "momentum": 0.5}
    assert composed.data.train == {"images": "here", "count": 4}
    assert composed.half == 0.02 and composed.clip == 2
    assert composed.run_dir.startswith("outputs/20")
    assert "hydra" not in composed


def test_an_experiment_wins_over_defaults_and_the_user_over_the_experiment():
    assert config.compose("train", ["experiment=demo"]).seed == 7
    assert config.compose("train", ["experiment=demo"]).optimizer.momentum == 0.9
    assert config.compose("train", ["experiment=demo", "seed=3"]).seed == 3
    assert config.compose("train", ["experiment=demo", "optimizer=adamw"]).optimizer.lr == 0.001


def test_a_composed_config_refuses_unknown_keys():
    with pytest.raises(ConfigAttributeError):
        config.compose("train").optimizer.rate = 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "no option 'optimiser.lr'; did you mean optimizer.lr?"),
        ("lr=1", "no option 'lr'; did you mean optimizer.lr?"),
        ("optimizer.rl=1", "did you mean optimizer.lr?"),
        ("trian.count=1", "did you mean data.train.count?"),
        ("optimizr=sgd", "no option 'optimizr'; did you mean optimizer?"),
        ("experimnt=demo", "did you mean experiment?"),
        ("zzz=1", "train has no option 'zzz'; `maskrcnn-lit train --help` lists its options"),
        (
            "optimizer=sdg",
            "there is no optimizer 'sdg'; did you mean sgd?; the choices are adamw, sgd",
        ),
        (
            "experiment=dmeo",
            "there is no experiment 'dmeo'; did you mean demo?; the choices are adds, broken, deep, demo, stray",
        ),
        ("optimizer=null", "there is no optimizer 'null'; the choices are adamw, sgd"),
        ("seed", "'seed' is no override: write NAME=VALUE"),
        ("run_dir=a (1)", "'run_dir=a (1)' cannot be read"),
        ("run_dir=a (1)", "'run_dir=\"a (1)\"'"),
        ("clip=[1,2", "close every bracket"),
        ("seed=1,2", "gives several values: give one, or a list in brackets, 'seed=[1,2]'"),
        ("seed=ten", "'seed=ten' does not fit: seed is a number, 1 by default"),
        ("clip=true", "clip is a number, 1.5 by default"),
        ("size=null", "size is a number, 3 by default"),
        ("size=2.5", "size is a whole number, 3 by default"),
        ("fast=null", "fast is true or false"),
        ("+extra=1", "train has no option 'extra'"),
        ("+optimiser.lr=1", "no option 'optimiser.lr'; did you mean optimizer.lr?"),
        ("fast=yes", "fast is true or false"),
        ("fast=1", "fast is true or false"),
        ("optimizer.lr=fast", "optimizer.lr is a number"),
        (
            "data.train=folder",
            "data.train is a group of options, set one of data.train.images, data.train.count",
        ),
        ("data=coco", "train needs data.root, without a default: add data.root=..."),
        ("run_dir=${nowhere}", "'nowhere' not found"),
        ("experiment=broken", "broken.yaml"),
        (
            "experiment=stray",
            "experiment=stray sets sede, which train does not have; did you mean seed?",
        ),
        (
            "experiment=deep",
            "experiment=deep sets data.train.cuont, which train does not have; did you mean data.train.count?",
        ),
        ("data.train.size=3", "train has no option 'data.train.size'"),
        ("~sede", "train has no option 'sede'; did you mean seed?"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(override: str, message: str):
    with pytest.raises(UserError) as error:
        config.compose("train", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["workers=3", "clip=null", "clip=3", "clip=auto", "seed=${optimizer.lr}", "clip=[1,2]", "~clip",
     "run_dir=7", "data.train=null",
     "experiment=adds", "run_dir='a (1)'", "run_dir=../a-b_c/d.e", "~experiment"],
)  # fmt: skip
def test_what_is_right_passes(override: str):
    config.compose("train", [override])


def test_a_folder_may_be_named_like_a_number():
    assert config.compose("train", ["run_dir=007"]).run_dir == "007"
    assert config.compose("evaluate", ["run=1e3"]).run == "1e3"
    assert config.compose("train", ["run_dir=a/b 7"]).run_dir == "a/b 7"


def test_a_group_that_another_verb_has_is_named():
    with pytest.raises(UserError, match="evaluate has no group 'optimizer'; its groups are data"):
        config.compose("evaluate", ["optimizer=sgd", "run=a"])
    with pytest.raises(UserError, match=r"evaluate needs run, without a default: add run=\.\.\."):
        config.compose("evaluate")


def test_what_is_not_asked_for_is_null(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config, "NOT_ASKED", {"train": ["data.root"]})
    assert config.compose("train", ["data=coco"]).data.root is None
    assert "data.root" not in [
        option.name for option in config.describe("train", ["data=coco"]).options
    ]


def test_show_tolerates_what_is_missing():
    shown = config.show("train", ["data=coco"])
    assert OmegaConf.is_missing(shown.data, "root")
    assert "root: ???" in config.to_yaml(shown) and "half: ${optimizer.lr}" in config.to_yaml(shown)


def test_describe_reads_groups_options_and_comments_from_the_yaml():
    described = config.describe("train", ["optimizer=sgd", "seed=5"])
    assert described.groups == {
        "data": (["coco", "shapes"], "shapes"),
        "experiment": (["adds", "broken", "deep", "demo", "stray"], None),
        "optimizer": (["adamw", "sgd"], "sgd"),
    }
    options = {option.name: option for option in described.options}
    assert list(options) == [
        "optimizer.lr",
        "optimizer.momentum",
        "seed",
        "fast",
        "clip",
        "size",
        "workers",
        "run_dir",
    ]
    assert options["seed"].value == 5 and options["seed"].comment == "of everything random"
    assert {o.name: o.comment for o in config.describe("train").options}[
        "optimizer.lr"
    ] == "for 16 images"


def test_a_run_folder_gives_its_config(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"run has no config.yaml, so it is no run folder"):
        config.load_run_config(run)
    (run / "config.yaml").write_text("seed: 3\nmodel: {name: tiny}\n")
    assert config.load_run_config(str(run)).model.name == "tiny"
    with pytest.raises(ConfigAttributeError):
        config.load_run_config(run).modle  # noqa: B018  (reading is the test)


def test_what_is_no_run_folder_is_named(tmp_path: Path):
    with pytest.raises(
        UserError, match="nowhere does not exist: give the folder that `maskrcnn-lit train` wrote"
    ):
        config.load_run_config(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, so it is no run folder"):
        config.load_run_config(tmp_path / "file")
    for content in (b"a: [", b"\xff\xfe\x00", b"", b"- 1\n"):
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(
            UserError, match=r"config.yaml (cannot be read|holds no config), give another run"
        ):
            config.load_run_config(tmp_path)
