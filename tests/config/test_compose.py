"""A small conf folder, and what a user may type: the config, or one sentence that says what to
do.
"""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from maskrcnn_lit.config import compose as config
from maskrcnn_lit.config import schema
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
        clip: 1.5               # the longest gradient
        size: 3
        limit: 2.0
        workers: auto
        run_dir: outputs/${now:%Y}
        half: ${optimizer.lr}
        """,
    "evaluate": """
        defaults: [data: shapes, _self_]
        seed: 1
        run: ???                # a run folder
        threshold: 0.5          # 0..1, or best: of each class
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
    "experiment/adds": "# @package _global_\ndata: {more: {_target_: torch.nn.ReLU, inplace: "
    "true}}\n",
}

ROWS = {  # `clip` and `workers` have none
    "seed": schema.Rule("whole"),
    "fast": schema.Rule("flag"),
    "size": schema.Rule("whole", 1),
    "limit": schema.Rule("number", null=True),
    "threshold": schema.Rule("number", 0, 1, words=("best",)),
    "run_dir": schema.Rule("path"),
    "run": schema.Rule("path", null=True),
    "optimizer.lr": schema.Rule("number"),
    "data.root": schema.Rule("path", null=True),
    "data.train": schema.Rule("group", null=True),
    "data.train.images": schema.Rule("path"),
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
    monkeypatch.setattr(schema, "OPTIONS", ROWS)


def test_defaults_overrides_and_groups_compose():
    composed = config.compose(
        "train", ["optimizer=sgd", "optimizer.momentum=0.5", "data.train={count: 4}", "clip=2"]
    )
    assert composed.optimizer == {"lr": 0.02, "momentum": 0.5}
    assert composed.data.train == {"images": "here", "count": 4}
    assert composed.half == 0.02
    assert composed.clip == 2
    assert composed.run_dir.startswith("outputs/20")
    assert "hydra" not in composed


def test_a_number_may_be_a_word_that_its_row_names():
    given = ["run=RUN"]
    assert config.compose("evaluate", given).threshold == 0.5
    assert config.compose("evaluate", [*given, "threshold=best"]).threshold == "best"
    with pytest.raises(UserError, match=r"threshold=high must be a number from 0 to 1, or best"):
        config.compose("evaluate", [*given, "threshold=high"])


@pytest.mark.long
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
            "there is no experiment 'dmeo'; did you mean demo?; the choices are adds, broken, "
            "deep, demo, stray",
        ),
        ("optimizer=null", "there is no optimizer 'null'; the choices are adamw, sgd"),
        ("seed", "'seed' is not an override: use NAME=VALUE"),
        ("run_dir=", "run_dir= is empty"),
        ("optimizer.lr=a (1)", "'optimizer.lr=a (1)' cannot be parsed"),
        ("clip=[1,2", "close every bracket"),
        ("clip=[a (1)]", "quote each text with special characters, 'clip=[\"cell (old)\",cell]'"),
        ('clip={"a":b}', "write names without quotes and with a backslash before each special"),
        ("seed=1,2", "has several values: give one, or a list in brackets, 'seed=[1,2]'"),
        ("backbone=resnet18,resnet50", "`maskrcnn-lit train -m backbone=resnet18,resnet50` makes"),
        ("seed=ten", "seed=ten must be a whole number, 0 or more"),
        ("clip=true", "clip is a number, 1.5 by default"),
        ("size=null", "size=null must be a whole number, 1 or more"),
        ("size=2.5", "size=2.5 must be a whole number, 1 or more"),
        ("fast=null", "fast=null must be true or false"),
        ("+extra=1", "train has no option 'extra'"),
        ("+optimiser.lr=1", "no option 'optimiser.lr'; did you mean optimizer.lr?"),
        ("fast=yes", "fast=yes must be true or false"),
        ("fast=1", "fast=1 must be true or false"),
        ("optimizer.lr=fast", "optimizer.lr is a number"),
        ("seed=${optimizer.lr}", "seed=0.001 must be a whole number"),
        ("limit=auto", "limit=auto must be a number, 0 or more, or null"),
        ("~size", "'~size' removes a required option"),
        ("~optimizer", "'~optimizer' removes a group that train needs"),
        (
            "data.train=folder",
            "data.train=folder is a group of options: set one of data.train.images",
        ),
        ("data=coco", "train needs data.root, which has no default: add data.root=..."),
        ("run_dir=${nowhere}", "'nowhere' not found"),
        ("experiment=broken", "broken.yaml"),
        (
            "experiment=stray",
            "experiment=stray sets sede, which train does not have; did you mean seed?",
        ),
        (
            "experiment=deep",
            "experiment=deep sets data.train.cuont, which train does not have; did you mean "
            "data.train.count?",
        ),
        ("data.train.size=3", "train has no option 'data.train.size'"),
        ("data.train={size: 3}", "train has no option 'data.train.size'"),
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
    ["workers=3", "clip=null", "clip=3", "clip=auto", "seed=${size}", "limit=null",
     "clip=[1,2]", "~clip",
     "run_dir=7", "data.train=null",
     "experiment=adds", "run_dir='a (1)'", "run_dir=../a-b_c/d.e", "~experiment"],
)  # fmt: skip
def test_what_is_right_passes(override: str):
    config.compose("train", [override])


def test_a_folder_may_be_named_like_a_number():
    assert config.compose("train", ["run_dir=007"]).run_dir == "007"
    assert config.compose("evaluate", ["run=1e3"]).run == "1e3"
    assert config.compose("train", ["run_dir=a/b 7"]).run_dir == "a/b 7"


def test_a_group_that_another_command_has_is_named():
    with pytest.raises(UserError, match="evaluate has no group 'optimizer'; its groups are data"):
        config.compose("evaluate", ["optimizer=sgd", "run=a"])
    with pytest.raises(
        UserError, match=r"evaluate needs run, which has no default: add run=\.\.\."
    ):
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
    assert "root: ???" in config.to_yaml(shown)
    assert "half: ${optimizer.lr}" in config.to_yaml(shown)


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
        "limit",
        "workers",
        "run_dir",
    ]
    assert options["limit"].expects == "a number, 0 or more, or null"
    assert options["clip"].expects == ""
    assert options["seed"].value == 5
    assert options["seed"].comment == "of everything random"
    assert {o.name: o.comment for o in config.describe("train").options}[
        "optimizer.lr"
    ] == "for 16 images"


@pytest.mark.parametrize(
    "path", ["photo (1).jpg", "données_übung", "a,b", "x=y", "7", "a'b", 'say "hi"', "{x}", "#1"]
)
def test_a_path_is_text(path: str):
    assert config.compose("train", [f"run_dir={path}"]).run_dir == path


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert config.compose("train", ["run_dir=~/runs/a"]).run_dir == "/home/me/runs/a"
    assert config.compose("train", ['run_dir="~/runs/a"']).run_dir == "/home/me/runs/a"
    assert config.compose("train", ["run_dir=a~b"]).run_dir == "a~b"


@pytest.mark.long
def test_a_folder_of_the_user_is_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / "own"
    (own / "optimizer").mkdir(parents=True)
    (own / "experiment").mkdir()
    (own / "optimizer" / "lion.yaml").write_text(
        "_target_: mylab.Lion\nlr: 0.3              # small\n"
    )
    (own / "optimizer" / "sgd.yaml").write_text("lr: 0.9\n")
    (own / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer: lion\nseed: 9\n"
    )
    with pytest.raises(UserError, match=r"there is no optimizer 'lion'"):
        config.compose("train", ["optimizer=lion"])
    monkeypatch.setenv(config.CONFIG_DIR, str(own))
    assert config.compose("train", ["optimizer=lion"]).optimizer._target_ == "mylab.Lion"
    assert config.compose("train", ["optimizer=sgd"]).optimizer == {"lr": 0.9}
    assert config.compose("train", ["experiment=mine"]).seed == 9
    described = config.describe("train", ["optimizer=lion"])
    assert described.groups["optimizer"][0] == ["adamw", "lion", "sgd"]
    assert {o.name: o.comment for o in described.options}["optimizer.lr"] == "small"
    with pytest.raises(UserError, match=r"optimizer.lrr'; did you mean optimizer.lr\?"):
        config.compose("train", ["optimizer=lion", "optimizer.lrr=1"])
    (own / "optimizer" / "lion.yaml").write_text("lr: 0.4\n")  # edited in the same process
    assert config.compose("train", ["optimizer=lion"]).optimizer == {"lr": 0.4}
    monkeypatch.setenv(config.CONFIG_DIR, str(own / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        config.compose("train", [])


def test_an_object_is_added_by_its_target():
    node = "+data.mine={_target_: mylab.Mine, n: 3}"
    assert config.compose("train", [node]).data.mine == {"_target_": "mylab.Mine", "n": 3}
    with pytest.raises(UserError, match=r"no option 'data.mine'"):
        config.compose("train", ["+data.mine={n: 3}"])


def test_other_values_of_the_same_choices_are_not_composed_again(monkeypatch: pytest.MonkeyPatch):
    """The jobs of a sweep: Hydra reads the files once."""
    choices = ["data=shapes", "optimizer=sgd"]
    first = config.compose("train", [*choices, "seed=1"])
    monkeypatch.setattr(config.hydra, "compose", None)
    second = config.compose("train", [*choices, "seed=2", "optimizer.lr=0.5"])
    assert (first.seed, second.seed, second.optimizer.lr) == (1, 2, 0.5)
    assert config.compose("train", [*choices, "seed=1"]) == first
