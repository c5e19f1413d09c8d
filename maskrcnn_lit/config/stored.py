"""Configs from files: a run folder's config.yaml, the config inside a checkpoint.

Such a file may come from anyone, so it is treated as untrusted data. It may name only the classes
in TARGETS, each at its own path in the config, with plain arguments; `trust=` allows the user's
own. Data preparation and loggers are never taken from a file: they access disks and networks.
"""

import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.cyaml import CParser as _Parser
from yaml.resolver import Resolver

from maskrcnn_lit.config.instantiate import import_target
from maskrcnn_lit.config.overrides import suggest
from maskrcnn_lit.errors import UserError

_log = logging.getLogger(__name__)

# The classes that a config from a file may build: path in the config -> exact names. `*` matches
# any one name.
TARGETS: dict[str, tuple[str, ...]] = {
    "model": ("maskrcnn_lit.model.mask_rcnn.build_mask_rcnn",),
    **dict.fromkeys(
        ("backbone", "model.backbone"),
        (
            "maskrcnn_lit.model.backbone.Backbone",
            "maskrcnn_lit.model.timm_backbone.TimmBackbone",
        ),
    ),
    "model.fpn": ("maskrcnn_lit.model.fpn.build_fpn", "maskrcnn_lit.model.fpn.FPN"),
    "model.anchors": ("maskrcnn_lit.model.anchors.Anchors",),
    "model.rpn": ("maskrcnn_lit.model.rpn.RPN",),
    "model.box_head": ("maskrcnn_lit.model.box_head.BoxHead",),
    "model.mask_head": ("maskrcnn_lit.model.mask_head.MaskHead",),
    "optimizer": (
        "maskrcnn_lit.training.optimizer.adamw",
        "maskrcnn_lit.training.optimizer.sgd",
    ),
    "callbacks.*": (
        "maskrcnn_lit.callbacks.train_meter.TrainMeter",
        "maskrcnn_lit.callbacks.coco_evaluation.CocoEvaluation",
        "maskrcnn_lit.callbacks.score_plots.ScorePlots",
        "maskrcnn_lit.callbacks.panels.Panels",
        "maskrcnn_lit.callbacks.hparams.HyperParameters",
        "maskrcnn_lit.callbacks.hparams.ScalarLayout",
        "maskrcnn_lit.callbacks.progress.ProgressLine",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.EMAWeightAveraging",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "lightning.pytorch.callbacks.Timer",
    ),
    "data": (
        "maskrcnn_lit.data.datamodule.CocoDataModule",
        "maskrcnn_lit.data.coco_data.CocoData",
    ),
    "data.reader": (  # read local folders, and write into the cache alone
        "maskrcnn_lit.data.datasets.cityscapes.Cityscapes",
        "maskrcnn_lit.data.datasets.hf_parquet.HfParquet",
        "maskrcnn_lit.data.datasets.labelme.LabelMe",
        "maskrcnn_lit.data.datasets.mask_folder.MaskFolder",
        "maskrcnn_lit.data.datasets.voc2012.Voc2012",
        "maskrcnn_lit.data.datasets.voc_xml.VocXml",
        "maskrcnn_lit.data.datasets.yolo_seg.YoloSeg",
    ),
}

# The names of these classes in version 0.1.0.
MOVED = {
    "maskrcnn_lit.evaluation.callback.CocoEvaluation": (
        "maskrcnn_lit.callbacks.coco_evaluation.CocoEvaluation"
    ),
    "maskrcnn_lit.report.overview.HyperParameters": (
        "maskrcnn_lit.callbacks.hparams.HyperParameters"
    ),
    "maskrcnn_lit.report.overview.ScalarLayout": "maskrcnn_lit.callbacks.hparams.ScalarLayout",
    "maskrcnn_lit.report.tensorboard.ScorePlots": "maskrcnn_lit.callbacks.score_plots.ScorePlots",
    "maskrcnn_lit.training.meter.TrainMeter": "maskrcnn_lit.callbacks.train_meter.TrainMeter",
    "maskrcnn_lit.training.panels.Panels": "maskrcnn_lit.callbacks.panels.Panels",
    "maskrcnn_lit.training.progress.ProgressLine": "maskrcnn_lit.callbacks.progress.ProgressLine",
}

# Arguments of timm.create_model that make it read other files, or fetch them.
READS_FILES = ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg")

_SECTION = re.compile(r"^(?=\w+:(?:\s|$))", re.MULTILINE)  # a yaml's top-level keys

_SMALL = 20_000  # characters of a section that is kept

MAX_BYTES = 64 * 2**20  # of a config.yaml; a list of a million image ids has 8 MB
MAX_DEPTH = 32
MAX_NODES = 5_000_000


def load_run_config(run_dir: str | Path, trust: Sequence[str] = ()) -> DictConfig:
    """The resolved config of a run folder, checked by `checked`.

    Raises:
        UserError: `run_dir` has no readable config, or the config names a class that is not
            allowed.
    """
    file = Path(run_dir).expanduser() / "config.yaml"
    return checked(read_run_config(run_dir), where=str(file), trust=trust)


def read_run_config(run_dir: str | Path) -> dict[str, Any]:
    """The config of a run folder as plain data, unchecked: never build objects from it.

    Raises:
        UserError: `run_dir` has no readable config.
    """
    folder = Path(run_dir).expanduser()
    file = folder / "config.yaml"
    if not folder.exists():
        raise UserError(
            f"{folder} does not exist: give a run folder (run_dir) that `maskrcnn-lit train` wrote"
        )
    if not file.is_file():
        fault = "has no config.yaml" if folder.is_dir() else "is a file"
        raise UserError(
            f"{folder} {fault}, so it is not a run folder: give a folder with config.yaml"
        )
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} is larger than {MAX_BYTES} bytes: give another run")
        plain = _plain(file.read_text(encoding="utf-8"))
    except (
        *(yaml.YAMLError, OSError, RecursionError),
        *(
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ),  # yaml raises these for values that it cannot build
    ) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read, give another run: {line}") from error
    if not isinstance(plain, dict) or not plain:
        raise UserError(f"{file} does not contain a config: give another run")
    return plain


def _plain(text: str) -> Any:
    """What a yaml contains. Its sections, the lines from one top-level key to the next, are read
    one by one: those that many runs share are read once.
    """
    before, *sections = _SECTION.split(text)
    if before or len(sections) < 2:
        return yaml.load(text, _PlainLoader)
    try:
        contents = [_section(section) for section in sections]
    except (
        yaml.YAMLError
    ):  # its message is about the section; or a text goes on in the first column
        return yaml.load(text, _PlainLoader)
    return {key: _fresh(value) for content in contents for key, value in content.items()}


def _section(text: str) -> Any:
    return _small_section(text) if len(text) < _SMALL else yaml.load(text, _PlainLoader)


@lru_cache(maxsize=512)
def _small_section(text: str) -> Any:
    return yaml.load(text, _PlainLoader)


def _fresh(node: Any) -> Any:
    """A copy of plain data."""
    if isinstance(node, dict):
        return {key: _fresh(value) for key, value in node.items()}
    return [_fresh(value) for value in node] if isinstance(node, list) else node


def checked(plain: Mapping[str, Any], *, where: str, trust: Sequence[str] = ()) -> DictConfig:
    """Check a config from a file so that it may be built: each `_target_` must be listed in TARGETS
    for its path, or defined in a module under a name of `trust`.

    `data.prepare` becomes null and `logger` {}. Class names of version 0.1.0 are updated. Logs
    every class allowed by `trust`.

    Args:
        plain: nested dicts and lists; where: the file, for messages; trust: dotted names of
            packages, modules or classes.

    Raises:
        UserError: it names any other class, contains a reference (`${...}`) or is nested too
            deeply.
    """
    trust = [trust] if isinstance(trust, str) else list(trust)
    for name in trust:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise UserError(f"trust={name} must be the name of a package or class: trust=mylab")
    copy = _copied(plain, where)
    if isinstance(copy.get("data"), dict):
        copy["data"]["prepare"] = None
    if "logger" in copy:
        copy["logger"] = {}
    copy.pop("launcher", None)
    trainer = copy.get("trainer")
    if isinstance(trainer, dict) and "fast_dev_run" in trainer:  # the name before `check`
        trainer["check"] = trainer.pop("fast_dev_run")
    for path, node in _nodes(copy, ""):
        if any(str(key).startswith("_") for key in node):
            _check(path, node, where, trust)
    try:
        config = OmegaConf.create(copy)
    except OmegaConfBaseException as error:
        raise UserError(f"{where} cannot be read, give another run: {error}") from error
    OmegaConf.set_struct(config, True)
    return config


def foreign_targets(config: DictConfig) -> list[str]:
    """The `_target_`s of a composed config that a file may name only with `trust=`."""
    plain = OmegaConf.to_container(config)
    names = []
    for path, node in _nodes(plain, ""):
        name = node.get("_target_")
        never_stored = path == "data.prepare" or path.startswith(("logger.", "launcher"))
        if isinstance(name, str) and not never_stored and name not in _allowed(path):
            names.append(name)
    return sorted(set(names))


class _PlainLoader(Composer, _Parser, SafeConstructor, Resolver):
    """Loads plain data; rejects aliases, which can expand a few lines to gigabytes. libyaml reads
    the text, which is several times as fast; nodes are composed here, since libyaml's composer
    would overflow the stack with deeply nested ones.
    """

    def __init__(self, text: str) -> None:
        _Parser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, which no run writes")
        return super().compose_node(parent, index)


def _copied(plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A deep copy of plain data in dicts with text keys and lists, within MAX_DEPTH and
    MAX_NODES.
    """
    count = 0

    def copy(node: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise UserError(f"{where} is nested too deeply or too large: give another run")
        if isinstance(node, Mapping):
            return {str(key): copy(value, depth + 1) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [copy(value, depth + 1) for value in node]
        if isinstance(node, str) and "${" in node:
            raise UserError(
                f"{where} has the reference {node[:60]!r}, which no run writes: give another run"
            )
        if node is None or isinstance(node, (str, bool, int, float)):
            return node
        raise UserError(f"{where} has a {type(node).__name__}, which no run writes")

    if not isinstance(plain, Mapping):
        raise UserError(f"{where} does not contain a config: give another run")
    return dict(copy(plain, 0))


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict in nested dicts and lists, with its dotted path."""
    if isinstance(node, dict):
        yield path, node
    items: Any = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from _nodes(value, f"{path}.{key}" if path else str(key))


def _allowed(path: str) -> tuple[str, ...]:
    parent = path.rpartition(".")[0]
    return TARGETS.get(path) or TARGETS.get(f"{parent}.*", ())


def _check(path: str, node: dict[str, Any], where: str, trust: Sequence[str]) -> None:
    """Raise UserError unless the node's `_target_` may be built with these arguments."""
    name = node.get("_target_")
    node["_target_"] = name = MOVED.get(name, name) if isinstance(name, str) else name
    special = [key for key in node if key.startswith("_") and key not in ("_target_", "_partial_")]
    if special or not isinstance(node.get("_partial_", False), bool):
        key = special[0] if special else "_partial_"
        raise UserError(f"{where} sets {path}.{key}, which no run writes: give another run")
    ours = name in _allowed(path)
    target = import_target(str(name), path) if ours else _trusted(path, name, where, trust)
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in node:
        if not key.startswith("_") and key not in parameters and not open_ended:
            raise UserError(
                f"{where}: {name} in {path} has no argument '{key}'{suggest(key, parameters)}"
            )
    options = node.get("options")
    if path.endswith("backbone") and isinstance(options, dict):
        for key in options:
            if key.startswith(READS_FILES):
                raise UserError(
                    f"{where} sets {path}.options.{key}, which is not allowed in a file: give "
                    "another run"
                )


def _trusted(path: str, name: Any, where: str, trust: Sequence[str]) -> Any:
    """Import the class or function `name` if it is, and is defined, under a name of `trust`."""
    if not isinstance(name, str) or not _inside(name, trust):
        head = str(name).partition(".")[0]
        raise UserError(
            f"{where} names {name!r} for {path}, which is not part of maskrcnn_lit: if you trust "
            f"that code, add trust={head}"
        )
    target = import_target(name, f"{path} of {where}")
    full_name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    if not callable(target) or not _inside(full_name, trust):
        raise UserError(
            f"{where} names {name!r} for {path}, which is {full_name} and not covered by "
            f"trust={','.join(trust)}: give another run"
        )
    _log.info(f"trust: {name} builds {path} of {where}")
    return target


def _inside(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
