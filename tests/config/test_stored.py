"""A config from a file names classes of a closed table, each at its place, and nothing else."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError
from tiny_commands import refused

import maskrcnn_lit
from maskrcnn_lit.config import stored
from maskrcnn_lit.config.compose import compose, to_dict
from maskrcnn_lit.config.stored import (
    MOVED,
    TARGETS,
    checked,
    foreign_targets,
    load_run_config,
    read_run_config,
)
from maskrcnn_lit.errors import UserError

LOCATIONS = (
    *("model", "model.backbone", "model.fpn", "model.anchors", "model.rpn", "model.roi_align"),
    *("model.box_head", "model.mask_head", "backbone", "backbone.options", "optimizer"),
    *("callbacks.meter", "callbacks.new", "data", "data.augment", "data.train", "augment"),
    *("trainer", "evaluation", "metrics.roi_accuracy", "seed", "anything", "data.image_ids.0"),
)


def at(place: str, node: Any) -> dict[str, Any]:
    """A config with `node` at a dotted place."""
    for key in reversed(place.split(".")):
        node = [node] if key.isdigit() else {key: node}
    return node


def composed(*overrides: str) -> dict[str, Any]:
    config = compose("train", ["data=shapes", "run_dir=run", *overrides])
    config.model.num_classes = 3
    return to_dict(config)


def reachable() -> Iterator[str]:
    """The dotted name of every callable in the packages that targets come from."""
    packages = ["maskrcnn_lit", "torch.nn", "torch.optim", "torchvision.ops", "torchvision.models"]
    packages += ["lightning.pytorch.callbacks", "lightning.pytorch.cli", "torch.hub", "torch"]
    for package in packages:
        module = importlib.import_module(package)
        names = [package]
        if package == "maskrcnn_lit":
            walked = pkgutil.walk_packages(maskrcnn_lit.__path__, "maskrcnn_lit.")
            names = [m.name for m in walked if not m.name.endswith("__main__")]
        for name in names:
            module = importlib.import_module(name)
            yield from (f"{name}.{key}" for key, value in vars(module).items() if callable(value))
    yield from ("os.system", "subprocess.run", "builtins.eval", "builtins.exec", "pty.spawn")
    yield from ("lightning.pytorch.cli.instantiate_class", "maskrcnn_lit.launch.backends.run")
    yield from ("maskrcnn_lit.storage.files.os.system", "hydra.utils.call", "")


@pytest.mark.long
def test_only_the_table_passes_whatever_is_reachable(monkeypatch: pytest.MonkeyPatch):
    """Every callable of the packages at every place; nothing is imported for one that is
    refused.
    """
    imported = []

    def note(name: str, where: str) -> Any:
        imported.append(name)
        return lambda **arguments: None

    monkeypatch.setattr(stored, "import_target", note)
    names = sorted(set(reachable()))
    assert len(names) > 3000
    passed = set()
    for place in LOCATIONS:
        for name in names:
            try:
                checked(at(place, {"_target_": name}), where="f")
            except UserError as error:
                assert "trust=" in str(error)
            else:
                passed.add((place, name))
    table = {
        (place, name)
        for place in LOCATIONS
        for pattern, names in TARGETS.items()
        for name in names
        if place == pattern or (pattern == "callbacks.*" and place.startswith("callbacks."))
    }
    assert passed <= table
    assert {name for _, name in passed} >= {"maskrcnn_lit.model.rpn.RPN"}
    assert set(imported) <= {name for _, name in table}


@pytest.mark.long
def test_every_choice_of_ours_passes_and_comes_out_as_it_is_but_for_data_and_loggers():
    for overrides in (
        (),
        ("model=tiny", "backbone=timm", "optimizer=sgd"),
        ("model=torchvision_v2", "logger=wandb", "data=coco2017"),
    ):
        plain = composed(*overrides)
        config = checked(plain, where="f")
        assert config.logger == {}
        assert config.data.prepare is None
        plain["logger"], plain["data"]["prepare"] = {}, None
        del plain["launcher"]
        assert to_dict(config) == plain


def test_classes_of_version_0_1_0_get_their_present_names():
    for old, new in MOVED.items():
        assert checked(at("callbacks.x", {"_target_": old}), where="f").callbacks.x._target_ == new


@pytest.mark.parametrize("key", ["_args_", "_convert_", "_recursive_", "_x"])
def test_other_keys_of_hydra_are_refused(key: str):
    plain = composed()
    plain["optimizer"][key] = ["x"]
    with pytest.raises(UserError, match=f"optimizer.{key}"):
        checked(plain, where="f")


@pytest.mark.long
def test_arguments_are_checked():
    plain = composed()
    plain["model"]["rpn"]["dept"] = 1
    with pytest.raises(UserError, match=r"has no argument 'dept'.*did you mean depth"):
        checked(plain, where="f")
    for option in ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg_overlay"):
        plain = composed("backbone=timm")
        plain["model"]["backbone"]["options"] = {option: "x"}
        with pytest.raises(UserError, match=f"model.backbone.options.{option}"):
            checked(plain, where="f")


def test_what_no_run_writes_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    shared: list[Any] = [1]
    for _ in range(40):
        shared = [shared, shared]  # 2**40 nodes
    for plain, message in (
        ({"a": "${oc.env:HOME}"}, "reference"),
        (deep, "too deeply"),
        ({"a": shared}, "too deeply or too large"),
        ({"a": object()}, "has a object"),
        ([1], "does not contain a config"),
    ):
        with pytest.raises(UserError, match=message):
            checked(plain, where="f")  # type: ignore[arg-type]


@pytest.mark.long
def test_a_config_yaml_of_aliases_or_tags_is_refused(tmp_path: Path):
    aliases = "a: &a [1,1]\n" + "".join(
        f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, *{'a' if n == 0 else f'b{n - 1}'}]\n"
        for n in range(40)
    )
    for text in (
        aliases,
        "a: !!python/object/apply:os.system [ls]",
        "a: [",
        "[" * 100_000,
        "",
        "1",
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="give another run"):
            read_run_config(tmp_path)


MYLAB = """
import os
from torch import nn

class Head(nn.Module):
    def __init__(self, *, width: int = 3) -> None:
        super().__init__()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mylab_of_test.py").write_text(MYLAB)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("trust", ["mylab_of_test", "mylab_of_test.Head", ["x", "mylab_of_test"]])
def test_what_the_user_trusts_passes_and_is_printed(trust: Any, project: Path, caplog: Any):
    caplog.set_level("INFO")
    node = {"_target_": "mylab_of_test.Head", "width": 3}
    config = checked(at("model.mask_head", node), where="f", trust=trust)
    assert to_dict(config)["model"]["mask_head"] == node
    assert "mylab_of_test.Head builds model.mask_head of f" in caplog.text


@pytest.mark.parametrize(
    ("name", "trust"),
    [
        ("mylab_of_test.Head", []),
        ("mylab_of_test.Head", ["mylab"]),
        ("mylab_of_test.Head", ["mylab_of_test.Other"]),
        ("mylab_of_test.os.system", ["mylab_of_test"]),
        ("mylab_of_test.nn.Linear", ["mylab_of_test"]),
        ("mylab_of_test.missing", ["mylab_of_test"]),
        ("os.system", ["mylab_of_test"]),
    ],
)
def test_trust_does_not_reach_further(name: str, trust: list[str], project: Path):
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        checked(at("model.mask_head", {"_target_": name}), where="f", trust=trust)


@pytest.mark.parametrize("trust", ["", "a b", "os;x", ".x", [3]])
def test_trust_is_a_dotted_name(trust: Any):
    with pytest.raises(UserError, match="trust="):
        checked({}, where="f", trust=trust)


def test_foreign_targets_are_those_that_must_be_trusted():
    config = OmegaConf.create(composed())
    assert foreign_targets(config) == []
    config.model.mask_head._target_ = "mylab.Head"
    config.callbacks.mine = {"_target_": "mylab.Watch"}
    config.logger.mine = {"_target_": "mylab.Logger"}
    assert foreign_targets(config) == ["mylab.Head", "mylab.Watch"]


# What a stranger would name: it writes a file, so that the tests see whether it was called.
COMMAND = {"path": "PWNED", "text": "x", "_target_": "maskrcnn_lit.storage.files.atomic_write"}


@pytest.mark.long
@pytest.mark.parametrize(
    "place", ["model", "model.rpn", "callbacks.evil", "optimizer", "data.train"]
)
@pytest.mark.parametrize(
    "command",
    [
        "evaluate run=RUN",
        "predict run=RUN source=image.png",
        "train resume=RUN",
        "reproduce run=RUN",
        "compare runs=RUN",
    ],
)
def test_no_command_calls_what_a_run_folder_names(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    monkeypatch.chdir(tmp_path)
    plain = composed()
    node = plain
    *parents, last = place.split(".")
    for key in parents:
        node = node[key]
    node[last] = COMMAND
    run = tmp_path / "RUN"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    (run / "result.json").write_text(
        '{"status": "finished"}' if "reproduce" in command else '{"status": "interrupted"}'
    )
    checkpoint = {"config": plain, "categories": [[1, "a"]], "state_dict": {}, "global_step": 1}
    for name in ("last", "best"):
        torch.save(checkpoint, run / "checkpoints" / f"{name}.ckpt")
    (tmp_path / "image.png").write_bytes(b"")
    if command.startswith("compare"):
        from tiny_commands import run_command

        run_command(*command.split())
    else:
        assert "atomic_write" in refused(*command.split())
    assert not (tmp_path / "PWNED").exists()
    with pytest.raises(UserError, match="atomic_write"):
        load_run_config(run)


def test_a_run_folder_gives_its_config(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"run has no config.yaml, so it is not a run folder"):
        load_run_config(run)
    (run / "config.yaml").write_text("seed: 3\nmodel: {name: tiny}\n")
    assert load_run_config(str(run)).model.name == "tiny"
    with pytest.raises(ConfigAttributeError):
        load_run_config(run).modle  # noqa: B018  (reading is the test)


def test_what_is_no_run_folder_is_named(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"nowhere does not exist: give a run folder \(run_dir\) that `maskrcnn-lit train` "
        r"wrote",
    ):
        load_run_config(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, so it is not a run folder"):
        load_run_config(tmp_path / "file")
    for content in (b"a: [", b"\xff\xfe\x00", b"", b"- 1\n"):
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(
            UserError,
            match=r"config.yaml (cannot be read|does not contain a config)(,|:) give another run",
        ):
            load_run_config(tmp_path)


def test_the_name_before_trainer_check_is_read():
    plain = {"trainer": {"epochs": 1, "fast_dev_run": True}}
    assert checked(plain, where="config.yaml").trainer == {"epochs": 1, "check": True}


@pytest.mark.parametrize(
    "text",
    [
        "a:\n  x: 1\nb: [1, 2]\nc:\n",
        "# a comment\na: 1\nb: 2\n",
        'a: "one\nb: text"\nc: 1\n',
        "a: |\n  one\nb: 2\n",
        "a: [1,\nb: 2]\nc: 3\n",
        "a: {x: 1\n}\nb: 2\n",
        "a:\n- 1\n- 2\nb: 1\n",
        "a: 1\nb: 2\na: 3\n",
        "1: x\ntrue: y\n",
    ],
)
def test_sections_read_one_by_one_are_the_whole(text: str):
    assert stored._plain(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "a: 1\n---\nb: 2\n", "a:b\nc: d\n"])
def test_a_section_that_is_refused_is_refused_in_the_whole(text: str):
    with pytest.raises(yaml.YAMLError):
        stored._plain(text)


def test_a_config_that_is_changed_leaves_the_next_as_it_was():
    text = "a: {x: [1]}\nb: 2\n"
    stored._plain(text)["a"]["x"].append(5)
    assert stored._plain(text) == {"a": {"x": [1]}, "b": 2}
