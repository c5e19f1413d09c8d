"""The allowed values of every option, as data: one row of OPTIONS per option.

A row gives the kind of the value, its range or choices, special words (`auto`), and whether it may
be null. `check` validates a composed config, and `expects` describes a row in words, for messages
and `--help`. An option without a row belongs to the user's own config: its class checks it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from maskrcnn_lit.errors import UserError

LARGEST = 2**63 - 1  # integer: torch and numpy store 64 bits
LONGEST_TEXT = 4096  # characters: the maximum length of a path
LONGEST_NAME = 255  # bytes of a file or folder
SHOWN = 60  # characters of a value in a message

OURS = ("maskrcnn_lit.", "lightning.pytorch.")  # packages whose arguments have rows


@dataclass(frozen=True)
class Rule:
    """The allowed values of an option.

    Attributes:
        kind: "flag", "whole", "number", "choice", "text", "path", "group" (of options), "any"
            (a dict whose entries are the user's) or "classes" (such a dict, or a list of names).
        low, high: the range of a number, inclusive; above, below: exclusive bounds.
        choices: of a "choice". words: texts that are allowed beside the kind. null: may be null.
        single: one value is allowed. count: how many values a list may have (least, most), of which
            each follows the rule, from item_low if that is given; None: a list is not allowed.
        rising: they ascend, equal ones
            included. apart: equal ones excluded too.
    """

    kind: str
    low: float = 0
    high: float = LARGEST
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    null: bool = False
    single: bool = True
    count: tuple[int, int] | None = None
    item_low: float | None = None
    rising: bool = False
    apart: bool = False


MANY = 10_000_000  # items of a list: at most as many as images in a data set


def _whole(low: int, high: int = LARGEST, **more: Any) -> Rule:
    return Rule("whole", low, high, **more)


def _number(low: float, high: float, **more: Any) -> Rule:
    return Rule("number", low, high, **more)


def _choice(*choices: str, **more: Any) -> Rule:
    return Rule("choice", choices=choices, **more)


def _listed(rule: Rule, least: int, most: int = MANY, **more: Any) -> Rule:
    return replace(rule, single=False, count=(least, most), **more)


FLAG, TEXT, PATH, GROUP = Rule("flag"), Rule("text"), Rule("path"), Rule("group", null=True)
PATH_OR_NULL, TEXT_OR_NULL = Rule("path", null=True), Rule("text", null=True)
SHARE = _number(0, 1)
FACTOR = _number(0, 1e6)
COUNT = _whole(1)
COUNT_OR_NULL = _whole(1, null=True)
SEED = _whole(0)
PIXELS = _whole(1, 2**40)
WIDTH, DEPTH, POOL, SAMPLE = (_whole(1, most) for most in (65_536, 100, 64, 1_000_000))
NORM = _choice("batch", "sync", "group", "frozen", "layer", null=True)
NMS = _choice("box", "mask", "soft", "matrix", "containment")
ACCELERATOR = _choice("auto", "cpu", "gpu")
PRECISION = _choice("auto", "bf16-mixed", "16-mixed", "32-true", "bf16", "16", "32")
LIMITS = _listed(COUNT, 3, 3, rising=True, apart=True)
IDS_OR_NULL = _listed(_whole(-LARGEST), 1, null=True)
CLASSES = Rule("classes", null=True, count=(1, MANY))
PAIR = {"single": False, "count": (2, 2), "rising": True}

OPTIONS: dict[str, Rule] = {
    # options of commands
    "accelerator": ACCELERATOR,
    "against": PATH_OR_NULL,
    "baseline": replace(PATH_OR_NULL, count=(1, MANY)),
    "batch_size": _whole(1, 65_536),
    "calibration_images": COUNT,
    "checkpoint": _choice("best", "last"),
    "cleaned": PATH_OR_NULL,
    "classes": _listed(TEXT, 1, 10_000, null=True),
    "columns": replace(TEXT_OR_NULL, count=(1, 20)),
    "compile": FLAG,
    "config": PATH_OR_NULL,
    "copy_images": FLAG,
    "count": _whole(1, 10_000),
    "epoch": _whole(0, 2**31),
    "file": PATH,
    "first": _whole(0, 10_000),
    "folders": replace(PATH, count=(1, MANY)),
    "from": _choice("mmdetection", "detectron2", "torchvision"),
    "format": _choice("onnx", "openvino", "pt2", "web"),
    "grid.backbone": _listed(TEXT, 1, 1000),
    "grid.image_size": _listed(_whole(32, 16_384), 1, 1000),
    "grid.model": _listed(TEXT, 1, 1000),
    "grid.runs": replace(PATH_OR_NULL, count=(1, MANY)),
    "grid.runtime": _listed(
        _choice("pytorch", "onnx", "onnx_int8", "openvino", "openvino_int8"), 1, null=True
    ),
    "host": TEXT,
    "hosts": _listed(TEXT, 1, 1000, null=True),
    "images": COUNT_OR_NULL,
    "jsons": replace(PATH, count=(1, MANY)),
    "high": _number(0, 1e6, above=True),
    "latency": TEXT_OR_NULL,
    "library": FLAG,
    "license": TEXT_OR_NULL,
    "low": _number(0, 1e6, above=True),
    "max_detections": SAMPLE,
    "max_pixels": PIXELS,
    "measure": FLAG,
    "megabytes": _number(0, 1e6, above=True),
    "megapixels": _number(0, 1e6, above=True),
    "metric": replace(TEXT_OR_NULL, count=(1, 20)),
    "other_data": FLAG,
    "names": _listed(TEXT, 1, 100, null=True),
    "nms": _choice("all", null=True),
    "norm_eps": _number(0, 1, null=True),
    "once": FLAG,
    "out": PATH_OR_NULL,
    "overlap": _number(0, 0.5),
    "overwrite": FLAG,
    "page": COUNT_OR_NULL,
    "part": _choice("train", "val"),
    "pictures": FLAG,
    "port": _whole(0, 65_535),
    "precision": PRECISION,
    "private": FLAG,
    "provider": _choice("auto", "cpu", "cuda", "tensorrt"),
    "question": TEXT_OR_NULL,
    "queue": _whole(1, 65_536),
    "report": FLAG,
    "requeue": FLAG,
    "results": PATH_OR_NULL,
    "resume": PATH_OR_NULL,
    "rows": replace(TEXT_OR_NULL, count=(1, 20)),
    "run": PATH_OR_NULL,
    "run_dir": PATH_OR_NULL,
    "runs": replace(PATH, count=(1, MANY)),
    "save": FLAG,
    "score_threshold": replace(SHARE, words=("best",)),
    "seconds": _number(0, 86_400, above=True),
    "seed": SEED,
    "seeds": _choice("mean±std", "mean±ci", "mean", "n"),
    "size": _whole(32, 16_384),
    "sizes": replace(TEXT_OR_NULL, count=(1, 100)),
    "source": replace(PATH, count=(1, MANY)),
    "steps": COUNT,
    "sweep_dir": PATH_OR_NULL,
    "sweep_scale": _choice("full", "demo"),
    "to": _choice("coco", "yolo_seg", "mask_folder"),
    "tile": _whole(32, 16_384, null=True),
    "tolerance": _number(0, 1e6, null=True),
    "track": _choice("mask_iou", "bytetrack", "ocsort", null=True),
    "trust": replace(TEXT, count=(0, MANY)),
    "tta": _choice("flip", "scales", null=True),
    "warmup": _whole(0),
    "web_runtime": PATH_OR_NULL,
    "weights": PATH,
    # data.batch_size=auto
    "auto_batch.margin": _number(0, 1, below=True),
    "auto_batch.memory_gb": _number(0, 1e6, above=True, null=True),
    "auto_batch.most": _whole(1, 65_536, null=True),
    # evaluation and sweeps
    "evaluation.every_n_epochs": COUNT,
    "evaluation.images": COUNT_OR_NULL,
    "metrics.max_detections": replace(LIMITS, null=True),
    "metrics.roi_accuracy.boxes": _choice("all", "study"),
    "sweep.demo.grid": Rule("any"),
    "sweep.demo.options": Rule("any"),
    "sweep.goals": _listed(TEXT, 1, 10, null=True),
    "sweep.grid": Rule("any"),
    "sweep.plan_only": FLAG,
    "sweep.prune": FLAG,
    "sweep.prune_first": COUNT,
    "sweep.prune_keep": _whole(2),
    "sweep.search": _choice("tpe", "random", "grid", null=True),
    "sweep.trial_steps": _whole(0),
    "sweep.trials": _whole(1, 1_000_000),
    # conf/augment
    "augment.blur": _number(0, 20),
    "augment.brightness": SHARE,
    "augment.contrast": SHARE,
    "augment.copy_paste.objects": _whole(1, 1000),
    "augment.copy_paste.occlude": SHARE,
    "augment.copy_paste.p": SHARE,
    "augment.copy_paste.visible": SHARE,
    "augment.crop": _number(0.01, 1),
    "augment.flip": SHARE,
    "augment.noise": SHARE,
    "augment.perspective": _number(0, 0.2),
    "augment.rot90": SHARE,
    "augment.rotation": _number(0, 180),
    "augment.saturation": SHARE,
    "augment.scale": _number(0.01, 4, **PAIR),
    "augment.transforms": Rule("any", single=False, count=(0, 1000)),
    "augment.vertical_flip": SHARE,
    # conf/backbone
    "backbone.deformable": _listed(_whole(2, 5), 1, 4, rising=True, apart=True, null=True),
    "backbone.drop_path": SHARE,
    "backbone.freeze_at": _whole(0, 5, words=("auto", "all")),
    "backbone.layers": _listed(TEXT, 1, null=True),
    "backbone.modulated": FLAG,
    "backbone.name": TEXT,
    "backbone.norm": _choice("auto", "frozen", "batch", "sync", "group"),
    "backbone.norm_eps": _number(0, 1, null=True),
    "backbone.options": Rule("any", null=True),
    "backbone.recompute": replace(FLAG, words=("auto",)),
    "backbone.square": _whole(64, 16_384, null=True),
    "backbone.stride_in_1x1": FLAG,
    "backbone.weights": TEXT_OR_NULL,
    "backbone.window": _whole(1, 16_384, null=True),
    # conf/callbacks
    "callbacks.*": GROUP,
    "callbacks.evaluation.max_detections": LIMITS,
    "callbacks.evaluation.model_limit": SAMPLE,
    "callbacks.evaluation.roi_boxes": _choice("all", "study"),
    "callbacks.evaluation.run_dir": PATH,
    "callbacks.hyperparameters.names": _listed(TEXT, 0),
    "callbacks.panels.images": _whole(0, 1000),
    "callbacks.panels.score_threshold": SHARE,
    "callbacks.panels.seed": SEED,
    # conf/data
    "data.annotations": PATH_OR_NULL,
    "data.batch_size": _whole(1, 65_536, words=("auto",)),
    "data.cache_dir": PATH_OR_NULL,
    "data.bits": _whole(8, 32, words=("auto",)),
    "data.cache_gb": _number(0, 1e6),
    "data.classes": CLASSES,
    "data.download": FLAG,
    "data.feature_cache": _choice("off", "bfloat16", "uint8", "float32"),
    "data.group_by": TEXT_OR_NULL,
    "data.ignore_void": FLAG,
    "data.image_cache": _choice("auto", "on", "off"),
    "data.image_ids": IDS_OR_NULL,
    "data.images": PATH_OR_NULL,
    "data.image_size": _whole(32, 16_384, count=(2, 2), rising=True),
    "data.keep_empty": FLAG,
    "data.lengths": _whole(1, 3),
    "data.mask_size": _whole(1, 4096),
    "data.max_pixels": PIXELS,
    "data.mirror": TEXT_OR_NULL,
    "data.name": TEXT,
    "data.on_bad": _choice("error", "skip"),
    "data.official_ap": _choice("cityscapes", null=True),
    "data.overlap": _number(0, 0.9, null=True),
    "data.prepare": GROUP,
    "data.prepare.cache_dir": PATH_OR_NULL,
    "data.prepare.classes": CLASSES,
    "data.prepare.image_ids": IDS_OR_NULL,
    "data.prepare.keep_empty": FLAG,
    "data.prepare.overlap": _number(0, 0.9, null=True),
    "data.prepare.parts": _listed(_choice("train", "val"), 1, 2),
    "data.prepare.root": PATH,
    "data.prepare.seed": SEED,
    "data.prepare.size": _whole(32, 16_384),
    "data.prepare.subset": _choice("random", "first"),
    "data.prepare.train_images": COUNT_OR_NULL,
    "data.prepare.val_images": COUNT_OR_NULL,
    "data.reader": GROUP,
    "data.reader.box_format": _choice("xywh", "xyxy", "yolo"),
    "data.reader.class_name": TEXT,
    "data.reader.first_pixel": _whole(0, 1),
    "data.reader.image": TEXT_OR_NULL,
    "data.reader.images": TEXT,
    "data.reader.lists": TEXT,
    "data.reader.mask": TEXT_OR_NULL,
    "data.reader.masks": TEXT,
    "data.reader.names": _listed(TEXT, 1, null=True),
    "data.reader.sbd": PATH_OR_NULL,
    "data.reader.suffix": replace(TEXT, words=("",)),
    "data.reader.train": replace(TEXT, count=(1, 3)),
    "data.reader.val": replace(TEXT, count=(1, 3)),
    "data.reader.yaml": TEXT_OR_NULL,
    "data.repeat_threshold": _number(0, 1, null=True),
    "data.root": PATH_OR_NULL,
    "data.sbd": PATH_OR_NULL,
    "data.seed": SEED,
    "data.slots": _whole(1, 4096),
    "data.split_seed": SEED,
    "data.subset": _choice("random", "first"),
    "data.train": GROUP,
    "data.train.annotations": PATH,
    "data.train.images": PATH,
    "data.train_images": COUNT_OR_NULL,
    "data.val": GROUP,
    "data.val.annotations": PATH,
    "data.val.images": PATH,
    "data.val_images": COUNT_OR_NULL,
    "data.val_share": _number(0.001, 0.999, null=True),
    "data.workers": _whole(0, 1024, words=("auto",)),
    # conf/launcher
    "launcher.at_once": COUNT_OR_NULL,
    "launcher.cluster": _choice("slurm", "local"),
    "launcher.cpus": _whole(1, 65_536),
    "launcher.devices": _listed(_whole(0, 65_536), 1, null=True),
    "launcher.gpus": _whole(0, 65_536),
    "launcher.hours": _number(0.02, 8784),
    "launcher.memory_gb": _whole(1, 1_000_000),
    "launcher.partition": TEXT_OR_NULL,
    "launcher.requeues": _whole(0, 1000),
    # conf/logger
    "logger.*": GROUP,
    "logger.csv.path": PATH,
    "logger.mlflow.experiment": TEXT,
    "logger.mlflow.run_dir": PATH,
    "logger.mlflow.tracking_uri": TEXT_OR_NULL,
    "logger.tensorboard.run_dir": PATH,
    "logger.trackio.project": TEXT,
    "logger.trackio.run_dir": PATH,
    "logger.wandb.project": TEXT,
    "logger.wandb.run_dir": PATH,
    # conf/model
    "model.agnostic_nms": FLAG,
    "model.anchors.measured_strides": FLAG,
    "model.anchors.offset": SHARE,
    "model.anchors.ratios": _listed(_number(0.001, 1000), 1, 1000),
    "model.anchors.round_corners": FLAG,
    "model.anchors.sizes": _listed(_number(1, 10_000), 1, 1000),
    "model.box_head.batch_size": SAMPLE,
    "model.box_head.box_loss": _choice("smooth_l1", "giou"),
    "model.box_head.box_weights": _listed(_number(0.001, 1000), 4, 4),
    "model.box_head.candidates": SAMPLE,
    "model.box_head.cascade": _listed(SHARE, 2, 10, rising=True, null=True),
    "model.box_head.class_loss": _choice("cross_entropy", "focal"),
    "model.box_head.conv_width": WIDTH,
    "model.box_head.convs": _whole(0, 100),
    "model.box_head.fcs": DEPTH,
    "model.box_head.label_smoothing": SHARE,
    "model.box_head.max_detections": SAMPLE,
    "model.box_head.nms_iou": SHARE,
    "model.box_head.norm": NORM,
    "model.box_head.object_iou": SHARE,
    "model.box_head.pool": POOL,
    "model.box_head.positive_fraction": SHARE,
    "model.box_head.score_threshold": SHARE,
    "model.box_head.width": WIDTH,
    "model.exclusive": FLAG,
    "model.fpn.channels": WIDTH,
    "model.fpn.connections": _choice("both", "lateral", "top_down"),
    "model.fpn.kind": _choice("auto", "fpn", "simple"),
    "model.fpn.norm": NORM,
    "model.fpn.path_augmentation": replace(FLAG, words=("mmdetection",)),
    "model.fpn.separable": FLAG,
    "model.mask_head": GROUP,
    "model.mask_head.activation": _choice("sigmoid", "softmax"),
    "model.mask_head.class_agnostic": FLAG,
    "model.mask_head.depth": DEPTH,
    "model.mask_head.fcs": _whole(0, 100),
    "model.mask_head.norm": NORM,
    "model.mask_head.pool": POOL,
    "model.mask_head.separable": FLAG,
    "model.mask_head.slots": replace(SAMPLE, null=True),
    "model.mask_head.width": WIDTH,
    "model.mask_iou": FLAG,
    "model.mask_refine": _choice("points", null=True),
    "model.mean": _listed(SHARE, 3, 3),
    "model.nms": NMS,
    "model.num_classes": _whole(1, 65_536),
    "model.occluder": FLAG,
    "model.roi_align.aligned": FLAG,
    "model.roi_align.kind": _choice("align", "warp", "pool"),
    "model.roi_align.level": _whole(2, 5, null=True),
    "model.roi_align.points": _whole(0, 32),
    "model.rpn.background_iou": SHARE,
    "model.rpn.batch_size": SAMPLE,
    "model.rpn.box_loss": _choice("smooth_l1", "giou"),
    "model.rpn.depth": DEPTH,
    "model.rpn.nms_iou": SHARE,
    "model.rpn.object_iou": SHARE,
    "model.rpn.objectness_loss": _choice("cross_entropy", "focal"),
    "model.rpn.positive_fraction": SHARE,
    "model.rpn.post_nms.test": SAMPLE,
    "model.rpn.post_nms.train": SAMPLE,
    "model.rpn.pre_nms.test": SAMPLE,
    "model.rpn.pre_nms.train": SAMPLE,
    "model.rpn.separable": FLAG,
    "model.std": _listed(_number(0.001, 1), 3, 3),
    "model.weights": TEXT_OR_NULL,
    # conf/optimizer
    "optimizer.backbone_factor": FACTOR,
    "optimizer.betas": _listed(_number(0, 0.999999), 2, 2),
    "optimizer.end_factor": SHARE,
    "optimizer.gamma": _number(0, 1000),
    "optimizer.layer_decay": _number(0, 1, above=True),
    "optimizer.lr": _number(0, 1e6, above=True),
    "optimizer.milestones": _listed(_number(0, 1, above=True, below=True), 0, rising=True),
    "optimizer.momentum": SHARE,
    "optimizer.plateau.factor": SHARE,
    "optimizer.plateau.monitor": _choice(
        "val/mask_ap", "val/mask_ap50", "val/box_ap", "val/box_ap50", "val/loss"
    ),
    "optimizer.plateau.patience": COUNT,
    "optimizer.reference_batch": COUNT,
    "optimizer.scaling": _choice("linear", "sqrt", "none"),
    "optimizer.schedule": _choice(
        "cosine", "study_cosine", "multi_step", "poly", "constant", "plateau"
    ),
    "optimizer.warmup_steps": _whole(0),
    "optimizer.weight_decay": FACTOR,
    # conf/trainer
    "trainer.accelerator": ACCELERATOR,
    "trainer.accumulate": _whole(1, words=("auto",)),
    "trainer.check": FLAG,
    "trainer.checkpoint_every": TEXT_OR_NULL,
    "trainer.checkpoint_every_n_steps": COUNT_OR_NULL,
    "trainer.clip_norm": _number(0, 1e9, null=True),
    "trainer.clip_value": _number(0, 1e9, above=True, null=True),
    "trainer.compile": _choice("auto", "always", "off"),
    "trainer.deterministic": Rule("flag", words=("warn",)),
    "trainer.devices": _whole(
        1, 65_536, words=("auto",), count=(1, 65_536), item_low=0, apart=True
    ),
    "trainer.ema": _number(0, 1, above=True, below=True, null=True),
    "trainer.epochs": COUNT_OR_NULL,
    "trainer.keep_best": COUNT,
    "trainer.limit_train_batches": COUNT_OR_NULL,
    "trainer.limit_val_batches": COUNT_OR_NULL,
    "trainer.log_every_n_steps": COUNT,
    "trainer.max_time": TEXT_OR_NULL,
    "trainer.monitor": TEXT_OR_NULL,
    "trainer.num_nodes": _whole(1, 65_536),
    "trainer.options": Rule("any"),
    "trainer.patience": COUNT_OR_NULL,
    "trainer.precision": PRECISION,
    "trainer.profile": COUNT_OR_NULL,
    "trainer.profiler": _choice("simple", "advanced", "pytorch", null=True),
    "trainer.rank_timeout_minutes": _number(0, 10_000, above=True, null=True),
    "trainer.steps": COUNT_OR_NULL,
}

# Groups that may also appear elsewhere in a config, with the same rows.
COPIES = {"model.backbone": "backbone", "data.augment": "augment"}

# Rows of options that mean something else in one command, by a key that its config alone has.
OF_COMMAND = {
    "format": {"precision": _choice("f32", "int8")},  # export
    "license": {"to": PATH},  # publish
    "megapixels": {"run": replace(PATH, count=(1, 100))},  # serve
    "once": {"sweep_dir": PATH, "metric": TEXT_OR_NULL},  # top
}

# Rows of options in commands that take a run, whose configs have these of the model alone; null is
# what the run has.
OF_RUN = {
    "model.agnostic_nms": replace(FLAG, null=True),
    "model.exclusive": replace(FLAG, null=True),
    "model.nms": replace(NMS, choices=(*NMS.choices, "best"), null=True),
}

COUNTED = {2: "two ", 3: "three ", 4: "four ", 5: "five "}
AT_LEAST = {0: "", 1: "one or more ", 2: "two or more "}


def rule_of(name: str) -> Rule | None:
    """The row of the option `name`, or None."""
    for copy, original in COPIES.items():
        if name.startswith(f"{copy}."):
            name = original + name.removeprefix(copy)
    return OPTIONS.get(name) or OPTIONS.get(f"{name.rpartition('.')[0]}.*")


def is_path(name: str) -> bool:
    """Whether the option `name` is a path, so that its value is always text."""
    rule = OPTIONS.get(name)
    return rule is not None and rule.kind == "path"


def choices_of(name: str) -> tuple[str, ...]:
    """The choices of the option `name`; none if it is of another kind."""
    rule = OPTIONS.get(name)
    return () if rule is None else rule.choices


def is_group(name: str) -> bool:
    """Whether `name` is a group of options and cannot have a single value."""
    return any(other.startswith(f"{name}.") for other in OPTIONS)


def applies(name: str, config: Mapping[str, Any]) -> Rule | None:
    """The row of `name` in `config` (nested dicts), or None if the option belongs to a class
    outside the package.
    """
    for key, rows in OF_COMMAND.items():
        if key in config and name in rows:
            return rows[name]
    model = config.get("model")
    if name in OF_RUN and isinstance(model, Mapping) and len(model) == len(OF_RUN):
        return OF_RUN[name]
    node: Any = config
    ours = True
    for part in name.split(".")[:-1]:
        node = node.get(part) if isinstance(node, Mapping) else None
        ours = _ours(node, ours)
    return rule_of(name) if ours else None


def check(config: Mapping[str, Any], skip: Collection[str] = ()) -> None:
    """Raise UserError for the first value of `config` (nested dicts, lists) that its row does not
    allow. Missing values (`???`), references (`${...}`) and null options named in `skip` are not
    checked.
    """
    for name, value, general in _ruled(config, "", True):
        if not (value is None and name in skip):
            fault = fault_of(name, value, applies(name, config) or general)
            if fault:
                raise UserError(fault)


def fault_of(name: str, value: Any, rule: Rule) -> str | None:
    """A sentence on why `value` is not allowed, or None."""
    if isinstance(value, str) and (value == "???" or value.startswith("${")):
        return None
    if _allows(rule, value):
        return None
    wanted = f"must be {expects(rule)}"
    if rule.kind in ("group", "any"):
        under = [other for other in OPTIONS if other.startswith(f"{name}.")][:6]
        wanted = "is a group of options" + (f": set one of {', '.join(under)}" if under else "")
    return f"{name}={_shown(value)} {wanted}{_hint(name, value, rule)}"


def _hint(name: str, value: Any, rule: Rule) -> str:
    """An addition to the message for special cases."""
    if rule.kind in ("text", "path") and isinstance(value, str) and rule.single:
        return ", but this is too long or has a zero byte" if value else ", but this is empty"
    if rule.kind == "text" and isinstance(value, (int, float)) and len(_shown(value)) < SHOWN:
        return f": write {name}='\"{_shown(value)}\"'"
    if rule.kind == "classes" and isinstance(value, str):
        return f": in a shell write '{name}=[...]' with the quotes"
    if isinstance(value, int) and rule.kind == "whole" and value > rule.high == LARGEST:
        return f" and at most {LARGEST}"
    return ""


def expects(rule: Rule) -> str:
    """The allowed values in words: "a whole number from 0 to 5, or auto"."""
    some = []
    if rule.single:
        some.append(_one(rule))
    if rule.count is not None:
        some.append(_several(rule))
    some += [word for word in rule.words if word]
    if rule.null:
        some.append("null")
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])}, or {some[-1]}"


def _one(rule: Rule) -> str:
    if rule.kind in ("whole", "number"):
        return f"a {_noun(rule)}{_range(rule)}"
    return {
        "choice": f"one of {', '.join(rule.choices)}",
        "flag": "true or false",
        "text": "text",
        "path": "a path",
        "group": "a group of options",
        "any": "NAME: VALUE entries in braces",
        "classes": "NAME: NEW_NAME entries in braces",
    }[rule.kind]


def _several(rule: Rule) -> str:
    least, most = rule.count or (0, 0)
    rule = rule if rule.item_low is None else replace(rule, low=rule.item_low)
    order = "ascending " if rule.rising else ""
    if rule.kind in ("whole", "number"):
        items = f"{order}{_noun(rule)}s{_range(rule)}"
    else:
        items = {
            "choice": f"items of {', '.join(rule.choices)}",
            "path": "paths",
            "classes": "names",
        }.get(rule.kind, "texts")
    if least == most:
        return f"{COUNTED.get(least, f'{least} ')}{items}"
    return f"a list of {AT_LEAST.get(least, f'{least} or more ')}{items}"


def _noun(rule: Rule) -> str:
    return "whole number" if rule.kind == "whole" else "number"


def _range(rule: Rule) -> str:
    if rule.above and rule.below:
        return f" between {rule.low:g} and {rule.high:g}"
    if rule.above:
        return f" above {rule.low:g}"
    low, high = (end if isinstance(end, int) else f"{end:g}" for end in (rule.low, rule.high))
    if rule.low == -LARGEST:
        return ""
    if rule.high == LARGEST:
        return f", {low} or more"
    return f" from {low} to {high}"


def _shown(value: Any) -> str:
    """The beginning of a value, as a user types it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    try:
        text = " ".join(str(value).splitlines())
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _ruled(node: Mapping[str, Any], prefix: str, ours: bool) -> Iterator[tuple[str, Any, Rule]]:
    """The dotted name, value and row of every value of nested dicts that has a row."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if str(key).startswith("_"):
            continue
        rule = rule_of(name)
        if rule is None and not isinstance(value, Mapping) and is_group(name):
            rule = Rule("group")
        if rule is not None and ours:
            yield name, value, rule
        if isinstance(value, Mapping) and (rule is None or rule.kind == "group"):
            yield from _ruled(value, f"{name}.", _ours(value, ours))


def _ours(node: Any, ours: bool) -> bool:
    """Whether rows apply inside `node`: decided by its `_target_`, else as outside."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return ours
    return str(node["_target_"]).startswith(OURS)


def _allows(rule: Rule, value: Any) -> bool:
    if value is None:
        return rule.null
    if isinstance(value, (list, tuple)):
        return _allows_list(rule, value)
    if isinstance(value, str) and value in rule.words:
        return True
    return rule.single and _allows_one(rule, value)


def _allows_list(rule: Rule, values: list[Any] | tuple[Any, ...]) -> bool:
    if rule.count is None or not rule.count[0] <= len(values) <= rule.count[1]:
        return False
    if rule.kind in ("path", "classes"):  # a folder named 7
        values = [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    if rule.kind == "classes":
        return all(_is_class(value) for value in values)
    item = rule if rule.item_low is None else replace(rule, low=rule.item_low)
    if not all(_allows_one(item, value) for value in values):
        return False
    if rule.rising and any(a > b for a, b in pairwise(values)):
        return False
    return not rule.apart or len(set(values)) == len(values)


def _allows_one(rule: Rule, value: Any) -> bool:
    if rule.kind == "flag":
        return isinstance(value, bool)
    if rule.kind in ("whole", "number"):
        kinds = int if rule.kind == "whole" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        inside = rule.low <= value <= rule.high  # False for nan
        return inside and not (
            (rule.above and value == rule.low) or (rule.below and value == rule.high)
        )
    if rule.kind == "choice":
        return not isinstance(value, bool) and str(value) in rule.choices
    if rule.kind == "classes":
        return isinstance(value, Mapping) and _is_class(value)
    if rule.kind in ("group", "any"):
        return isinstance(value, Mapping)
    return isinstance(value, str) and _is_text(value, path=rule.kind == "path")


def _is_class(value: Any) -> bool:
    """Whether `value` is a class name, or a dict of old names -> new names or null."""
    if isinstance(value, Mapping):
        names = [name for pair in value.items() for name in pair if name is not None]
        return bool(value) and all(type(name) in (str, int) for name in names)
    return isinstance(value, str) and _is_text(value, path=False)


def _is_text(text: str, *, path: bool) -> bool:
    if not text or len(text) > LONGEST_TEXT or "\0" in text:
        return False
    parts = text.split("/") if path and "://" not in text else []
    return all(len(part.encode("utf-8", "surrogateescape")) <= LONGEST_NAME for part in parts)
