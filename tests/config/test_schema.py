"""The rows of the schema: each option of each command has one, and the values that it allows."""

import re
from typing import Any

import pytest
from omegaconf import OmegaConf
from repository import REPOSITORY

from maskrcnn_lit.cli.main import COMMANDS
from maskrcnn_lit.config import schema
from maskrcnn_lit.config.compose import compose, describe, show
from maskrcnn_lit.config.overrides import flat
from maskrcnn_lit.config.schema import (
    OF_COMMAND,
    OF_RUN,
    OPTIONS,
    Rule,
    applies,
    check,
    expects,
    fault_of,
    rule_of,
)
from maskrcnn_lit.errors import UserError

ANY = tuple(f"{name}." for name, rule in OPTIONS.items() if rule.kind == "any")


def plain(config: Any) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(config).items()}


def options(node: dict[str, Any]) -> dict[str, Any]:
    """Dotted name -> value, of what a user may set: without classes and groups of options."""
    return {
        name: value
        for name, value in flat(node)
        if not any(part.startswith("_") for part in name.split("."))
        and (not isinstance(value, dict) or not value)
        and not name.startswith((*ANY, "defaults"))
        and not schema.is_group(name)
    }


@pytest.fixture(scope="module")
def known() -> dict[str, list[Any]]:
    """Option -> its values, in the config of every command and in every choice of every group."""
    found: dict[str, list[Any]] = {}
    nodes = [options(plain(show(command))) for command in COMMANDS]
    for file in (REPOSITORY / "conf").glob("*/*.yaml"):
        group = file.parent.name
        node = plain(OmegaConf.load(file))
        node.pop("defaults", None)
        nodes.append(options(node if group == "experiment" else {group: node}))
    for node in nodes:
        for name, value in node.items():
            found.setdefault(name, []).append(value)
    assert len(found) > 150
    return found


def flat_of_train() -> list[str]:
    return [name for name, _ in flat(plain(show("train")))]


@pytest.mark.long
def test_every_option_has_a_row(known):
    references = ("data.augment", "model.backbone")  # whole groups
    assert [name for name in known if name not in references and rule_of(name) is None] == []


def test_every_row_is_of_an_option(known):
    groups_too = [*known, *flat_of_train()]
    groups = [name for name, rule in OPTIONS.items() if rule.kind in ("group", "any")]
    unused = [name for name in OPTIONS if name not in known and name not in groups]
    assert unused == []
    parts = [name.split(".") for name in groups_too]
    nested = {".".join(name[:end]) for name in parts for end in range(1, len(name) + 1)}
    for name in groups:
        matching = re.compile(re.escape(name).replace(r"\*", r"\w+"))
        assert any(matching.fullmatch(other) for other in nested), name


def test_every_value_of_ours_is_allowed(known):
    for name, values in known.items():
        rules = [
            rule
            for rule in (
                rule_of(name),
                *(rows.get(name) for rows in OF_COMMAND.values()),
                OF_RUN.get(name),
            )
            if rule is not None
        ]
        for value in values if rules else ():
            faults = [fault_of(name, value, rule) for rule in rules]
            assert None in faults, faults


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("seed", [0, 2**63 - 1], [-1, 2**63, 1.5, 1.0, True, "1", "auto", None, [1], {"a": 1}]),
        ("launcher.hours", [0.5, 24], [0, -1, 0.0, 1e9, "auto", float("nan"), None]),
        ("optimizer.lr", [1e-30, 1], [0, 0.0, -1e-3, float("inf"), float("nan"), "high", [1e-3]]),
        ("trainer.clip_norm", [0.0, 10, None], [-1, "auto", float("inf"), False]),
        ("trainer.epochs", [1, None], [0, "auto", 2.0]),
        ("trainer.devices", [1, "auto", [0, 2]], [0, None, [], [0, 0], [-1], "all"]),
        ("trainer.deterministic", [True, False, "warn"], [None, 1, "error"]),
        ("trainer.profiler", [None, "simple"], [True, "fast"]),
        ("trainer.clip_value", [None, 0.5], [0, -1, "auto"]),
        ("augment.rot90", [0, 1.0], [-0.1, 90, None]),
        ("augment.rotation", [0, 180], [-1, 181, None, "much"]),
        ("augment.perspective", [0, 0.2], [-0.1, 0.21, None]),
        ("augment.blur", [0, 20.0], [-1, 21, None]),
        ("augment.noise", [0, 1], [-1, 1.1, None]),
        ("augment.copy_paste.p", [0, 0.5, 1], [-0.1, 2, None, "often", [0.5]]),
        ("augment.copy_paste.occlude", [0, 1.0], [-0.1, 1.5, None, True]),
        ("augment.copy_paste.visible", [0, 0.3], [-1, 5, None]),
        ("augment.copy_paste.objects", [1, 1000], [0, 1001, 2.5, None]),
        ("trainer.precision", ["auto", "bf16", 32, "16-mixed"], [8, "fp8", None, True]),
        ("trainer.compile", ["off"], [False, "on", None]),
        ("data.workers", [0, "auto"], [-1, None, 1.5, "all", 10**6]),
        ("data.lengths", [1, 3], [0, 4, None, 1.0, "auto"]),
        ("data.slots", [1, 4096], [0, 4097, None, 8.0, True]),
        ("backbone.recompute", [True, False, "auto"], [None, 1, "yes", []]),
        ("data.root", [None, "a (1)", "http://host/" + "a" * 300], [7, [], "", "a" * 300, "a\0"]),
        ("data.image_size", [32, [800, 1333], [64, 64]], [31, [1333, 800], [64], 64.0, None, "a"]),
        ("data.image_ids", [None, [1, 2]], [[], 1, [1.5], ["a"], {}]),
        ("data.name", ["a b"], [7, None, "", "a" * 5000, ["a"]]),
        ("optimizer.betas", [[0.9, 0.999], [0, 0]], [[0.9], 0.9, [0.9, 1.0], None, [True, 0.5]]),
        ("optimizer.milestones", [[], [0.5], [0.5, 0.9]], [[0.9, 0.5], [0.0], [1], 0.5, "a"]),
        ("augment.scale", [[0.1, 2.0], [1, 1]], [[2.0, 1.0], [0, 1], [1], 1.0, [1, 5]]),
        ("metrics.max_detections", [[1, 10, 100], None], [[1, 2], [1, 1, 2], 400, [3, 2, 1]]),
        ("optimizer.layer_decay", [0.7, 1], [0, 1.1, None, "a"]),
        ("model.anchors.sizes", [[8, 16], [1.5]], [[], [0.5], 8, None, ["a"]]),
        ("model.std", [[0.1, 0.2, 1]], [[0, 1, 1], [1, 1], 1, [1, 1, 2]]),
        ("backbone.freeze_at", [0, 5, "auto", "all"], [6, -1, "none", None, True]),
        ("backbone.drop_path", [0, 0.1, 1], [None, "a", 1.1, -0.1]),
        ("backbone.window", [None, 14], [0, "auto", 14.0]),
        ("backbone.square", [None, 64, 1024], [0, 63, "auto", True, 64.0]),
        ("model.fpn.kind", ["auto", "fpn", "simple"], [None, "none", 1]),
        ("backbone.norm_eps", [None, 0, 1e-5], [2, -1, "auto"]),
        ("backbone.deformable", [None, [3, 4, 5], [2]], [3, [], [1], [6], [5, 4], [3, 3], [3.0]]),
        ("model.fpn.path_augmentation", [True, False, "mmdetection"], [None, "panet", 1]),
        ("model.rpn.box_loss", ["smooth_l1", "giou"], [None, "iou", 1]),
        ("model.rpn.objectness_loss", ["cross_entropy", "focal"], [None, "giou", True]),
        ("backbone.modulated", [True, False], [None, 1, "true"]),
        ("backbone.options", [None, {}, {"a": 1}], [1, "a", []]),
        ("model.fpn.norm", [None, "batch", "layer"], ["none", "auto", 1]),
        (
            "data.classes",
            [None, ["a", 7], {"a": "b"}, {"a": None}, ["a", {"b": "c"}]],
            [[], {}, "a", 7, True, [None], [["a"]], {"a": ["b"]}, [{}], [True], [{"a": {}}], [1.5]],
        ),
        ("data.keep_empty", [True, False], [0, 1, "yes", None, []]),
        ("trust", [[], ["a.b"], "a"], [None, [1], 7, ""]),
        ("runs", ["a", ["a", "b"], [7]], [[], None, [None], [True]]),
        ("callbacks.mine", [None, {}], ["on", 7, []]),
    ],
)
def test_what_an_option_may_be(name: str, right: list[Any], wrong: list[Any]):
    rule = rule_of(name)
    assert rule is not None
    for value in right:
        assert fault_of(name, value, rule) is None, value
    for value in wrong:
        fault = fault_of(name, value, rule)
        assert fault is not None, value
        assert fault.startswith(f"{name}=")
        assert "\n" not in fault
        assert len(fault) < 300


def test_the_words_come_from_the_row():
    assert expects(OPTIONS["backbone.freeze_at"]) == "a whole number from 0 to 5, auto, or all"
    assert expects(OPTIONS["trainer.epochs"]) == "a whole number, 1 or more, or null"
    assert expects(OPTIONS["optimizer.lr"]) == "a number above 0"
    assert expects(OPTIONS["trainer.accelerator"]) == "one of auto, cpu, gpu"
    assert expects(OPTIONS["metrics.max_detections"]).startswith("three ascending whole numbers")
    assert "two ascending whole numbers" in expects(OPTIONS["data.image_size"])
    assert expects(Rule("flag")) == "true or false"
    fault = fault_of("data.name", 2017, OPTIONS["data.name"])
    assert fault == "data.name=2017 must be text: write data.name='\"2017\"'"


def test_references_and_what_is_missing_are_left_alone():
    check({"seed": "${size}", "run": "???", "data": {"augment": "${augment}"}})
    check({"model": {"num_classes": None}}, skip=["model.num_classes"])
    with pytest.raises(UserError, match=r"model\.num_classes=null must be"):
        check({"model": {"num_classes": None}})


def test_a_class_of_the_users_has_arguments_of_its_own():
    theirs = {"optimizer": {"_target_": "mylab.Lion", "lr": [1, 2], "kind": {"lr": "a"}}}
    check(theirs)
    assert applies("optimizer.lr", theirs) is None
    ours = {"optimizer": {"_target_": "maskrcnn_lit.training.optimizer.adamw", "lr": [1, 2]}}
    assert applies("optimizer.lr", ours) is OPTIONS["optimizer.lr"]
    with pytest.raises(UserError, match=r"optimizer\.lr=\[1, 2\] must be a number above 0"):
        check(ours)
    within = {"model": {"_target_": "mylab.Model", "fpn": {**ours["optimizer"], "channels": 0}}}
    with pytest.raises(UserError, match=r"model\.fpn\.channels=0"):
        check(within)


def test_a_group_that_comes_up_again_has_the_same_rows():
    assert rule_of("model.backbone.norm") is OPTIONS["backbone.norm"]
    with pytest.raises(UserError, match=r"data\.augment\.flip=2 must be a number from 0 to 1"):
        check({"data": {"augment": {"flip": 2}}})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["launcher.hours=0"], None),
        (["seed=9223372036854775808"], "seed=9223372036854775808 must be a whole number"),
        (["seed=auto"], "seed=auto must be a whole number"),
        (["data.image_ids=a"], "must be a list of one or more whole numbers, or null"),
        (["model.box_head.cascade=[0.5]"], "must be a list of two or more ascending numbers"),
        (["data.root=[a,b]"], "data.root=['a', 'b'] must be a path"),
        (["evaluation=null"], "evaluation=null is a group of options"),
        (["~seed"], "'~seed' removes a required option"),
        (["~optimizer"], "'~optimizer' removes a group that train needs"),
        (["seed=${data.image_size}", "data.image_size=[64,96]"], "seed=[64, 96] must be"),
        (["data.batch_size=" + "[" * 5000], "data.batch_size"),
    ],
)
def test_a_composed_config_is_checked(overrides: list[str], said: str | None):
    if said is None:  # not of the launcher that runs by default
        said = "no option 'launcher.hours'"
    with pytest.raises(UserError) as error:
        compose("train", overrides)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_single_text_where_a_list_is_wanted_is_not_called_too_long():
    with pytest.raises(UserError) as error:
        compose("serve", ["run=a", "names=a"])
    assert str(error.value) == "names=a must be a list of one or more texts, or null"


def test_values_that_make_sense_are_taken():
    config = compose("train", ["launcher=slurm", "launcher.hours=0.5", "~trainer.clip_norm"])
    assert config.launcher.hours == 0.5
    assert config.trainer.clip_norm is None


def test_help_says_what_the_schema_says():
    shown = {option.name: option for option in describe("train").options}
    assert shown["trainer.accelerator"].expects == "one of auto, cpu, gpu"
    assert shown["trainer.clip_norm"].expects.endswith("or null")


def test_the_precision_of_an_export_is_not_that_of_a_training():
    compose("export", ["run=RUN", "precision=int8"])
    with pytest.raises(UserError, match="precision=bf16-mixed must be one of f32, int8"):
        compose("export", ["run=RUN", "precision=bf16-mixed"])
    with pytest.raises(UserError, match="precision=int8 must be one of auto, bf16-mixed"):
        compose("evaluate", ["run=RUN", "precision=int8"])
