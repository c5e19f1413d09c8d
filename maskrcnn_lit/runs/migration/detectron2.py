"""The settings of Detectron2's Mask R-CNN, Faster R-CNN and their cascades as options of ours."""

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.losses import GIOU_WEIGHT, RPN_GIOU_WEIGHT
from maskrcnn_lit.runs.migration.python_config import MAX_DEPTH, merged
from maskrcnn_lit.runs.migration.their_config import TheirConfig, text

ADVICE = "import a Mask R-CNN or Faster R-CNN on a ResNet or ResNeXt with FPN"

NORMS = {"": None, "BN": "batch", "SyncBN": "sync", "nnSyncBN": "sync", "GN": "group"}
BACKBONE_NORMS = {"FrozenBN": "frozen", **NORMS}

LEVELS = ["p2", "p3", "p4", "p5", "p6"]
STAGES = ["res2", "res3", "res4", "res5"]

# (depth, groups, width of a group) -> ours
BACKBONES = {
    **{(depth, 1, 64): f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    (101, 32, 8): "resnext101",
    (50, 32, 4): "resnext50",
}

CAFFE = (50, 101)  # with a 1x1 convolution that halves the map

RPN, ROI, BOX, MASK = (
    f"MODEL.{part}" for part in ("RPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
)
ANCHORS = "MODEL.ANCHOR_GENERATOR"
CASCADE = "MODEL.ROI_BOX_CASCADE_HEAD"

# Settings that say nothing about the model, or that others imply.
IMPLIED = (
    *("MODEL.WEIGHTS", "MODEL.DEVICE", f"{RPN}.IOU_LABELS", f"{ROI}.IOU_LABELS"),
    *(f"{ANCHORS}.ANGLES", "MODEL.RESNETS.RES2_OUT_CHANNELS", "MODEL.RESNETS.STEM_OUT_CHANNELS"),
    *(f"{BOX}.FED_LOSS_FREQ_WEIGHT_POWER", f"{BOX}.FED_LOSS_NUM_CLASSES"),
    *("MODEL.ROI_KEYPOINT_HEAD", "MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN", "MODEL.RETINANET"),
    *("VERSION", "OUTPUT_DIR", "VIS_PERIOD", "GLOBAL", "CUDNN_BENCHMARK", "INPUT.MASK_FORMAT"),
    *("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS"),  # none here: see _schedule
)

# Settings on which detections depend, and the only value that our model has.
REQUIRED: dict[str, Any] = {
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    f"{ANCHORS}.NAME": "DefaultAnchorGenerator",
    f"{RPN}.HEAD_NAME": "StandardRPNHead",
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
    f"{BOX}.NAME": "FastRCNNConvFCHead",
}

# Settings of training alone, and the only value that ours has.
TRAINING: dict[str, Any] = {
    f"{RPN}.BOUNDARY_THRESH": -1,
    f"{ROI}.PROPOSAL_APPEND_GT": True,
    f"{BOX}.TRAIN_ON_PRED_BOXES": False,
}


# Detectron2's defaults of settings that have no option here: another value is in the table.
DEFAULTS: dict[str, Any] = {
    **{"DATALOADER.NUM_WORKERS": 4, "DATALOADER.ASPECT_RATIO_GROUPING": True},
    **{"DATALOADER.SAMPLER_TRAIN": "TrainingSampler", "DATALOADER.REPEAT_THRESHOLD": 0.0},
    **{"DATALOADER.REPEAT_SQRT": True, "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True},
    **{"SOLVER.NESTEROV": False, "SOLVER.WARMUP_FACTOR": 0.001, "SOLVER.WARMUP_METHOD": "linear"},
    **{"SOLVER.CHECKPOINT_PERIOD": 5000, "SOLVER.REFERENCE_WORLD_SIZE": 0},
    **{"SOLVER.BIAS_LR_FACTOR": 1.0, "SOLVER.BASE_LR_END": 0.0, "SOLVER.AMP.ENABLED": False},
    **{"SOLVER.NUM_DECAYS": 3, "SOLVER.RESCALE_INTERVAL": False},
    **{"INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice", "SEED": -1, "FLOAT32_PRECISION": ""},
    **{"TEST.EXPECTED_RESULTS": [], "TEST.EVAL_PERIOD": 0, "TEST.KEYPOINT_OKS_SIGMAS": []},
    **{"TEST.AUG.ENABLED": False, "TEST.AUG.MAX_SIZE": 4000, "TEST.AUG.FLIP": True},
    "TEST.AUG.MIN_SIZES": [400, 500, 600, 700, 800, 900, 1000, 1100, 1200],
    **{"TEST.PRECISE_BN.ENABLED": False, "TEST.PRECISE_BN.NUM_ITER": 200},
    **{"DATASETS.TRAIN": [], "DATASETS.TEST": []},
    **{f"DATASETS.PROPOSAL_FILES_{phase}": [] for phase in ("TRAIN", "TEST")},
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

MULTI_STEP = "WarmupMultiStepLR"


class _Loader(yaml.SafeLoader):
    """YAML without objects: a tag of python (`!!python/tuple`) is a list or refused."""


def _as_list(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.YAMLError("a tuple that is not a list")
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _as_list)


def read_yaml_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config of Detectron2 with those in `_BASE_`, as nested plain data. Nothing in it is
    executed.

    Raises:
        UserError: a file is missing, is not yaml, or inherits from itself.
    """
    path = path.absolute()
    if path in above or len(above) > MAX_DEPTH:
        raise UserError(f"{path} inherits from itself: remove it from its _BASE_")
    if not path.is_file():
        raise UserError(
            f"the config {path} does not exist: give the file beside those that it inherits from, "
            "or the config.yaml of a training's output folder"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a yaml config of Detectron2 ({first}): give one with MODEL and SOLVER, "
            "such as the config.yaml of a training's output folder"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} has no settings: give a yaml config of Detectron2")
    bases = values.pop("_BASE_", None) or []
    result: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:  # a later one is above the others
        file = path.parent / Path(str(base)).expanduser()
        result = merged(result, read_yaml_config(file, (*above, path)))
    return merged(result, _evaluated(values))


def _evaluated(value: Any) -> Any:
    """Texts that are literals of Python, "(60000, 80000)", as Detectron2 reads them."""
    if isinstance(value, dict):
        return {key: _evaluated(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value


def from_detectron2(config: TheirConfig) -> None:
    """Fill `options` and `table` of a config of Detectron2.

    Raises:
        UserError: it is not a Mask R-CNN that ours can be.
    """
    config.only("MODEL.META_ARCHITECTURE", ("GeneralizedRCNN",), "GeneralizedRCNN", ADVICE)
    config.only(
        "MODEL.BACKBONE.NAME", ("build_resnet_fpn_backbone",), "build_resnet_backbone", ADVICE
    )
    config.options["model"] = "detectron2"
    config.expect(IMPLIED, REQUIRED, TRAINING, ADVICE)
    _backbone(config)
    _pixels(config)
    _pyramid(config)
    _rpn(config)
    _box_head(config)
    if config.take("MODEL.MASK_ON", False):
        _mask_head(config)
    else:
        config.as_option("MODEL.MASK_ON", "model.mask_head", None)
        config.take(MASK)
    del config.options["_roi_align"]
    _data(config)
    _schedule(config)
    usual = {f"{path}={text(value)}" for path, value in DEFAULTS.items()}
    config.table += [
        row for row in config.left(*map(str, config.values)) if row.theirs not in usual
    ]


def conv1_pixels(config: TheirConfig) -> tuple[list[float], bool]:
    """The deviation that pixels are divided by, of 0..255, and whether they are B G R."""
    std = [float(value) for value in config.take("MODEL.PIXEL_STD", [1.0, 1.0, 1.0])]
    return std, config.take("INPUT.FORMAT", "BGR") == "BGR"


def _backbone(config: TheirConfig) -> None:
    section = "MODEL.RESNETS"
    depth, groups, width = (
        config.take(f"{section}.{name}", default)
        for name, default in (("DEPTH", 50), ("NUM_GROUPS", 1), ("WIDTH_PER_GROUP", 64))
    )
    name = BACKBONES.get((depth, groups, width))
    inner = config.take(f"{section}.STRIDE_IN_1X1", True)
    if name is None:
        raise UserError(
            f"{section} has depth {depth} and {groups} groups of width {width}, which cannot be "
            f"imported: {ADVICE}, of depth 18, 34, 50, 101, 152"
        )
    config.only(f"{section}.RES5_DILATION", (1,), 1, ADVICE)
    if inner and depth >= 50:
        config.only(f"{section}.DEPTH", CAFFE, 50, f"{ADVICE}; others have STRIDE_IN_1X1=False")
        name = f"{name}_caffe"
    config.as_option(f"{section}.DEPTH", "backbone", name)
    _deformable(config, section)
    kind = config.only(f"{section}.NORM", tuple(BACKBONE_NORMS), "FrozenBN", ADVICE)
    config.as_option(f"{section}.NORM", "backbone.norm", BACKBONE_NORMS[kind])
    config.same("MODEL.BACKBONE.FREEZE_AT", "backbone.freeze_at", 2)


def _deformable(config: TheirConfig, section: str) -> None:
    stages = config.take(f"{section}.DEFORM_ON_PER_STAGE", [False] * 4)
    modulated = config.take(f"{section}.DEFORM_MODULATED", False)
    if not any(stages):
        config.take(f"{section}.DEFORM_NUM_GROUPS")
        return
    config.only(f"{section}.DEFORM_NUM_GROUPS", (1,), 1, ADVICE)
    numbers = [number for number, has in enumerate(stages, start=2) if has]
    config.as_option(f"{section}.DEFORM_ON_PER_STAGE", "backbone.deformable", numbers)
    config.as_option(f"{section}.DEFORM_MODULATED", "backbone.modulated", bool(modulated))


def _pixels(config: TheirConfig) -> None:
    std, bgr = conv1_pixels(config)
    config.only("INPUT.FORMAT", ("BGR", "RGB"), "BGR", ADVICE)
    mean = config.take("MODEL.PIXEL_MEAN", [103.530, 116.280, 123.675])
    mean, std = (values[::-1] if bgr else values for values in (mean, std))
    config.as_option("MODEL.PIXEL_MEAN", "model.mean", [round(value / 255, 6) for value in mean])
    if std == [1.0, 1.0, 1.0]:
        difference = "the first convolution is scaled instead"
        config.differs("MODEL.PIXEL_STD", difference, "model.std")
    else:
        config.as_option("MODEL.PIXEL_STD", "model.std", [round(value / 255, 6) for value in std])
    if bgr:
        config.differs("INPUT.FORMAT", "R G B: the first convolution is turned")


def _pyramid(config: TheirConfig) -> None:
    config.only("MODEL.FPN.IN_FEATURES", (STAGES,), [], ADVICE)
    config.same("MODEL.FPN.OUT_CHANNELS", "model.fpn.channels", 256)
    config.only("MODEL.FPN.FUSE_TYPE", ("sum",), "sum", ADVICE)
    _norm(config, "MODEL.FPN.NORM", "model.fpn.norm")


def _norm(config: TheirConfig, path: str, option: str) -> None:
    kind = config.only(path, tuple(NORMS), "", ADVICE)
    config.as_option(path, option, NORMS[kind])


def _rpn(config: TheirConfig) -> None:
    config.only(f"{RPN}.IN_FEATURES", (LEVELS,), ["res4"], ADVICE)
    sizes = config.take(f"{ANCHORS}.SIZES", [[32, 64, 128, 256, 512]])
    ratios = config.take(f"{ANCHORS}.ASPECT_RATIOS", [[0.5, 1.0, 2.0]])
    if [len(level) for level in sizes] != [1] * len(LEVELS):
        raise UserError(f"{ANCHORS}.SIZES={sizes} must have one size a level: {ADVICE}")
    if any(level != ratios[0] for level in ratios):
        raise UserError(f"{ANCHORS}.ASPECT_RATIOS={ratios} must be those of all levels: {ADVICE}")
    config.as_option(f"{ANCHORS}.SIZES", "model.anchors.sizes", [level[0] for level in sizes])
    config.as_option(f"{ANCHORS}.ASPECT_RATIOS", "model.anchors.ratios", ratios[0])
    config.same(f"{ANCHORS}.OFFSET", "model.anchors.offset", 0.0)
    background, objects = config.take(f"{RPN}.IOU_THRESHOLDS", [0.3, 0.7])
    config.as_option(f"{RPN}.IOU_THRESHOLDS", "model.rpn.background_iou", background)
    config.options["model.rpn.object_iou"] = objects
    config.same(f"{RPN}.BATCH_SIZE_PER_IMAGE", "model.rpn.batch_size", 256)
    config.same(f"{RPN}.POSITIVE_FRACTION", "model.rpn.positive_fraction", 0.5)
    config.same(f"{RPN}.NMS_THRESH", "model.rpn.nms_iou", 0.7)
    for phase, before, after in (("TRAIN", 12000, 2000), ("TEST", 6000, 1000)):
        config.same(f"{RPN}.PRE_NMS_TOPK_{phase}", f"model.rpn.pre_nms.{phase.lower()}", before)
        config.same(f"{RPN}.POST_NMS_TOPK_{phase}", f"model.rpn.post_nms.{phase.lower()}", after)
    dims = config.take(f"{RPN}.CONV_DIMS", [-1])
    if any(dim not in (-1, config.options["model.fpn.channels"]) for dim in dims):
        raise UserError(f"{RPN}.CONV_DIMS={dims} must be -1, the pyramid's channels: {ADVICE}")
    config.as_option(f"{RPN}.CONV_DIMS", "model.rpn.depth", len(dims))
    config.only(f"{RPN}.BBOX_REG_WEIGHTS", ([1.0] * 4,), [1.0] * 4, ADVICE)
    _box_loss(config, RPN)
    if config.take(f"{RPN}.LOSS_WEIGHT", 1.0) != 1.0:
        config.differs(f"{RPN}.LOSS_WEIGHT", "1: the losses have no weights")


def _box_loss(config: TheirConfig, section: str) -> None:
    ours, giou = (
        ("model.rpn", RPN_GIOU_WEIGHT) if section == RPN else ("model.box_head", GIOU_WEIGHT)
    )
    kind, weight = config.take(f"{section}.BBOX_REG_LOSS_TYPE", "smooth_l1"), 1.0
    if kind == "giou":
        config.as_option(f"{section}.BBOX_REG_LOSS_TYPE", f"{ours}.box_loss", "giou")
        weight = giou
    elif kind != "smooth_l1":
        config.differs(f"{section}.BBOX_REG_LOSS_TYPE", "smooth L1 with a threshold of 1/9")
    elif not math.isclose(config.take(f"{section}.SMOOTH_L1_BETA", 0.0), 1 / 9, rel_tol=0.01):
        config.differs(f"{section}.SMOOTH_L1_BETA", "1/9")
    path = f"{section}.BBOX_REG_LOSS_WEIGHT"
    if config.take(path, 1.0) != weight:
        config.differs(path, f"{weight:g}: the losses have no weights")


def _regions(config: TheirConfig, section: str, option: str) -> None:
    kind = config.only(f"{section}.POOLER_TYPE", ("ROIAlignV2", "ROIAlign"), "ROIAlignV2", ADVICE)
    aligned = kind == "ROIAlignV2"
    config.same(f"{section}.POOLER_RESOLUTION", option, 14)
    points = config.same(f"{section}.POOLER_SAMPLING_RATIO", "model.roi_align.points", 0)
    config.as_option(f"{section}.POOLER_TYPE", "model.roi_align.aligned", aligned)
    first = config.options.setdefault("_roi_align", (points, aligned))
    if first != (points, aligned):
        raise UserError(
            f"{section}.POOLER_TYPE and POOLER_SAMPLING_RATIO differ from those of the box head, "
            f"which cannot be imported: {ADVICE}"
        )


def _box_head(config: TheirConfig) -> None:
    config.only(f"{ROI}.IN_FEATURES", (LEVELS[:4],), ["res4"], ADVICE)
    heads = ("StandardROIHeads", "CascadeROIHeads")
    cascade = config.only(f"{ROI}.NAME", heads, "Res5ROIHeads", ADVICE) == "CascadeROIHeads"
    _regions(config, BOX, "model.box_head.pool")
    config.same(f"{BOX}.NUM_CONV", "model.box_head.convs", 0)
    config.same(f"{BOX}.CONV_DIM", "model.box_head.conv_width", 256)
    config.same(f"{BOX}.NUM_FC", "model.box_head.fcs", 0)
    config.same(f"{BOX}.FC_DIM", "model.box_head.width", 1024)
    _norm(config, f"{BOX}.NORM", "model.box_head.norm")
    config.only(f"{BOX}.CLS_AGNOSTIC_BBOX_REG", (cascade,), False, ADVICE)
    config.only(f"{BOX}.USE_FED_LOSS", (False,), False, ADVICE)
    config.only(f"{BOX}.USE_SIGMOID_CE", (False,), False, ADVICE)
    weights = [10.0, 10.0, 5.0, 5.0]
    config.same(f"{BOX}.BBOX_REG_WEIGHTS", "model.box_head.box_weights", weights)
    _box_loss(config, BOX)
    if cascade:
        config.same(f"{CASCADE}.IOUS", "model.box_head.cascade", [0.5, 0.6, 0.7])
        stages = [[n * value for value in weights] for n in (1, 2, 3)]
        config.only(f"{CASCADE}.BBOX_REG_WEIGHTS", (stages,), stages, ADVICE)
    else:
        config.take(CASCADE)
    config.same(f"{ROI}.NUM_CLASSES", "model.num_classes", 80)
    config.as_option(f"{ROI}.IOU_THRESHOLDS", "model.box_head.object_iou", _one(config))
    config.same(f"{ROI}.BATCH_SIZE_PER_IMAGE", "model.box_head.batch_size", 512)
    config.same(f"{ROI}.POSITIVE_FRACTION", "model.box_head.positive_fraction", 0.25)
    config.same(f"{ROI}.SCORE_THRESH_TEST", "model.box_head.score_threshold", 0.05)
    config.same(f"{ROI}.NMS_THRESH_TEST", "model.box_head.nms_iou", 0.5)
    config.same("TEST.DETECTIONS_PER_IMAGE", "model.box_head.max_detections", 100)


def _one(config: TheirConfig) -> float:
    return config.take(f"{ROI}.IOU_THRESHOLDS", [0.5])[0]


def _mask_head(config: TheirConfig) -> None:
    _regions(config, MASK, "model.mask_head.pool")
    upsample = "MaskRCNNConvUpsampleHead"
    config.only(f"{MASK}.NAME", (upsample,), upsample, ADVICE)
    config.same(f"{MASK}.NUM_CONV", "model.mask_head.depth", 0)
    config.same(f"{MASK}.CONV_DIM", "model.mask_head.width", 256)
    config.same(f"{MASK}.CLS_AGNOSTIC_MASK", "model.mask_head.class_agnostic", False)
    _norm(config, f"{MASK}.NORM", "model.mask_head.norm")


def _data(config: TheirConfig) -> None:
    short, long = (
        _side(config, f"INPUT.{name}_SIZE_TEST", default)
        for name, default in (("MIN", 800), ("MAX", 1333))
    )
    config.as_option("INPUT.MIN_SIZE_TEST", "data.image_size", [min(short, long), long])
    config.as_option("INPUT.MAX_SIZE_TEST", "data.image_size", [min(short, long), long])
    _training_sizes(config, short, long)
    flips = {"horizontal": (0.5, 0.0), "vertical": (0.0, 0.5), "none": (0.0, 0.0)}
    kind = config.only("INPUT.RANDOM_FLIP", tuple(flips), "horizontal", ADVICE)
    config.as_option("INPUT.RANDOM_FLIP", "augment.flip", flips[kind][0])
    config.options["augment.vertical_flip"] = flips[kind][1]
    config.take("INPUT.CROP")
    if config.take("INPUT.CROP.ENABLED", False):
        config.differs("INPUT.CROP.ENABLED", "not imported: see augment.crop")


def _training_sizes(config: TheirConfig, short: int, long: int) -> None:
    """Sizes in training are factors of those in inference, `short` and `long`."""
    path, longest = "INPUT.MIN_SIZE_TRAIN", _side(config, "INPUT.MAX_SIZE_TRAIN", 1333)
    sides = config.take(path, [800])
    count = len(sides) if isinstance(sides, list) else 0
    sides = [_side(config, f"{path}.{n}", 800) for n in range(count)] or [_side(config, path, 800)]
    scale = [round(side / short, 6) for side in (min(sides), max(sides))]
    differences = []
    if scale[0] < scale[1] and config.take(f"{path}_SAMPLING", "choice") == "choice":
        differences.append("uniform between the two")
    if scale[1] > 1:
        differences.append("parts beyond data.image_size are cropped at random")
    config.as_option(path, "augment.scale", scale, "; ".join(differences))
    if longest != long:
        config.differs("INPUT.MAX_SIZE_TRAIN", "that of data.image_size times augment.scale")


def _side(config: TheirConfig, path: str, default: int) -> int:
    side = config.take(path, default)
    if not isinstance(side, int) or side < 1:
        raise UserError(
            f"{path}={text(side)} cannot be imported, since images are always resized here: write "
            "the side of your images in pixels, such as 800, into a copy of the config"
        )
    return side


def _schedule(config: TheirConfig) -> None:
    section = "SOLVER"
    config.options["optimizer"] = "sgd"
    batch = config.take(f"{section}.IMS_PER_BATCH", 16)
    config.same(f"{section}.BASE_LR", "optimizer.lr", 0.001)
    config.as_option(f"{section}.IMS_PER_BATCH", "optimizer.reference_batch", batch)
    config.same(f"{section}.MOMENTUM", "optimizer.momentum", 0.9)
    config.same(f"{section}.WEIGHT_DECAY", "optimizer.weight_decay", 0.0001)
    config.differs(f"{section}.WEIGHT_DECAY", "not on norms and biases")
    config.same(f"{section}.WARMUP_ITERS", "optimizer.warmup_steps", 1000)
    config.options["trainer.epochs"] = None
    _decay(config, config.same(f"{section}.MAX_ITER", "trainer.steps", 40000))
    _clipping(config, f"{section}.CLIP_GRADIENTS")


def _decay(config: TheirConfig, total: int) -> None:
    """The learning rate after the warm-up, in a run of `total` steps."""
    if total < 1:
        raise UserError(
            f"SOLVER.MAX_ITER={total} must be the steps of a training, 1 or more: write them into "
            "a copy of the config"
        )
    name = config.take("SOLVER.LR_SCHEDULER_NAME", MULTI_STEP)
    steps = config.take("SOLVER.STEPS", [30000])
    gamma = config.take("SOLVER.GAMMA", 0.1)
    if name == "WarmupCosineLR":
        difference = "the cosine begins after the warm-up"
        config.as_option("SOLVER.LR_SCHEDULER_NAME", "optimizer.schedule", "cosine", difference)
        return
    difference = "" if name == MULTI_STEP else "multi-step, at SOLVER.STEPS"
    config.as_option("SOLVER.LR_SCHEDULER_NAME", "optimizer.schedule", "multi_step", difference)
    config.as_option("SOLVER.GAMMA", "optimizer.gamma", gamma)
    steps = steps if isinstance(steps, list) else [steps]
    shares = [round(step / total, 6) for step in steps if step < total]
    difference = "" if len(shares) == len(steps) else "steps from MAX_ITER on have no effect there"
    config.as_option("SOLVER.STEPS", "optimizer.milestones", shares, difference)


def _clipping(config: TheirConfig, section: str) -> None:
    clip = config.take(section, {})
    config.options["trainer.clip_norm"] = None
    if not isinstance(clip, Mapping) or not clip.get("ENABLED"):
        return
    kind, path = clip.get("CLIP_TYPE", "value"), f"{section}.CLIP_VALUE"
    if kind == "value":
        config.differs(f"{section}.CLIP_TYPE", "not imported: see trainer.clip_norm")
        return
    difference = "the norm of all gradients, not of each parameter's" if kind == "norm" else ""
    config.as_option(path, "trainer.clip_norm", clip.get("CLIP_VALUE", 1.0), difference)
