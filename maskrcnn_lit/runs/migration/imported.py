"""A Mask R-CNN of another framework as a run folder of ours: config, weights, and what differs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from maskrcnn_lit.config.compose import build, compose, to_dict
from maskrcnn_lit.config.overrides import ONE_OF
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.model.pretrained.files import (
    EMA,
    check_finite,
    ema_buffers,
    entry_of,
    read_with_placeholders,
    state_of,
)
from maskrcnn_lit.model.pretrained.published import coco_categories
from maskrcnn_lit.runs.folder import freeze_config
from maskrcnn_lit.runs.migration import detectron2, mmdetection
from maskrcnn_lit.runs.migration.python_config import read_python_config
from maskrcnn_lit.runs.migration.their_config import Setting, TheirConfig, text
from maskrcnn_lit.runs.trained_model import read
from maskrcnn_lit.storage.files import atomic_write, write_json
from maskrcnn_lit.training.checkpoint_files import save_plain

LONGEST = 10_000  # characters of a value

EXPERIMENT, TABLE = Path("experiment/imported.yaml"), "settings.json"


class Imported(NamedTuple):
    """A model of another framework in our terms."""

    options: dict[str, Any]  # of `maskrcnn-lit train`
    table: list[Setting]
    config: DictConfig  # of a run with these options
    categories: tuple[Category, ...]
    state: dict[str, Tensor]


def import_model(
    framework: str,
    config: str | None,
    file: str,
    classes: Sequence[str] | None = None,
    norm_eps: float | None = None,
) -> Imported:
    """Read a config and weights of `framework`: mmdetection, detectron2 or torchvision. Nothing in
    the files is executed.

    Args: config: a file; None for torchvision, whose models have none. file: the weights. classes:
        their names by label; None: those that the files name, or COCO's for 80 classes.
        norm_eps: of torchvision's frozen norms, which its files do not say; None: that of `read`.

    Raises: UserError: a file is missing or damaged, the model is not a Mask R-CNN that ours can be,
        or the weights do not fit the config.
    """
    if framework == "torchvision":
        return _torchvision(config, file, classes, norm_eps)
    if norm_eps is not None:
        raise UserError(
            f"norm_eps={norm_eps:g} is for from=torchvision, and this is from={framework}: leave "
            "it out"
        )
    if config is None:
        raise UserError(f"from={framework} needs config=FILE: the config of the weights' training")
    if framework == "mmdetection":
        theirs = TheirConfig(read_python_config(Path(config)))
        mmdetection.from_mmdetection(theirs)
        std, bgr = mmdetection.conv1_pixels(theirs)
    else:
        theirs = TheirConfig(detectron2.read_yaml_config(Path(config)))
        detectron2.from_detectron2(theirs)
        std, bgr = detectron2.conv1_pixels(theirs)
    content = read_with_placeholders(Path(file))
    state = state_of(content)
    check_finite(state, file)
    composed = _composed(theirs.options)
    rename = weights.from_mmdetection if framework == "mmdetection" else weights.from_detectron2
    renamed = rename(state, composed.model.std, std, bgr, composed.model.box_head.pool)
    meta = content.get("meta")
    named = classes or mmdetection.class_names(theirs, meta if isinstance(meta, Mapping) else {})
    categories = _categories(named, composed.model.num_classes)
    theirs.table += _averaged(content)
    _check_fits(composed, renamed, f"{file} does not fit the config")
    return Imported(theirs.options, theirs.table, composed, categories, renamed)


def _averaged(content: Mapping[str, Any]) -> list[Setting]:
    """Which weights were read, of a file with averaged ones."""
    entry = entry_of(content)
    if entry == EMA:
        return [Setting(f"{EMA} of the file", "", "read: averaged weights, there are no others")]
    other = f"not read: {entry or 'the rest'} is (by MMDetection, with the averaged weights)"
    rows = [Setting(f"{EMA} of the file", "", other)] if EMA in content else []
    inner = content if entry is None else content[entry]
    return rows + ([Setting("ema_* of the file", "", other)] if ema_buffers(inner) else [])


def _torchvision(
    config: str | None, file: str, classes: Sequence[str] | None, norm_eps: float | None
) -> Imported:
    if config is not None:
        raise UserError(
            f"config={config} is not needed: torchvision's models have no config, and the weights "
            "say which one they are; leave it out"
        )
    trained = read(file)
    model = trained.config.model
    version = 2 if model.box_head.convs else 1
    name = str(trained.config.backbone.name)
    options: dict[str, Any] = {
        "model": f"torchvision_v{version}",
        "backbone": name,
        "backbone.norm": "frozen",
        "model.num_classes": model.num_classes,
        "model.box_head.pool": model.box_head.pool,
    }
    own_eps = trained.config.backbone.norm_eps
    options["backbone.norm_eps"] = own_eps if norm_eps is None else norm_eps
    suffix = "_v2" if version == 2 else ""
    table = [
        Setting(f"maskrcnn_{name}_fpn{suffix}", f"model=torchvision_v{version}"),
        *_epsilon(options["backbone.norm_eps"], name, version),
        Setting("its training script's schedule", "", "not imported: the weights do not have it"),
    ]
    categories = _categories(classes, model.num_classes) if classes else trained.categories
    composed = _composed(options)
    _check_fits(composed, trained.state, f"{file} does not fit model=torchvision_v{version}")
    return Imported(options, table, composed, categories, trained.state)


def _epsilon(norm_eps: float | None, backbone: str, version: int) -> list[Setting]:
    ours = f"backbone.norm_eps={text(norm_eps)}"
    ambiguous = norm_eps is None and (backbone, version) == ("resnet50", 1)
    difference = (
        "torchvision uses 0 in models made with weights=COCO_V1: give norm_eps=0 if yours was"
        if ambiguous
        else ""
    )
    return [Setting("epsilon of the frozen norms", ours, difference)]


def _composed(options: Mapping[str, Any]) -> DictConfig:
    """The config of a run with `options`; groups come first, since they bring the other options."""
    groups = [name for name in options if name in ONE_OF]
    others = [name for name in options if name not in ONE_OF]
    overrides = [f"{name}={text(options[name], LONGEST)}" for name in (*groups, *others)]
    return compose("train", ["data=coco2017", *overrides])


def _categories(names: Sequence[str] | None, count: int) -> tuple[Category, ...]:
    if names is None:
        return coco_categories(count)
    if len(names) != count:
        raise UserError(
            f"{len(names)} class names were given for {count} classes: give classes=[NAME,...], "
            "one for each class, by label"
        )
    coco = coco_categories(count)
    if [category.name for category in coco] == list(names):
        return coco
    return tuple(Category(number, name) for number, name in enumerate(names, 1))


def _check_fits(config: DictConfig, state: Mapping[str, Tensor], fault: str) -> None:
    """Raise UserError, which begins with `fault`, for weights that are not those of the model."""
    try:
        weights.load(build(config.model), state)
    except UserError as error:
        raise UserError(f"{fault}: {error}") from error


def write_imported(imported: Imported, folder: Path, question: str) -> None:
    """Write a run folder: config.yaml and checkpoints/best.ckpt, which `run=` and `model.weights=`
    take, EXPERIMENT, a yaml to train with, and TABLE.
    """
    frozen = freeze_config(imported.config)
    frozen.run_dir = str(folder.absolute())
    checkpoint = {
        "config": to_dict(frozen),
        "categories": [list(category) for category in imported.categories],
        "state_dict": {f"model.{name}": value for name, value in imported.state.items()},
    }
    (folder / "checkpoints").mkdir(parents=True)
    save_plain(folder / "checkpoints" / "best.ckpt", checkpoint)
    atomic_write(folder / "config.yaml", OmegaConf.to_yaml(frozen, resolve=True))
    (folder / EXPERIMENT).parent.mkdir()
    atomic_write(folder / EXPERIMENT, experiment_yaml(imported.options, question))
    write_json(folder / TABLE, [setting._asdict() for setting in imported.table])


def experiment_yaml(options: Mapping[str, Any], question: str) -> str:
    """An experiment of ours with `options`: a yaml for `train experiment=imported`."""
    nested = OmegaConf.create()
    for name, value in options.items():
        if name not in ONE_OF and name != "model.num_classes":  # the data has the classes
            OmegaConf.update(nested, name, value)
    groups = [{f"override /{name}": options[name]} for name in options if name in ONE_OF]
    head = OmegaConf.create({"question": question, "defaults": groups})
    return f"# @package _global_\n{OmegaConf.to_yaml(head)}\n{OmegaConf.to_yaml(nested)}"
