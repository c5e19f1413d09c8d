"""Loads trained weights: from a run folder, a checkpoint, a file of torchvision or Detectron2, or
by name.

`read` returns a full model (config, classes and weights), `start` initializes a new model as its
config says.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.stored import checked
from maskrcnn_lit.data.coco.categories import UNUSED, Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.best_suppression import read_suppression
from maskrcnn_lit.export.runtime import refuse_exported
from maskrcnn_lit.model.backbone import Backbone
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.model.pretrained.files import FORMS, check_finite, read_file, state_of
from maskrcnn_lit.model.pretrained.packages import package_weights
from maskrcnn_lit.model.pretrained.published import (
    PUBLISHED,
    WITHOUT_EPSILON,
    coco_categories,
    published_backbone,
)
from maskrcnn_lit.model.suppression import Suppression
from maskrcnn_lit.model.timm_backbone import TimmBackbone
from maskrcnn_lit.runs.shared import is_shared, local, read_shared
from maskrcnn_lit.storage.checkpoints import best_checkpoint, last_checkpoint
from maskrcnn_lit.storage.download import fetch, file_digest
from maskrcnn_lit.training.checkpoint_files import model_weights

# Options that change the output of given weights.
OPTIONS = (
    *(
        "mean",
        "std",
        "backbone.stride_in_1x1",
        "backbone.norm_eps",
        "anchors.sizes",
        "anchors.ratios",
    ),
    *(
        "anchors.round_corners",
        "anchors.offset",
        "anchors.measured_strides",
        "roi_align.points",
        "roi_align.aligned",
        "roi_align.kind",
        "roi_align.level",
        "mask_head.activation",
    ),
    *("box_head.box_weights",),
)

# Options that change the names or shapes of weights.
ARCHITECTURE = (
    *(
        "backbone.name",
        "backbone.options",
        "backbone.norm",
        "backbone.deformable",
        "backbone.modulated",
        "fpn.kind",
        "fpn.channels",
        "fpn.norm",
        "anchors.ratios",
        "rpn.depth",
    ),
    *(
        "box_head.pool",
        "box_head.convs",
        "box_head.conv_width",
        "box_head.norm",
        "box_head.width",
        "box_head.fcs",
        "box_head.cascade",
    ),
    *("fpn.connections", "fpn.path_augmentation"),
    *("mask_head.width", "mask_head.depth", "mask_head.norm", "mask_head.fcs"),
    *("mask_head.class_agnostic", "mask_head.activation"),
    *("mask_iou", "mask_refine", "occluder"),
)

# The value of options that a config of an earlier version does not have, or one of another part.
ABSENT: dict[str, Any] = {
    **dict.fromkeys(("backbone.stride_in_1x1", "mask_iou", "occluder"), False),
    **dict.fromkeys(("fpn.path_augmentation", "mask_head.class_agnostic"), False),
    **{
        "backbone.deformable": None,
        "backbone.modulated": True,
        "fpn.connections": "both",
        "roi_align.kind": "align",
        "mask_head.activation": "sigmoid",
        "mask_head.fcs": 0,
    },
}

_STAGES = "roi_heads.box_predictor"  # of Detectron2; those of its cascade have numbers

ALIKE = {"auto", "frozen", "batch", "sync"}  # norms of a backbone with compatible weights


class Pretrained(NamedTuple):
    """A trained model: its config, the classes of its labels 1..K, and the state dict."""

    config: Any  # of `maskrcnn-lit train`: a DictConfig, or plain data
    categories: tuple[Category, ...]
    state: dict[str, Tensor]


def read(source: str | Path, checkpoint: str = "best", trust: Sequence[str] = ()) -> Pretrained:
    """Read a trained model with a checked config.

    Args: source: a run folder, a checkpoint of one, a weights file of torchvision's or Detectron2's
        Mask R-CNN, a name in PUBLISHED, whose file is downloaded once, or what `publish` wrote: a
        folder, or hf:USER/NAME on the hub. checkpoint: best or last,
        of a run folder. trust: packages whose classes its config may use.

    Raises: UserError: the source does not exist, is not a supported Mask R-CNN, cannot be
    downloaded, or its config names a class that is not allowed (config/stored.py).
    """
    pretrained = _read_plain(source, checkpoint)
    if isinstance(pretrained.config, DictConfig):
        return pretrained
    config = checked(pretrained.config, where=str(source), trust=trust)
    return pretrained._replace(config=config)


def set_suppression(
    trained: DictConfig, run: str | Path, wanted: Mapping[str, Any], checkpoint: str = "best"
) -> dict[str, Any] | None:
    """Set nms, agnostic_nms and exclusive of a run's model, in place; null in `wanted` is what the
    run has, and nms "best" all three as `evaluate nms=all` stored them. Returns the three where
    they are no longer those of the run, else None.

    Raises: UserError: a value of the wrong kind, or none is stored.
    """
    before = suppression_of(trained)
    values = {name: value for name, value in wanted.items() if value is not None}
    if values.get("nms") == "best":
        stored = read_suppression(run, checkpoint)
        values = stored | values | {"nms": stored["nms"]}
    for name, value in values.items():  # a run of an earlier version does not have them
        OmegaConf.update(trained, f"model.{name}", value, force_add=True)
    after = suppression_of(trained).checked()
    return None if after == before else after._asdict()


def check_exported_suppression(wanted: Mapping[str, Any]) -> None:
    """Raise UserError if the suppression of an exported file is to change: it is in its graph."""
    for name, value in wanted.items():
        if value is not None:
            raise UserError(
                f"model.{name}={value} cannot change an exported file, whose graph has its "
                f"suppression inside: give the run, or export it with model.{name}={value}"
            )


def suppression_of(trained: DictConfig) -> Suppression:
    """The suppression in a run's config; that of earlier versions is the default."""
    given = {name: OmegaConf.select(trained, f"model.{name}") for name in Suppression._fields}
    return Suppression(**{name: value for name, value in given.items() if value is not None})


def _read_plain(source: str | Path, checkpoint: str = "best") -> Pretrained:
    """As `read`, but the config of a checkpoint is unchecked plain data: never build objects from
    it.
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={checkpoint} must be best or last")
    path = Path(local(source))
    if str(source) in PUBLISHED and not path.exists():
        path = fetch(*PUBLISHED[str(source)])
    refuse_exported(path, "weights")
    if not path.exists():
        raise UserError(
            f"{path} does not exist: give a run folder (run_dir) that `maskrcnn-lit train` wrote, "
            "a file of weights, "
            f"or one of {', '.join(PUBLISHED)}"
        )
    if (
        path.is_dir()
        and not (path / "config.yaml").is_file()
        and not (path / "checkpoints").is_dir()
    ):
        raise UserError(
            f"{path} is not a run folder, since it has no config.yaml: give one that `maskrcnn-lit "
            "train` wrote"
        )
    if path.is_dir() and is_shared(path):
        return Pretrained(*read_shared(path))
    if path.is_dir():
        path = (last_checkpoint(path) if checkpoint == "last" else None) or best_checkpoint(path)
    saved = read_file(path)
    if {"config", "categories", "state_dict"} <= saved.keys():
        categories = tuple(Category(number, title) for number, title in saved["categories"])
        state = model_weights(saved)
        check_finite(state, path)
        return Pretrained(saved["config"], categories, state)
    state = state_of(saved)
    check_finite(state, path)
    return _foreign(path, state)


def _deformable(state: Mapping[str, Tensor]) -> list[str]:
    """The options of deformable convolutions in weights of Detectron2."""
    rows = {name: len(v) for name, v in state.items() if name.endswith(".conv2_offset.weight")}
    if not rows:
        return []
    stages = sorted({int(name.split(".")[2].removeprefix("res")) for name in rows})
    modulated = str(27 in rows.values()).lower()
    return [f"backbone.deformable={stages}", f"backbone.modulated={modulated}"]


def _foreign(path: Path, state: dict[str, Tensor]) -> Pretrained:
    """A model from a state dict of torchvision or Detectron2, recognized by its names."""
    if any(name.startswith("backbone.net.blocks.") for name in state):
        depth = _vitdet_name(state)
        options = ["model=vitdet_b", f"backbone.name={depth}", "data.image_size=1024"]
    elif any(name.startswith("proposal_generator.") for name in state):
        blocks = len(
            {name.split(".")[3] for name in state if name.startswith("backbone.bottom_up.res4.")}
        )
        depth = {6: "resnet50", 23: "resnet101"}.get(blocks)
        options = ["model=detectron2", f"backbone={depth}_caffe", *_deformable(state)]
    elif any(name.startswith("roi_heads.") for name in state):
        depth = _torchvision_resnet(state)
        options = [
            f"model=torchvision_v{2 if 'roi_heads.box_head.5.weight' in state else 1}",
            f"backbone={depth}",
        ]
        if file_digest(path, "sha256").startswith(WITHOUT_EPSILON):
            options.append("backbone.norm_eps=0.0")
    else:
        raise _unknown(path, state)
    if not any(name.startswith("roi_heads.mask_") for name in state):
        raise UserError(
            f"{path} has no mask head, so it is not a Mask R-CNN: give weights of a Mask R-CNN"
        )
    if depth is None:
        raise UserError(
            f"{path} is a Mask R-CNN with an unsupported backbone: give weights with a ResNet "
            "or ViTDet's"
        )
    first = f"{_STAGES}.0" if f"{_STAGES}.0.cls_score.bias" in state else _STAGES
    if (scores := f"{first}.cls_score.bias") not in state:
        raise UserError(f"{path} is a Mask R-CNN without {scores}: give all of its weights")
    if first.endswith(".0"):
        options.append("model.box_head.cascade=[0.5,0.6,0.7]")
    config = compose("train", ["data=coco2017", *options, "backbone.norm=frozen"])
    config.model.num_classes = rows = len(state[scores]) - 1
    config.model.box_head.pool = pool = _pool(state, config.model)
    if options[0] in ("model=detectron2", "model=vitdet_b"):
        state = weights.from_detectron2(state, std=config.model.std, pool=pool)
    else:
        state = weights.from_torchvision(state, pool=pool)
    return Pretrained(config, coco_categories(rows), state)


# The first layer on a region's flattened features: of torchvision, its v2, Detectron2, its cascade.
_FIRST_LAYERS = tuple(f"roi_heads.box_head.{name}.weight" for name in ("fc6", "5", "fc1", "0.fc1"))


def _pool(state: Mapping[str, Tensor], model: DictConfig) -> int:
    """The side of the box head's region features: its first layer has a column for each number."""
    channels = model.box_head.conv_width if model.box_head.convs else model.fpn.channels
    columns = next((state[name].shape[-1] for name in _FIRST_LAYERS if name in state), 0)
    return math.isqrt(columns // channels) or weights.POOL


def _unknown(path: Path, state: Mapping[str, Tensor]) -> UserError:
    if any(name.startswith("roi_head.") for name in state):
        return UserError(
            f"{path} has weights of MMDetection, which need the config of their training: "
            f"maskrcnn-lit import from=mmdetection config=FILE weights={path} out=NEW"
        )
    first = next(iter(state), "nothing")
    return UserError(
        f"{path} has {first} and so on: it is neither a Mask R-CNN of torchvision or Detectron2 "
        f"nor a checkpoint of a run: give one of these ({FORMS})"
    )


def _vitdet_name(state: Mapping[str, Tensor]) -> str | None:
    """timm's name of ViTDet's ViT, by its width."""
    names = {768: "samvit_base_patch16", 1024: "samvit_large_patch16", 1280: "samvit_huge_patch16"}
    weight = state.get("backbone.net.patch_embed.proj.weight")
    return None if weight is None else names.get(len(weight))


def _torchvision_resnet(state: Mapping[str, Tensor]) -> str | None:
    blocks = [
        len({n.split(".")[3] for n in state if n.startswith(f"backbone.body.layer{k}.")})
        for k in (1, 2, 3, 4)
    ]
    bottleneck = "backbone.body.layer1.0.conv3.weight" in state
    known = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
    plain = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
    return (known if bottleneck else plain).get((blocks[0], blocks[1], blocks[2], blocks[3]))


def start(model: MaskRCNN, config: DictConfig, categories: Sequence[Category]) -> list[str]:
    """Initialize a new model by backbone.weights and model.weights of its config; return lines for
    the log.

    Raises: UserError: the weights do not exist, do not fit the model (the message has the
    differences), or both options are set.
    """
    ours = isinstance(
        model.backbone, (Backbone, TimmBackbone)
    )  # other classes load their own weights
    where = model.backbone.weights if ours else None
    if None not in (model.weights, where):
        raise UserError(
            f"model.weights={model.weights} includes a backbone, but backbone.weights={where} is "
            "set, too: give one of them, and leave out the other or set it to none"
        )
    if model.weights is not None:
        return _start_whole(model, config, categories)
    if where is None:
        return []
    if isinstance(model.backbone, TimmBackbone):
        state = _timm_state(model.backbone.name, where)
        _check_pixels(model, *_load(model.backbone, where, state))
    else:
        if _is_name(where):
            file, mean, std = published_backbone(model.backbone.name, where)
            _check_pixels(model, mean, std)
            try:
                path = fetch(*file)
            except UserError as error:
                raise UserError(
                    f"backbone.weights={where}: {error}; other ways to start: "
                    "backbone.weights=FILE; "
                    "backbone.weights=none, random weights"
                ) from error
        else:
            path = _existing(where)
        _load(model.backbone, where, state_of(read_file(path)))
    return [f"backbone {model.backbone.name}: weights {where}; norms {model.backbone.norm}"]


def _timm_state(name: str, where: str) -> Mapping[str, Tensor] | None:
    """The weights that backbone.weights=`where` names; None: those of timm's hub."""
    if where == "imagenet":
        return None
    if where != "package":
        return state_of(read_file(_existing(where)))
    try:
        return package_weights(name)
    except UserError as error:
        raise UserError(f"backbone.weights=package: {error}") from error


def _check_pixels(model: MaskRCNN, mean: Sequence[float], std: Sequence[float]) -> None:
    own = [
        [round(float(value), 4) for value in values.flatten()] for values in (model.mean, model.std)
    ]
    if own != [[round(value, 4) for value in values] for values in (mean, std)]:
        raise UserError(
            f"{model.backbone.name} was trained with another pixel mean and standard deviation "
            "than this model: add "
            f"'model.mean={list(mean)}' 'model.std={list(std)}'"
        )


def _load(backbone: Any, where: str, state: Mapping[str, Tensor] | None) -> Any:
    try:
        check_finite(state or {}, where)
        return backbone.load_pretrained(state)
    except UserError as error:
        raise UserError(f"backbone.weights={where}: {error}") from error


def _is_name(where: str) -> bool:
    return not Path(where).exists() and re.fullmatch(r"\w+", where) is not None


def _existing(where: str) -> Path:
    if not Path(where).is_file():
        raise UserError(f"backbone.weights={where} does not exist: give imagenet, none or a file")
    return Path(where)


def _start_whole(model: MaskRCNN, config: DictConfig, categories: Sequence[Category]) -> list[str]:
    try:
        pretrained = _read_plain(str(model.weights))
    except UserError as error:
        if str(model.weights) not in PUBLISHED:  # a file: the error is complete
            raise
        raise UserError(
            f"model.weights={model.weights}: {error}; alternatives: model.weights=FILE (a Mask "
            "R-CNN); model.weights=null backbone.weights=imagenet or FILE (backbone only); "
            "model.weights=null (random weights)"
        ) from error
    theirs, ours = (
        [category.name for category in table] for table in (pretrained.categories, categories)
    )
    try:
        known = weights.take_over(model, pretrained.state, theirs, ours)
    except UserError as error:
        differences = _differences(config, pretrained.config, ARCHITECTURE)
        raise UserError(
            f"model.weights={model.weights}: {error}"
            + (f"; they were trained with {'; '.join(differences)}" if differences else "")
        ) from error
    message = [
        f"model.weights={model.weights}: {len(known)} of {len(ours)} classes matched by name, all "
        "other weights loaded"
    ]
    if len(known) < len(ours):
        width = max(map(len, ours))
        message += [
            f"  {name:{width}}  {'loaded' if name in known else 'initialized'}" for name in ours
        ]
        left = [name for name in theirs if name not in known and not name.startswith(UNUSED)]
        message += (
            [f"  unused: {', '.join(left[:8])}{' and so on' if len(left) > 8 else ''}"]
            if left
            else []
        )
    new = weights.new_parts(model, pretrained.state)
    message += [f"  not in these weights, so initialized: {', '.join(new)}"] if new else []
    return message + [
        f"  the weights were trained with {text}"
        for text in _differences(config, pretrained.config, OPTIONS)
    ]


def _differences(here: DictConfig, there: Any, options: Sequence[str]) -> list[str]:
    """Texts "NAME=THEIRS, but here it is OURS" for the `options` of the model that differ between
    two configs.
    """
    trees = [
        OmegaConf.to_container(config.model, resolve=True)
        if isinstance(config, DictConfig)
        else config.get("model")
        for config in (there, here)
    ]
    message = []
    for option in options:
        theirs, ours = (_pick(tree, option) for tree in trees)
        if theirs != ours and not (option == "backbone.norm" and {theirs, ours} <= ALIKE):
            name = option if option.startswith("backbone.") else f"model.{option}"
            message.append(f"{name}={theirs}, but here it is {ours}")
    return message


def _pick(tree: Any, option: str) -> Any:
    for key in option.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return ABSENT.get(option) if tree is None else tree
