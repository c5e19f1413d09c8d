"""Every yaml under conf/ composes, and what it describes builds: from random weights, without a
download.
"""

import copy
import re
import shlex
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from repository import REPOSITORY
from torch import nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.config.compose import build, compose, conf_dir, show, yaml_name
from maskrcnn_lit.config.overrides import flat
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.grid import read_sweep
from maskrcnn_lit.model.pretrained.published import PUBLISHED
from maskrcnn_lit.runs.folder import freeze_config
from maskrcnn_lit.training.optimizer import Length
from maskrcnn_lit.training.trainer import build_trainer

CONF = REPOSITORY / "conf"
COMMANDS = sorted(cli.COMMANDS)
INSIDE = [path.relative_to(CONF).with_suffix("").parts for path in CONF.glob("*/**/*.yaml")]
CHOICES = sorted((group, "/".join(within)) for group, *within in INSIDE)
EXPERIMENTS = [choice for group, choice in CHOICES if group == "experiment"]
GROUPS = {
    "augment",
    "backbone",
    "callbacks",
    "data",
    "experiment",
    "launcher",
    "logger",
    "model",
    "optimizer",
    "trainer",
}


@cache
def shown(command: str, *overrides: str) -> DictConfig:
    """Composed once, for what it holds and for what it builds. Not to be written to."""
    return show(command, overrides)


def composed(command: str, *overrides: str) -> DictConfig:
    """The config with something given for every option that has no default."""
    config = copy.deepcopy(shown(command, *overrides))
    for name, value in flat(OmegaConf.to_container(config)):
        if value == "???":
            OmegaConf.update(config, name, "given")
    return config


def pair(model: str = "tiny", backbone: str = "resnet18") -> tuple[str, str]:
    return f"model={model}", f"backbone={backbone}"


def of_group(group: str) -> list[str]:
    return [choice for name, choice in CHOICES if name == group]


def together(*groups: str) -> list[Any]:
    """Every choice of the groups with the first ones of the others; the rest of their combinations
    has the mark slow.
    """
    choices = [of_group(group) for group in groups]
    cases = []
    for names in product(*choices):
        others = sum(name != first for name, (first, *_) in zip(names, choices, strict=True))
        marks = [pytest.mark.trackio] if "trackio" in names else []
        marks += [pytest.mark.slow] if others > 1 else []
        cases.append(pytest.param(*names, marks=marks))
    return cases


def test_every_yaml_is_a_command_or_a_choice_of_a_known_group():
    files = list(CONF.rglob("*.yaml"))
    assert conf_dir() == CONF
    assert len(files) == len(COMMANDS) + len(CHOICES) >= 20
    assert {yaml_name(command) for command in COMMANDS} == {
        path.stem for path in CONF.glob("*.yaml")
    }
    assert {group for group, _ in CHOICES} == GROUPS
    assert {"demo", "overfit"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command: str):
    assert OmegaConf.to_container(composed(command), resolve=True)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_compose(command: str):
    for example in cli.COMMANDS[command].examples:
        program, *words = shlex.split(example)
        name, overrides = " ".join(words[: len(command.split())]), words[len(command.split()) :]
        assert (program, name) == ("maskrcnn-lit", command)
        if overrides[:1] == ["-m"]:
            assert read_sweep(overrides[1:]).jobs
        else:
            compose(command, overrides)


@pytest.mark.long
@pytest.mark.parametrize(
    ("group", "choice"),
    [pair for pair in CHOICES if pair[0] != "backbone" or pair[1] in ("resnet18", "timm")],
    ids=str,
)
def test_a_choice_composes_and_holds(group: str, choice: str):
    """The other backbones differ in their name: tests/cli/test_backbones.py builds them all."""
    chosen = pair(**{group: choice}) if group in ("model", "backbone") else (f"{group}={choice}",)
    config = OmegaConf.to_container(shown("train", *chosen))
    own = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choice}.yaml"))
    own.pop("defaults", None)
    within: Any = config if group == "experiment" else config[group]
    for name, value in flat(own):
        if not isinstance(
            value, dict
        ):  # a `???` would not hold over a value of the yaml that it builds on
            assert dict(flat(within))[name] == value, name


@pytest.mark.parametrize("choice", EXPERIMENTS)
def test_an_experiment_opens_with_its_question_command_and_outcome(choice: str):
    text = (CONF / "experiment" / f"{choice}.yaml").read_text()
    opening = " ".join(re.match(r"(?:#.*\n)+", text).group().split())
    question = OmegaConf.load(CONF / "experiment" / f"{choice}.yaml").question
    assert shown("train", f"experiment={choice}").question == question
    assert opening.startswith("# @package _global_")
    assert f"maskrcnn-lit train experiment={choice}" in opening
    assert "?" in question
    assert "Cost: " in opening
    assert "Expected: " in opening


@pytest.mark.long
@pytest.mark.parametrize("choice", EXPERIMENTS)
def test_an_experiment_builds(choice: str):
    config = composed("train", f"experiment={choice}")
    assert isinstance(build(config.model, num_classes=2), nn.Module)
    assert isinstance(build(config.data), CocoDataModule)
    assert callable(build(config.optimizer))
    build_trainer_of(config)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "norm", "frozen"),
    [
        ((), "frozen", 2),
        (("model=detectron2", "model.weights=detectron2_r50_3x"), "frozen", 2),
        (("backbone.freeze_at=4",), "frozen", 4),
        (("model.weights=null",), "auto", "auto"),  # random: what is frozen would learn nothing
    ],
)
def test_finetune_freezes_what_was_trained(options: tuple[str, ...], norm: str, frozen: int | str):
    config = freeze_config(composed("train", "experiment=finetune", *options))
    assert (config.backbone.norm, config.backbone.freeze_at) == (norm, frozen)
    assert (config.model.weights in PUBLISHED) == (norm == "frozen")
    backbone = build(config.model, num_classes=2).backbone
    stem = next(backbone.parameters())
    assert stem.requires_grad == (norm == "auto")


def test_finetune_names_published_weights_of_its_model():
    config = composed("train", "experiment=finetune")
    text = (CONF / "experiment" / "finetune.yaml").read_text()
    meta = MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta
    assert config.model.weights == "torchvision_v2"
    assert config.backbone.name == "resnet50"
    assert f"({meta['_file_size']:.0f} MB)" in text
    assert config.trainer.patience < config.trainer.epochs


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "backbone"),
    [(model, "resnet18") for model in of_group("model")]
    + [("tiny", backbone) for backbone in of_group("backbone")],
)
def test_every_model_and_every_backbone_builds(model: str, backbone: str):
    config = composed("train", *pair(model, backbone))
    built = build(config.model, num_classes=2)
    assert isinstance(built, nn.Module)
    assert all(parameter.device.type == "cpu" for parameter in built.parameters())


@pytest.mark.parametrize("plus", ["", "+"])
def test_options_of_a_timm_model_need_no_plus(plus: str):
    config = compose(
        "train", ["backbone=timm", f"{plus}backbone.options={{strict_img_size: false}}"]
    )
    assert config.model.backbone.options == {"strict_img_size": False}


@pytest.mark.long
@pytest.mark.parametrize(("data", "augment"), together("data", "augment"))
def test_data_builds_with_every_augmentation(data: str, augment: str):
    built = build(composed("train", f"data={data}", f"augment={augment}").data)
    assert isinstance(built, CocoDataModule)
    assert isinstance(built.batch_size, int)


@pytest.mark.parametrize("optimizer", of_group("optimizer"))
def test_an_optimizer_builds(optimizer: str):
    made = build(composed("train", f"optimizer={optimizer}").optimizer)
    layer = nn.Linear(2, 2)
    plan = made(layer, batch_size=4, steps=Length(10, 5), fused=False)
    assert {id(p) for group in plan.optimizer.param_groups for p in group["params"]} == set(
        map(id, layer.parameters())
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("trainer", "logger", "callbacks"), together("trainer", "logger", "callbacks")
)
def test_a_trainer_builds_with_its_loggers_and_callbacks(
    trainer: str, logger: str, callbacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    chosen = (
        f"trainer={trainer}",
        f"logger={logger}",
        f"callbacks={callbacks}",
        f"run_dir={tmp_path}",
    )
    build_trainer_of(composed("train", *chosen))


def test_every_target_is_one_that_build_allows():
    targets = re.findall(
        r"^ *_target_: *(\S+)",
        "\n".join(path.read_text() for path in CONF.rglob("*.yaml")),
        re.MULTILINE,
    )
    assert len(targets) > 15
    ours = ("maskrcnn_lit.", "lightning.pytorch.")
    assert [target for target in targets if not target.startswith(ours)] == []


def build_trainer_of(config: DictConfig) -> None:
    callbacks = list(build(config.callbacks).values())
    loggers = list(build(config.logger).values())
    assert callbacks
    assert all(isinstance(callback, Callback) for callback in callbacks)
    assert loggers
    assert all(isinstance(logger, Logger) for logger in loggers)
    config.trainer.accelerator = (
        "cpu" if config.trainer.accelerator == "gpu" else config.trainer.accelerator
    )
    every = config.evaluation.every_n_epochs
    trainer = build_trainer(
        run_dir=config.run_dir,
        callbacks=callbacks,
        loggers=loggers,
        **config.trainer,
        evaluate_every_n_epochs=every,
    )
    assert set(callbacks) <= set(trainer.callbacks)


def test_an_option_of_a_part_that_is_null_says_so():
    with pytest.raises(UserError, match=r"mask_head\.fcs' here, since model\.mask_head is null"):
        compose("train", ["model=faster_rcnn", "model.mask_head.fcs=2"])
    with pytest.raises(UserError, match=r"'trainer\.ema\.decay'; did you mean trainer\.ema\?"):
        compose("train", ["trainer.ema.decay=0.99"])  # a number, which has no options
