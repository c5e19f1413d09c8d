"""MMDetection's settings as options of ours."""

from pathlib import Path
from typing import Any

import pytest
from mmdetection_files import converted

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.mmdetection import class_names, conv1_pixels
from maskrcnn_lit.runs.migration.python_config import Unread
from maskrcnn_lit.runs.migration.their_config import Setting, TheirConfig

EXPECTED = {
    **{"model": "detectron2", "backbone": "resnet50", "optimizer": "sgd"},
    **{"backbone.norm": "frozen", "backbone.freeze_at": 2, "model.num_classes": 80},
    **{"model.mean": [0.485, 0.456, 0.406], "model.std": [0.229, 0.224, 0.225]},
    **{"model.anchors.sizes": [32, 64, 128, 256, 512], "model.anchors.ratios": [0.5, 1.0, 2.0]},
    **{"model.rpn.pre_nms.train": 2000, "model.rpn.post_nms.test": 1000, "model.rpn.nms_iou": 0.7},
    **{"model.rpn.batch_size": 256, "model.box_head.batch_size": 512},
    **{"model.box_head.positive_fraction": 0.25, "model.box_head.box_weights": [10, 10, 5, 5]},
    **{"model.roi_align.points": 0, "model.roi_align.aligned": True, "model.box_head.fcs": 2},
    **{"model.box_head.score_threshold": 0.05, "model.box_head.max_detections": 100},
    **{"model.mask_head.depth": 4, "model.mask_head.pool": 14, "model.box_head.nms_iou": 0.5},
    **{"data.image_size": [800, 1333], "data.batch_size": 2, "augment.flip": 0.5},
    **{"augment.scale": [1.0, 1.0], "optimizer.lr": 0.02, "optimizer.reference_batch": 16},
    **{"optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4, "optimizer.warmup_steps": 500},
    **{"optimizer.milestones": [0.666667, 0.916667], "optimizer.gamma": 0.1},
    **{"trainer.epochs": 12, "trainer.clip_norm": None},
}


def test_the_published_config(tmp_path: Path):
    config = converted(tmp_path)
    assert {name: config.options[name] for name in EXPECTED} == EXPECTED
    assert conv1_pixels(config) == ([58.395, 57.12, 57.375], False)
    differences = {row.theirs: row.difference for row in config.table if row.difference}
    assert differences == {
        "model.backbone.norm_cfg.type=BN": "weight and bias of the norms are fixed, too",
        "model.rpn_head.loss_bbox.type=L1Loss": "smooth L1 with a threshold of 1/9",
        "model.train_cfg.rpn.assigner.min_pos_iou=0.3": (
            "the best anchor of an object counts, however small its IoU is"
        ),
        "model.roi_head.bbox_head.loss_bbox.type=L1Loss": "smooth L1 with a threshold of 1/9",
        "optim_wrapper.optimizer.weight_decay=0.0001": "not on norms and biases",
        "optim_wrapper.type=OptimWrapper": "by the device",
    }


def test_a_config_of_version_2_in_the_caffe_style(tmp_path: Path):
    config = converted(tmp_path, base="caffe.py")
    expected: dict[str, Any] = {
        "backbone": "resnet50_caffe",
        "model.mean": [0.485, 0.456, 0.406],
        "data.image_size": [800, 1333],
        "data.batch_size": 4,
        "augment.scale": [0.8, 1.0],
        "optimizer.milestones": [0.777778, 0.944444],
        "optimizer.warmup_steps": 500,
        "trainer.epochs": 36,
        "trainer.clip_norm": 35,
    }
    assert {name: config.options[name] for name in expected} == expected
    assert "model.std" not in config.options, "the first convolution is scaled"
    assert conv1_pixels(config) == ([1.0, 1.0, 1.0], True)
    differences = {row.difference for row in config.table}
    assert "the first convolution is scaled instead" in differences
    assert "R G B: the first convolution is turned" in differences
    assert "uniform between the two" in differences
    assert "not imported" not in differences


ROI = "model = dict(roi_head=dict({}))"
BACKBONE = "model = dict(backbone=dict({}))"
RCNN_NMS = "model = dict(test_cfg=dict(rcnn=dict(nms=dict({}))))"
IN_C5 = "stage_with_dcn=(False, False, False, True)"
OTHERS = [
    (BACKBONE.format("depth=101"), {"backbone": "resnet101"}),
    (BACKBONE.format("type='ResNeXt', groups=32, base_width=4"), {"backbone": "resnext50"}),
    (
        BACKBONE.format("type='ResNeXt', depth=101, groups=64, base_width=4"),
        {"backbone": "resnext101_64x4d"},
    ),
    (
        BACKBONE.format("norm_cfg=dict(type='GN'), norm_eval=False, frozen_stages=-1"),
        {"backbone.norm": "group", "backbone.freeze_at": 0},
    ),
    (BACKBONE.format("norm_cfg=dict(type='SyncBN'), norm_eval=False"), {"backbone.norm": "sync"}),
    (
        ROI.format(
            "bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=128, "
            "norm_cfg=dict(type='GN', num_groups=32))"
        ),
        {
            **{"model.box_head.convs": 4, "model.box_head.fcs": 1},
            **{"model.box_head.norm": "group", "model.box_head.conv_width": 128},
        },
    ),
    (
        ROI.format("bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)"),
        {"model.num_classes": 3},
    ),
    (ROI.format("mask_head=dict(class_agnostic=True)"), {"model.mask_head.class_agnostic": True}),
    (
        ROI.format("bbox_head=dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss'))"),
        {"model.box_head.box_loss": "giou"},
    ),
    (
        "model = dict(rpn_head=dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss'), "
        "loss_cls=dict(type='FocalLoss', use_sigmoid=True)))",
        {"model.rpn.box_loss": "giou", "model.rpn.objectness_loss": "focal"},
    ),
    (
        "model = dict(neck=dict(type='PAFPN'))",
        {"model.fpn.path_augmentation": "mmdetection"},
    ),
    (
        BACKBONE.format(
            "dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False), "
            "stage_with_dcn=(False, True, True, True)"
        ),
        {"backbone.deformable": [3, 4, 5], "backbone.modulated": True},
    ),
    (
        BACKBONE.format(
            "dcn=dict(type='DCN', deformable_groups=1), stage_with_dcn=(False, False, False, True)"
        ),
        {"backbone.deformable": [5], "backbone.modulated": False},
    ),
    (
        "model = dict(type='FasterRCNN', roi_head=dict(_delete_=True, "
        "bbox_roi_extractor={{_base_.model.roi_head.bbox_roi_extractor}}, "
        "bbox_head={{_base_.model.roi_head.bbox_head}}))",
        {"model.mask_head": None, "model.box_head.fcs": 2},
    ),
    (
        "model = dict(test_cfg=dict(rcnn=dict(max_per_img=50, nms=dict(type='soft_nms', "
        "method='gaussian', min_score=0.05))))",
        {"model.nms": "soft", "model.box_head.max_detections": 50},
    ),
    (RCNN_NMS.format("class_agnostic=True"), {"model.agnostic_nms": True}),
    (
        "model = dict(rpn_head=dict(anchor_generator=dict(base_sizes=[2, 4, 8, 16, 32])))",
        {"model.anchors.sizes": [16, 32, 64, 128, 256]},
    ),
    (BACKBONE.format("conv_cfg=dict(type='Conv2d')"), {"backbone": "resnet50"}),
    ("model = dict(type='mmdet.MaskRCNN', _scope_='mmdet')", {"model.mask_head.depth": 4}),
    (
        BACKBONE.format(
            "type='mmdet.models.backbones.ResNet', "
            "norm_cfg=dict(type='torch.nn.modules.batchnorm.SyncBatchNorm'), norm_eval=False"
        ),
        {"backbone": "resnet50", "backbone.norm": "sync"},
    ),
    (
        "names = ('a', 'b')\nhead = dict(num_classes=len(names))\n"
        "model = dict(roi_head=dict(bbox_head={**head}, mask_head=head))",
        {"model.num_classes": 2},
    ),
    (
        "model = _base_.model\nmodel.roi_head.bbox_head.num_classes = 3\n"
        "model.roi_head.mask_head.num_classes = 3",
        {"model.num_classes": 3},
    ),
    (
        "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, "
        "weight_decay=0.05), clip_grad=dict(max_norm=1))",
        {"optimizer": "adamw", "optimizer.weight_decay": 0.05, "trainer.clip_norm": 1},
    ),
    (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3))",
        {"trainer.epochs": 36},
    ),
]


@pytest.mark.parametrize(("changes", "expected"), OTHERS)
def test_other_settings(changes: str, expected: dict[str, Any], tmp_path: Path):
    options = converted(tmp_path, changes).options
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ("model = dict(type='PointRend')", "model.type=PointRend"),
        ("model = dict(neck=dict(type='BFP'))", "model.neck.type=BFP"),
        ("model = dict(neck=dict(act_cfg=dict(type='ReLU')))", "model.neck.act_cfg="),
        ("model = dict(neck=dict(no_norm_on_lateral=True))", "no_norm_on_lateral=true"),
        ("model = dict(neck=dict(start_level=1))", "model.neck.start_level=1"),
        ("model = dict(neck=dict(upsample_cfg=dict(mode='bilinear')))", "mode=bilinear"),
        (BACKBONE.format("depth=77"), "ResNet of depth 77"),
        (
            BACKBONE.format("depth=18, style='caffe'"),
            "depth 18, 1 groups of width 4 with style=caf",
        ),
        (BACKBONE.format(f"dcn=dict(type='DCNv3'), {IN_C5}"), "backbone.dcn.type=DCNv3"),
        (BACKBONE.format(f"dcn=dict(type='DCNv2', deform_groups=4), {IN_C5}"), "deform_groups=4"),
        (
            BACKBONE.format(f"dcn=dict(type='DCN', fallback_on_stride=True), {IN_C5}"),
            "fallback_on_stride=true",
        ),
        (
            ROI.format("bbox_head=dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True))"),
            "bbox_head.loss_cls.type=FocalLoss",
        ),
        (ROI.format("bbox_head=dict(type='DoubleConvFCBBoxHead')"), "DoubleConvFCBBoxHead"),
        (ROI.format("bbox_head=dict(reg_class_agnostic=True)"), "reg_class_agnostic=true"),
        (ROI.format("mask_head=dict(num_classes=3)"), "mask_head.num_classes=3"),
        (
            ROI.format("mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2))"),
            "mask_roi_extractor.roi_layer is not that of the box head",
        ),
        ("model = dict(rpn_head=dict(anchor_generator=dict(scales=[4, 8])))", "scales=[4, 8]"),
        ("model = dict(data_preprocessor=dict(mean=[1.0]))", "data_preprocessor.mean=[1.0]"),
        (
            ROI.format("bbox_head=dict(bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder'))"),
            "bbox_coder.type=LegacyDeltaXYWHBBoxCoder",
        ),
        (
            "model = dict(rpn_head=dict(bbox_coder=dict(target_means=[0.1, 0.0, 0.0, 0.0])))",
            "rpn_head.bbox_coder.target_means=[0.1, 0, 0, 0]",
        ),
        (ROI.format("bbox_roi_extractor=dict(type='GenericRoIExtractor')"), "GenericRoIExtractor"),
        (BACKBONE.format("conv_cfg=dict(type='ConvWS')"), "backbone.conv_cfg.type=ConvWS"),
        ("model = dict(neck=dict(conv_cfg=dict(type='ConvWS')))", "neck.conv_cfg.type=ConvWS"),
        (ROI.format("mask_head=dict(conv_cfg=dict(type='X'))"), "mask_head.conv_cfg.type=X"),
        ("model = dict(test_cfg=dict(rcnn=dict(mask_thr_binary=0.3)))", "mask_thr_binary=0.3"),
        (RCNN_NMS.format("type='soft_nms'"), "nms.method=linear"),
        (RCNN_NMS.format("type='soft_nms', method='naive'"), "nms.method=naive"),
        (RCNN_NMS.format("type='soft_nms', method='gaussian'"), "nms.min_score=0.001"),
        (
            RCNN_NMS.format("type='soft_nms', method='gaussian', min_score=0.05, sigma=0.3"),
            "nms.sigma=0.3",
        ),
        ("model = dict(test_cfg=dict(rcnn=dict(nms=None)))", "rcnn.nms.type=null"),
        ("model = dict(test_cfg=dict(rpn=dict(nms_across_levels=True)))", "nms_across_levels=true"),
        (
            "model = dict(rpn_head=dict(anchor_generator=dict(base_sizes=[8, 16])))",
            "base_sizes=[8, 16] must be 5 numbers",
        ),
        ("model = dict(rpn_head=dict(bbox_coder=dict(clip_border=False)))", "clip_border=false"),
        (
            ROI.format("bbox_head=dict(cls_predictor_cfg=dict(type='NormedLinear'))"),
            "cls_predictor_cfg.type=NormedLinear",
        ),
        (BACKBONE.format("dilations=(1, 1, 1, 2)"), "dilations=[1, 1, 1, 2]"),
        (BACKBONE.format("norm_cfg=dict(type='BN', eps=1e-3)"), "backbone.norm_cfg.eps=0.001"),
        (BACKBONE.format("type='other.ResNet'"), "model.backbone is other.ResNet"),
        (
            BACKBONE.format("frozen_stages=f(1)"),
            "model.backbone.frozen_stages at",
        ),
        ("model = dict(backbone=f())", "changed.py, line 2 is not plain data: write its value"),
        (
            "test_pipeline = [dict(type='Resize', scale=(9, 9), keep_ratio=True), "
            "dict(type='Pad', size_divisor=64)]",
            "test_pipeline.1.size_divisor=64",
        ),
        ("model = dict(data_preprocessor=None)", "neither model.data_preprocessor nor"),
    ],
)
def test_another_model_is_refused_by_name(changes: str, named: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        converted(tmp_path, changes)
    assert named in str(error.value)


def test_no_stage_with_dcn_is_a_plain_resnet(tmp_path: Path):
    options = converted(tmp_path, BACKBONE.format("dcn=dict(type='DCN')")).options
    assert "backbone.deformable" not in options


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        (
            ROI.format("bbox_head=dict(loss_bbox=dict(type='GIoULoss', loss_weight=10.0))"),
            {},
        ),
        (
            ROI.format("bbox_head=dict(loss_bbox=dict(type='GIoULoss'))"),
            {"model.roi_head.bbox_head.loss_bbox.loss_weight=1": "10: the losses have no weights"},
        ),
        (
            "model = dict(rpn_head=dict(loss_bbox=dict(type='GIoULoss', loss_weight=5.0), "
            "loss_cls=dict(type='FocalLoss', alpha=0.3, gamma=1.5, loss_weight=2.0)))",
            {
                "model.rpn_head.loss_cls.alpha=0.3": "none: a loss of sampled anchors needs none",
                "model.rpn_head.loss_cls.gamma=1.5": "2",
                "model.rpn_head.loss_bbox.loss_weight=5": "2: the losses have no weights",
                "model.rpn_head.loss_cls.loss_weight=2": "1: the losses have no weights",
            },
        ),
        (
            "model = dict(rpn_head=dict(loss_cls=dict(type='GHMC')))",
            {"model.rpn_head.loss_cls.type=GHMC": "CrossEntropyLoss"},
        ),
    ],
)
def test_weights_of_losses_are_differences(
    changes: str, differences: dict[str, str], tmp_path: Path
):
    table = converted(tmp_path, changes).table
    found = {row.theirs: row.difference for row in table if ".loss_" in row.theirs}
    others = ("=L1Loss", "=GIoULoss", "=FocalLoss")
    assert {n: d for n, d in found.items() if not n.endswith(others)} == differences


def test_another_training_is_a_difference(tmp_path: Path):
    sampler = "model = dict(train_cfg=dict(rcnn=dict(sampler=dict(type='OHEMSampler'))))"
    path = "model.train_cfg.rcnn.sampler.type=OHEMSampler"
    assert Setting(path, "", "RandomSampler") in converted(tmp_path, sampler).table


def test_what_nobody_reads_is_in_the_table(tmp_path: Path):
    config = converted(tmp_path, "model = dict(backbone=dict(with_cp=True, stem_channels=128))")
    assert Setting("model.backbone.with_cp=true", "", "not imported") in config.table
    assert Setting("model.backbone.stem_channels=128", "", "not imported") in config.table


NORMALIZE = "dict(type='Normalize', mean=[{0}], std=[{0}], to_rgb=True)"


def test_the_pipeline_normalizes_not_a_variable_beside_it(tmp_path: Path):
    variable = "img_norm_cfg = dict(mean=[9.0, 9, 9], std=[9.0, 9, 9], to_rgb=True)\n"
    mean = converted(tmp_path, variable, "caffe.py").options["model.mean"]
    assert mean == [0.485, 0.456, 0.406], "that of data.train.pipeline"
    test = f"test=dict(pipeline=[dict(type='Resize', img_scale=(1333, 800)), {NORMALIZE}])"
    data = f"data = dict({test.format('51.0, 102.0, 153.0')})"
    options = converted(tmp_path, variable + data, "caffe.py").options
    assert options["model.mean"] == options["model.std"] == [0.2, 0.4, 0.6], "of data.test.pipeline"


@pytest.mark.parametrize(
    ("config", "meta", "expected"),
    [
        ({}, {"CLASSES": ("a", "b")}, ["a", "b"]),
        ({}, {"dataset_meta": {"classes": ["a"]}}, ["a"]),
        ({"metainfo": {"classes": ("c",)}}, {}, ["c"]),
        ({"data": {"train": {"classes": ["d"]}}}, {"CLASSES": None}, ["d"]),
        ({}, {}, None),
    ],
)
def test_class_names(config: dict[str, Any], meta: dict[str, Any], expected: list[str] | None):
    assert class_names(TheirConfig(config), meta) == expected


def test_settings_of_the_model_may_stand_beside_it(tmp_path: Path):
    """As up to version 2.8; up to 2.2 those of RoIAlign had other names."""
    beside = "".join(f"{name} = _base_.model.pop('{name}')\n" for name in ("train_cfg", "test_cfg"))
    old = "dict(_delete_=True, type='RoIAlign', out_size={}, sample_num=2)"
    layers = ", ".join(
        f"{part}_roi_extractor=dict(roi_layer={old.format(size)})"
        for part, size in (("bbox", 7), ("mask", 14))
    )
    config = converted(tmp_path, f"{beside}model = dict(roi_head=dict({layers}))", "caffe.py")
    latest = converted(tmp_path, base="caffe.py")
    assert config.options == latest.options | {"model.roi_align.points": 2}
    assert not [row for row in config.table if row.difference == "not imported"]


def test_what_is_left_of_version_2_has_no_effect(tmp_path: Path):
    changes = (
        "lr_config = dict(step=[16, 23])\nrunner = dict(max_epochs=24)\noptimizer = dict(lr=5)"
    )
    config = converted(tmp_path, changes)
    assert config.options == converted(tmp_path).options
    differences = {row.theirs: row.difference for row in config.table}
    for theirs in ("lr_config={'step': [16, 23]}", "runner={'max_epochs': 24}"):
        assert differences[theirs] == "has no effect in version 3"


@pytest.mark.parametrize(
    ("norm", "difference"),
    [
        ("dict(requires_grad=True), norm_eval=True", "weight and bias of the norms are fixed, too"),
        ("dict(requires_grad=False), norm_eval=True", ""),
        ("dict(requires_grad=True), norm_eval=False", ""),
        ("dict(requires_grad=False), norm_eval=False", "weight and bias of the norms learn, too"),
    ],
)
def test_norms_that_learn(norm: str, difference: str, tmp_path: Path):
    config = converted(tmp_path, f"model = dict(backbone=dict(norm_cfg={norm}))")
    [row] = [row for row in config.table if row.theirs == "model.backbone.norm_cfg.type=BN"]
    assert row.difference == difference
    assert "model.backbone.norm_cfg.requires_grad" not in str(config.table)


def test_names_of_classes_that_are_not_plain_are_refused():
    config = TheirConfig({"metainfo": {"classes": Unread("a.py, line 3")}})
    with pytest.raises(UserError, match=r"metainfo\.classes at a\.py, line 3 is not plain data"):
        class_names(config, {})
    assert class_names(config, {"CLASSES": ["a"]}) == ["a"], "the weights name them first"
