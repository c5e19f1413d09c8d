"""The settings of MMDetection's Mask R-CNN and Faster R-CNN, versions 2 and 3, as options of
ours.
"""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.losses import FOCAL_GAMMA, GIOU_WEIGHT, RPN_GIOU_WEIGHT
from maskrcnn_lit.model.suppression import SOFT_SIGMA
from maskrcnn_lit.runs.migration.mmdetection_training import read_training, steps
from maskrcnn_lit.runs.migration.python_config import Unread
from maskrcnn_lit.runs.migration.their_config import TheirConfig

ADVICE = "import a Mask R-CNN or Faster R-CNN on a ResNet or ResNeXt with FPN"

NORMS = {
    **{"BN": "batch", "SyncBN": "sync", "MMSyncBN": "sync", "GN": "group"},
    **{"BatchNorm2d": "batch", "SyncBatchNorm": "sync", "GroupNorm": "group"},
}

NORM_EPS = 1e-5

STRIDES = [4, 8, 16, 32, 64]

# (type, depth, groups, width of a group) -> ours; style=caffe has a file of its own
BACKBONES = {
    **{("ResNet", depth, 1, 4): f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    ("ResNeXt", 50, 32, 4): "resnext50",
    ("ResNeXt", 101, 32, 8): "resnext101",
    ("ResNeXt", 101, 64, 4): "resnext101_64x4d",
}
CAFFE = ("resnet50", "resnet101")

# type of dcn -> whether it is modulated
DEFORMABLE = {
    **{"DCN": False, "DeformConv2dPack": False},
    **{"DCNv2": True, "ModulatedDeformConv2dPack": True},
}

RPN, RPN_TRAIN, RPN_TEST = "model.rpn_head", "model.train_cfg.rpn_proposal", "model.test_cfg.rpn"
BOX, MASK = "model.roi_head.bbox_head", "model.roi_head.mask_head"
RCNN_TRAIN, RCNN_TEST = "model.train_cfg.rcnn", "model.test_cfg.rcnn"

# Settings that say nothing about the model, or that others imply.
IMPLIED = (
    *("model.backbone.init_cfg", "model.pretrained", "model.neck.in_channels"),
    *("model.data_preprocessor.type", "model.data_preprocessor.pad_mask"),
    *(f"{head}.in_channels" for head in (RPN, BOX, MASK)),
    *(f"{BOX}.roi_feat_size", f"{RCNN_TRAIN}.mask_size"),
    *(f"model.roi_head.{part}_roi_extractor.out_channels" for part in ("bbox", "mask")),
    *(f"model.train_cfg.{part}.debug" for part in ("rpn", "rcnn")),
    *(f"{RCNN_TRAIN}.assigner.min_pos_iou", f"{RCNN_TRAIN}.assigner.match_low_quality"),
)

# Settings on which detections depend, and the only value that our model has.
REQUIRED: dict[str, Any] = {
    "model.backbone.num_stages": 4,
    "model.backbone.out_indices": [0, 1, 2, 3],
    "model.backbone.strides": [1, 2, 2, 2],
    "model.backbone.dilations": [1, 1, 1, 1],
    **{"model.neck.start_level": 0, "model.neck.end_level": -1, "model.neck.act_cfg": None},
    **{"model.neck.no_norm_on_lateral": False, "model.neck.upsample_cfg.mode": "nearest"},
    f"{RPN}.type": "RPNHead",
    f"{RPN}.anchor_generator.type": "AnchorGenerator",
    f"{RPN}.anchor_generator.centers": None,
    f"{RPN_TEST}.nms_across_levels": False,
    **{f"{head}.bbox_coder.type": "DeltaXYWHBBoxCoder" for head in (RPN, BOX)},
    **{f"{head}.bbox_coder.target_means": [0.0] * 4 for head in (RPN, BOX)},
    **{f"{head}.bbox_coder.clip_border": True for head in (RPN, BOX)},
    **{f"{head}.bbox_coder.add_ctr_clamp": False for head in (RPN, BOX)},
    f"{RPN}.loss_cls.use_sigmoid": True,
    f"{BOX}.loss_cls.type": "CrossEntropyLoss",
    f"{BOX}.loss_cls.use_sigmoid": False,
    f"{BOX}.with_avg_pool": False,
    **{f"{BOX}.{part}_predictor_cfg.type": "Linear" for part in ("cls", "reg")},
    f"{MASK}.predictor_cfg.type": "Conv",
    f"{RCNN_TEST}.mask_thr_binary": 0.5,
    "model.roi_head.type": "StandardRoIHead",
    **{
        f"model.roi_head.{part}_roi_extractor.type": "SingleRoIExtractor"
        for part in ("bbox", "mask")
    },
}

# Settings of training alone, and the only value that ours has.
TRAINING: dict[str, Any] = {
    f"{MASK}.loss_mask.type": "CrossEntropyLoss",
    f"{MASK}.loss_mask.use_mask": True,
    "model.train_cfg.rpn.allowed_border": -1,
    "model.train_cfg.rpn.sampler.add_gt_as_proposals": False,
    f"{RCNN_TRAIN}.sampler.add_gt_as_proposals": True,
    **{f"model.train_cfg.{part}.pos_weight": -1 for part in ("rpn", "rcnn")},
    **{f"model.train_cfg.{part}.assigner.type": "MaxIoUAssigner" for part in ("rpn", "rcnn")},
    **{f"model.train_cfg.{part}.assigner.ignore_iof_thr": -1 for part in ("rpn", "rcnn")},
    **{f"model.train_cfg.{part}.sampler.type": "RandomSampler" for part in ("rpn", "rcnn")},
    **{f"model.train_cfg.{part}.sampler.neg_pos_ub": -1 for part in ("rpn", "rcnn")},
}


# Sections that version 3 has, and those that version 2 alone reads.
VERSION_3 = ("optim_wrapper", "param_scheduler", "train_dataloader", "test_dataloader")
VERSION_2 = ("data", "optimizer", "optimizer_config", "lr_config", "runner", "total_epochs", "fp16")

# The packages that a type may name: "mmdet.MaskRCNN", "torch.nn.modules.batchnorm.BatchNorm2d".
PACKAGES = ("mmdet", "mmcv", "mmengine", "torch")


def from_mmdetection(config: TheirConfig) -> None:
    """Fill `options` and `table` of a config of MMDetection.

    Raises:
        UserError: it is not a Mask R-CNN that ours can be.
    """
    config.values = _model_with_settings(_without_packages(config.values))
    if any(config.has(section) for section in VERSION_3):
        _leave_out_version_2(config)
    kind = config.only("model.type", ("MaskRCNN", "FasterRCNN"), None, ADVICE)
    config.options["model"] = "detectron2"  # RoIAlign and anchors are those of Detectron2
    config.expect(IMPLIED, REQUIRED, TRAINING, ADVICE)
    for part in ("model.backbone", "model.neck", RPN, BOX, MASK):
        config.only(f"{part}.conv_cfg.type", (None, "Conv2d", "Conv"), None, ADVICE)
    _backbone(config)
    _pixels(config)
    _pyramid(config)
    _rpn(config)
    _box_head(config)
    if kind == "MaskRCNN":
        _mask_head(config)
    else:
        config.as_option("model.type", "model.mask_head", None)
    del config.options["_roi_align"]
    _detections(config)
    config.table += config.left("model")
    read_training(config)


def _without_packages(values: Any) -> Any:
    """`values` with the name alone in each `type`, and without `_scope_`, which says the rest."""
    if isinstance(values, (list, tuple)) and not isinstance(values, Unread):
        return [_without_packages(item) for item in values]
    if not isinstance(values, Mapping):
        return values
    inner = {key: _without_packages(value) for key, value in values.items() if key != "_scope_"}
    kind = inner.get("type")
    if isinstance(kind, str) and kind.partition(".")[0] in PACKAGES:
        inner["type"] = kind.rpartition(".")[2]
    return inner


def _model_with_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Up to version 2.8 train_cfg and test_cfg of the model were beside it."""
    model = values.get("model")
    beside = {
        name: values[name]
        for name in ("train_cfg", "test_cfg")
        if isinstance(values.get(name), Mapping) and "rcnn" in values[name]
    }
    if not beside or not isinstance(model, Mapping):
        return dict(values)
    others = {name: value for name, value in values.items() if name not in beside}
    return {**others, "model": beside | dict(model)}


def _leave_out_version_2(config: TheirConfig) -> None:
    """Some configs of version 3 have sections of version 2 left, which have no effect there."""
    left = [name for name in VERSION_2 if config.has(name)]
    for name in left:
        config.differs(name, "has no effect in version 3")
    config.values = {key: value for key, value in config.values.items() if key not in left}


def class_names(config: TheirConfig, meta: Mapping[str, Any]) -> list[str] | None:
    """The classes that the weights' `meta` or the config names, by label."""
    inside = meta.get("dataset_meta", {}) if isinstance(meta.get("dataset_meta"), Mapping) else {}
    of_weights = (meta.get("CLASSES"), inside.get("classes"), inside.get("CLASSES"))
    sections = ("metainfo", "train_dataloader.dataset.metainfo")
    paths = [f"{section}.{name}" for section in sections for name in ("classes", "CLASSES")]
    of_config = (config.take(path) for path in (*paths, "data.train.classes", "classes"))
    for names in chain(of_weights, of_config):
        if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
            return list(names)
    return None


def conv1_pixels(config: TheirConfig) -> tuple[list[float], bool]:
    """The deviation that pixels are divided by, of 0..255, and whether they are B G R."""
    normalize = _normalize(config)
    std = [float(value) for value in config.take(f"{normalize}.std", [1.0, 1.0, 1.0])]
    return std, not _is_rgb(config, normalize)


def is_caffe(config: TheirConfig) -> bool:
    return config.take("model.backbone.style", "pytorch") == "caffe"


def _backbone(config: TheirConfig) -> None:
    section = "model.backbone"
    kind = config.take(f"{section}.type")
    depth = config.take(f"{section}.depth")
    groups, width = config.take(f"{section}.groups", 1), config.take(f"{section}.base_width", 4)
    name = BACKBONES.get((kind, depth, groups, width))
    caffe = config.only(f"{section}.style", ("pytorch", "caffe"), "pytorch", ADVICE) == "caffe"
    if name is None or (caffe and name not in CAFFE):
        style = " with style=caffe" if caffe else ""
        raise UserError(
            f"{section} is {kind} of depth {depth}, {groups} groups of width {width}{style}, which "
            f"cannot be imported: {ADVICE}, of depth 18, 34, 50, 101, 152"
        )
    for option in ("plugins", "deep_stem", "avg_down"):
        config.only(f"{section}.{option}", (None, False), None, ADVICE)
    shown = f"{name}_caffe" if caffe else name
    config.as_option(f"{section}.depth", "backbone", shown)
    _deformable(config, section)
    kind = config.only(f"{section}.norm_cfg.type", tuple(NORMS), "BN", ADVICE)
    fixed = config.take(f"{section}.norm_eval", True) and NORMS[kind] != "group"
    learned = config.take(f"{section}.norm_cfg.requires_grad", True)
    here = "are fixed" if fixed else "learn"
    difference = f"weight and bias of the norms {here}, too" if learned == fixed else ""
    path = f"{section}.norm_cfg.type"
    config.as_option(path, "backbone.norm", "frozen" if fixed else NORMS[kind], difference)
    config.only(f"{section}.norm_cfg.eps", (NORM_EPS,), NORM_EPS, ADVICE)
    config.only(f"{section}.norm_cfg.num_groups", (32,), 32, ADVICE)
    frozen = config.take(f"{section}.frozen_stages", -1)
    config.as_option(f"{section}.frozen_stages", "backbone.freeze_at", int(frozen) + 1)


def _deformable(config: TheirConfig, section: str) -> None:
    stages = config.take(f"{section}.stage_with_dcn", [False] * 4)
    if config.part(f"{section}.dcn") is None or not any(stages):
        return
    own = f"{section}.dcn"
    kind = config.only(f"{own}.type", tuple(DEFORMABLE), None, ADVICE)
    for name in ("deform_groups", "deformable_groups"):
        config.only(f"{own}.{name}", (1,), 1, ADVICE)
    config.only(f"{own}.fallback_on_stride", (False,), False, ADVICE)
    numbers = [number for number, has in enumerate(stages, start=2) if has]
    config.as_option(f"{section}.stage_with_dcn", "backbone.deformable", numbers)
    config.as_option(f"{own}.type", "backbone.modulated", DEFORMABLE[kind])


def _normalize(config: TheirConfig) -> str:
    """Where mean and standard deviation are: in version 2 a variable that no pipeline uses has no
    effect.
    """
    for phase in ("test", "train"):
        for path in steps(config, phase, "Normalize"):
            return path
    for path in ("model.data_preprocessor", "img_norm_cfg"):
        if config.part(path):
            return path
    raise UserError(
        "the config has neither model.data_preprocessor nor img_norm_cfg: give the whole config, "
        "with what it inherits from"
    )


def _is_rgb(config: TheirConfig, section: str) -> bool:
    return bool(config.take(f"{section}.bgr_to_rgb", config.take(f"{section}.to_rgb", False)))


def _pixels(config: TheirConfig) -> None:
    section = _normalize(config)
    mean, std = (config.take(f"{section}.{name}") for name in ("mean", "std"))
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list) or len(values) != 3:
            raise UserError(f"{section}.{name}={values} must be three numbers: {ADVICE}")
    rgb = _is_rgb(config, section)
    if not rgb:
        mean = mean[::-1]
    config.as_option(f"{section}.mean", "model.mean", [round(value / 255, 6) for value in mean])
    if std == [1.0, 1.0, 1.0]:
        config.differs(f"{section}.std", "the first convolution is scaled instead", "model.std")
    else:
        std = std if rgb else std[::-1]
        config.as_option(f"{section}.std", "model.std", [round(value / 255, 6) for value in std])
    if not rgb:
        name = "to_rgb" if config.has(f"{section}.to_rgb") else "bgr_to_rgb"
        config.differs(f"{section}.{name}", "R G B: the first convolution is turned")
    config.only(f"{section}.pad_size_divisor", (32,), 32, ADVICE)
    for path in steps(config, "test", "Pad"):
        config.only(f"{path}.size_divisor", (32,), 32, ADVICE)
    if config.part("model.data_preprocessor") is None:
        config.ignore("model.data_preprocessor")


def _pyramid(config: TheirConfig) -> None:
    kind = config.only("model.neck.type", ("FPN", "PAFPN"), None, ADVICE)
    if kind == "PAFPN":
        config.as_option("model.neck.type", "model.fpn.path_augmentation", "mmdetection")
    config.same("model.neck.out_channels", "model.fpn.channels")
    config.only("model.neck.num_outs", (5,), 5, ADVICE)
    config.only("model.neck.add_extra_convs", (False,), False, ADVICE)
    _norm(config, "model.neck.norm_cfg", "model.fpn.norm")


def _norm(config: TheirConfig, section: str, option: str) -> None:
    if config.part(section) is None:
        config.ignore(section)
        config.options[option] = None
        return
    kind = config.only(f"{section}.type", tuple(NORMS), None, ADVICE)
    config.as_option(f"{section}.type", option, NORMS[kind])
    config.only(f"{section}.num_groups", (32,), 32, ADVICE)
    config.only(f"{section}.eps", (NORM_EPS,), NORM_EPS, ADVICE)
    config.ignore(f"{section}.requires_grad")


def _rpn(config: TheirConfig) -> None:
    anchors = f"{RPN}.anchor_generator"
    strides = config.only(f"{anchors}.strides", (STRIDES,), None, ADVICE)
    scales = config.take(f"{anchors}.scales")
    if not isinstance(scales, list) or len(scales) != 1:
        raise UserError(f"{anchors}.scales={scales} must be one number: {ADVICE}")
    bases = config.take(f"{anchors}.base_sizes") or strides
    if not isinstance(bases, list) or len(bases) != len(strides):
        raise UserError(f"{anchors}.base_sizes={bases} must be {len(strides)} numbers: {ADVICE}")
    sizes = [base * scales[0] for base in bases]
    config.as_option(f"{anchors}.scales", "model.anchors.sizes", sizes)
    config.same(f"{anchors}.ratios", "model.anchors.ratios")
    config.same(f"{anchors}.center_offset", "model.anchors.offset", 0.0)
    config.only(f"{RPN}.feat_channels", (config.options["model.fpn.channels"],), 256, ADVICE)
    config.same(f"{RPN}.num_convs", "model.rpn.depth", 1)
    config.only(f"{RPN}.bbox_coder.target_stds", ([1.0] * 4,), [1.0] * 4, ADVICE)
    _objectness_loss(config)
    _box_loss(config, RPN)
    _assigner(config, "model.train_cfg.rpn", "model.rpn", background=True)
    config.only("model.train_cfg.rpn.assigner.match_low_quality", (True,), True, ADVICE)
    path = "model.train_cfg.rpn.assigner.min_pos_iou"
    if config.take(path, 0.3):
        config.differs(path, "the best anchor of an object counts, however small its IoU is")
    for section, phase in ((RPN_TRAIN, "train"), (RPN_TEST, "test")):
        config.same(f"{section}.nms_pre", f"model.rpn.pre_nms.{phase}", 1000)
        latest = "max_per_img" if config.has(f"{section}.max_per_img") else "max_num"
        config.same(f"{section}.{latest}", f"model.rpn.post_nms.{phase}", 1000)
        config.take(f"{section}.nms_post")
        config.take(f"{section}.nms_across_levels")
        config.only(f"{section}.min_bbox_size", (0,), 0, ADVICE)
        config.only(f"{section}.nms.type", ("nms",), "nms", ADVICE)
    test, train = (_iou_of_nms(config, section, 0.7) for section in (RPN_TEST, RPN_TRAIN))
    difference = f"in training, too, where theirs is {train}" if train != test else ""
    config.as_option(_nms_path(config, RPN_TEST), "model.rpn.nms_iou", test, difference)


def _nms_path(config: TheirConfig, section: str) -> str:
    names = ("nms.iou_threshold", "nms.iou_thr", "nms_thr")
    return next(
        (f"{section}.{n}" for n in names if config.has(f"{section}.{n}")), f"{section}.{names[0]}"
    )


def _iou_of_nms(config: TheirConfig, section: str, default: float) -> float:
    return config.take(_nms_path(config, section), default)


def _assigner(config: TheirConfig, section: str, ours: str, *, background: bool) -> None:
    config.same(f"{section}.assigner.pos_iou_thr", f"{ours}.object_iou")
    if background:
        config.same(f"{section}.assigner.neg_iou_thr", f"{ours}.background_iou")
    else:
        expected = (config.options[f"{ours}.object_iou"],)
        config.only(f"{section}.assigner.neg_iou_thr", expected, expected[0], ADVICE)
    config.same(f"{section}.sampler.num", f"{ours}.batch_size")
    config.same(f"{section}.sampler.pos_fraction", f"{ours}.positive_fraction")


def _objectness_loss(config: TheirConfig) -> None:
    section = f"{RPN}.loss_cls"
    kind = config.take(f"{section}.type", "CrossEntropyLoss")
    if kind == "FocalLoss":
        config.as_option(f"{section}.type", "model.rpn.objectness_loss", "focal")
        if config.take(f"{section}.alpha", 0.25) is not None:
            config.differs(f"{section}.alpha", "none: a loss of sampled anchors needs none")
        if config.take(f"{section}.gamma", 2.0) != FOCAL_GAMMA:
            config.differs(f"{section}.gamma", f"{FOCAL_GAMMA:g}")
    elif kind != "CrossEntropyLoss":
        config.differs(f"{section}.type", "CrossEntropyLoss")


def _box_loss(config: TheirConfig, section: str) -> None:
    ours, giou = (
        ("model.rpn", RPN_GIOU_WEIGHT) if section == RPN else ("model.box_head", GIOU_WEIGHT)
    )
    kind, weight = config.take(f"{section}.loss_bbox.type", "L1Loss"), 1.0
    beta = config.take(f"{section}.loss_bbox.beta", 1.0)
    if kind == "GIoULoss":
        config.as_option(f"{section}.loss_bbox.type", f"{ours}.box_loss", "giou")
        config.take(f"{section}.reg_decoded_bbox")
        weight = giou
    elif kind != "SmoothL1Loss" or not math.isclose(beta, 1 / 9, rel_tol=0.01):
        config.differs(f"{section}.loss_bbox.type", "smooth L1 with a threshold of 1/9")
    _loss_weight(config, f"{section}.loss_bbox", weight)
    _loss_weight(config, f"{section}.loss_cls")


def _loss_weight(config: TheirConfig, section: str, ours: float = 1.0) -> None:
    if config.take(f"{section}.loss_weight", 1.0) != ours:
        config.differs(f"{section}.loss_weight", f"{ours:g}: the losses have no weights")


def _regions(config: TheirConfig, part: str, option: str) -> None:
    section = f"model.roi_head.{part}_roi_extractor"
    config.only(f"{section}.featmap_strides", (STRIDES[:4],), None, ADVICE)
    config.only(f"{section}.finest_scale", (56,), 56, ADVICE)
    config.only(f"{section}.roi_layer.type", ("RoIAlign",), "RoIAlign", ADVICE)
    old = config.has(f"{section}.roi_layer.out_size")  # up to version 2.2
    size, ratio = ("out_size", "sample_num") if old else ("output_size", "sampling_ratio")
    config.same(f"{section}.roi_layer.{size}", option)
    points = config.same(f"{section}.roi_layer.{ratio}", "model.roi_align.points", 0)
    aligned = config.same(f"{section}.roi_layer.aligned", "model.roi_align.aligned", True)
    first = config.options.setdefault("_roi_align", (points, aligned))
    if first != (points, aligned):
        raise UserError(
            f"{section}.roi_layer is not that of the box head, so it cannot be imported: {ADVICE}"
        )


def _box_head(config: TheirConfig) -> None:
    _regions(config, "bbox", "model.box_head.pool")
    convs, fcs = {
        "Shared2FCBBoxHead": (0, 2),
        "Shared4Conv1FCBBoxHead": (4, 1),
        "ConvFCBBoxHead": (
            config.take(f"{BOX}.num_shared_convs", 0),
            config.take(f"{BOX}.num_shared_fcs", 0),
        ),
    }.get(str(config.take(f"{BOX}.type")), (None, None))
    if not fcs or convs is None:
        raise UserError(
            f"{BOX}.type={config.take(f'{BOX}.type')} cannot be imported: use Shared2FCBBoxHead or "
            "Shared4Conv1FCBBoxHead"
        )
    for name in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        config.only(f"{BOX}.{name}", (0,), 0, ADVICE)
    config.options["model.box_head.convs"] = convs
    config.options["model.box_head.fcs"] = fcs
    config.same(f"{BOX}.fc_out_channels", "model.box_head.width", 1024)
    config.same(f"{BOX}.conv_out_channels", "model.box_head.conv_width", 256)
    _norm(config, f"{BOX}.norm_cfg", "model.box_head.norm")
    config.same(f"{BOX}.num_classes", "model.num_classes")
    config.only(f"{BOX}.reg_class_agnostic", (False,), False, ADVICE)
    stds = config.take(f"{BOX}.bbox_coder.target_stds", [0.1, 0.1, 0.2, 0.2])
    weights = [round(1 / value, 6) for value in stds]
    config.as_option(f"{BOX}.bbox_coder.target_stds", "model.box_head.box_weights", weights)
    _box_loss(config, BOX)
    _assigner(config, RCNN_TRAIN, "model.box_head", background=False)


def _mask_head(config: TheirConfig) -> None:
    _regions(config, "mask", "model.mask_head.pool")
    config.only(f"{MASK}.type", ("FCNMaskHead",), None, ADVICE)
    config.same(f"{MASK}.num_convs", "model.mask_head.depth", 4)
    config.same(f"{MASK}.conv_out_channels", "model.mask_head.width", 256)
    config.only(f"{MASK}.num_classes", (config.options["model.num_classes"],), None, ADVICE)
    config.same(f"{MASK}.class_agnostic", "model.mask_head.class_agnostic", False)
    config.only(f"{MASK}.conv_kernel_size", (3,), 3, ADVICE)
    config.only(f"{MASK}.upsample_cfg.type", ("deconv",), "deconv", ADVICE)
    config.only(f"{MASK}.upsample_cfg.scale_factor", (2,), 2, ADVICE)
    _norm(config, f"{MASK}.norm_cfg", "model.mask_head.norm")
    _loss_weight(config, f"{MASK}.loss_mask")


def _detections(config: TheirConfig) -> None:
    config.same(f"{RCNN_TEST}.score_thr", "model.box_head.score_threshold")
    missing = config.has(f"{RCNN_TEST}.nms") and not config.part(f"{RCNN_TEST}.nms")
    path = f"{RCNN_TEST}.nms.type"
    kind = config.only(path, ("nms", "soft_nms"), None if missing else "nms", ADVICE)
    if kind == "soft_nms":
        _soft_nms(config)
    config.same(f"{RCNN_TEST}.nms.class_agnostic", "model.agnostic_nms", False)
    iou = _iou_of_nms(config, RCNN_TEST, 0.5)
    config.as_option(_nms_path(config, RCNN_TEST), "model.box_head.nms_iou", iou)
    config.same(f"{RCNN_TEST}.max_per_img", "model.box_head.max_detections")


def _soft_nms(config: TheirConfig) -> None:
    """mmcv's, of which ours is the Gaussian form that drops what falls below the threshold."""
    section = f"{RCNN_TEST}.nms"
    config.as_option(f"{section}.type", "model.nms", "soft")
    config.only(f"{section}.method", ("gaussian",), "linear", ADVICE)
    config.only(f"{section}.sigma", (SOFT_SIGMA,), 0.5, ADVICE)
    threshold = config.options["model.box_head.score_threshold"]
    config.only(f"{section}.min_score", (threshold,), 1e-3, ADVICE)
