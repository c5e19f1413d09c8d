"""Configs as MMDetection writes them (versions 2 and 3), and the names and shapes of its
weights.
"""

import re
from pathlib import Path

from detectron2_names import BLOCKS

from maskrcnn_lit.runs.migration.mmdetection import from_mmdetection
from maskrcnn_lit.runs.migration.python_config import read_python_config
from maskrcnn_lit.runs.migration.their_config import TheirConfig

Shapes = dict[str, tuple[int, ...]]

MODEL = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_mask=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(
        type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=256, feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0],
            target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=256, featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7,
            num_classes=80, reg_class_agnostic=False,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.],
                target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=256, featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)),
        mask_head=dict(
            type='FCNMaskHead', num_convs=4, in_channels=256, conv_out_channels=256,
            num_classes=80,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3,
                match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1,
                add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(
            nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5,
                match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1,
                add_gt_as_proposals=True),
            mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100,
            mask_thr_binary=0.5)))
"""

DATA = """
file_client_args = dict(backend='disk')
data_root = 'data/coco/'
train_pipeline = [
    dict(type='LoadImageFromFile', file_client_args=file_client_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        type='CocoDataset', ann_file=data_root + 'annotations/instances_train2017.json',
        pipeline=train_pipeline))
"""

SCHEDULE = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(enable=False, base_batch_size=16)
"""

# What version 2 has in other places.
CAFFE_2 = """
_base_ = './_base_/model.py'
model = dict(
    data_preprocessor=None,
    backbone=dict(norm_cfg=dict(requires_grad=False), style='caffe'))
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='Resize', multiscale_mode='value', keep_ratio=True,
        img_scale=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768), (1333, 800)]),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32)]
data = dict(samples_per_gpu=4, train=dict(pipeline=train_pipeline))
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[28, 34])
runner = dict(type='EpochBasedRunner', max_epochs=36)
"""


def write_configs(folder: Path) -> Path:
    """Write base.py with the files that it inherits from, and caffe.py; return base.py."""
    (folder / "_base_").mkdir(parents=True, exist_ok=True)
    for name, text in (("model", MODEL), ("data", DATA), ("schedule", SCHEDULE)):
        (folder / "_base_" / f"{name}.py").write_text(text)
    base = folder / "base.py"
    base.write_text("_base_ = ['_base_/model.py', '_base_/data.py', './_base_/schedule.py']\n")
    (folder / "caffe.py").write_text(CAFFE_2)
    return base


def converted(folder: Path, changes: str = "", base: str = "base.py") -> TheirConfig:
    """The config `base` of `write_configs` with `changes`, in our terms."""
    write_configs(folder)
    file = folder / "changed.py"
    file.write_text(f"_base_ = './{base}'\n{changes}\n")
    config = TheirConfig(read_python_config(file))
    from_mmdetection(config)
    return config


def published_shapes(
    depth: int = 50, classes: int = 80, *, dcn: int = 0, pafpn: bool = False
) -> Shapes:
    """Name -> shape of the weights of mask-rcnn_r50_fpn and mask-rcnn_r101_fpn. dcn: 1 or 2: with
    dconv_c3-c5 or mdconv_c3-c5. pafpn: with the neck of faster-rcnn_r50_pafpn.
    """
    shapes = _norm_and_conv("backbone.conv1", "backbone.bn1", (64, 3, 7, 7))
    inputs = 64
    for stage, (blocks, width) in enumerate(
        zip(BLOCKS[depth], (64, 128, 256, 512), strict=True), start=1
    ):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            for number, shape in enumerate(
                ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)), start=1
            ):
                shapes |= _norm_and_conv(f"{name}.conv{number}", f"{name}.bn{number}", shape)
            if dcn and stage > 1:
                shapes |= _affine(f"{name}.conv2.conv_offset", (9 * (dcn + 1), width, 3, 3))
            if block == 0:
                where = (f"{name}.downsample.0", f"{name}.downsample.1")
                shapes |= _norm_and_conv(*where, (4 * width, inputs, 1, 1))
            inputs = 4 * width
    for level, width in enumerate((256, 512, 1024, 2048)):
        shapes |= _affine(f"neck.lateral_convs.{level}.conv", (256, width, 1, 1))
        shapes |= _affine(f"neck.fpn_convs.{level}.conv", (256, 256, 3, 3))
    for step in range(3 if pafpn else 0):
        for part in ("downsample_convs", "pafpn_convs"):
            shapes |= _affine(f"neck.{part}.{step}.conv", (256, 256, 3, 3))
    shapes |= _affine("rpn_head.rpn_conv", (256, 256, 3, 3))
    shapes |= _affine("rpn_head.rpn_cls", (3, 256, 1, 1))
    shapes |= _affine("rpn_head.rpn_reg", (12, 256, 1, 1))
    shapes |= _affine("roi_head.bbox_head.fc_cls", (classes + 1, 1024))
    shapes |= _affine("roi_head.bbox_head.fc_reg", (4 * classes, 1024))
    shapes |= _affine("roi_head.bbox_head.shared_fcs.0", (1024, 256 * 7 * 7))
    shapes |= _affine("roi_head.bbox_head.shared_fcs.1", (1024, 1024))
    for layer in range(4):
        shapes |= _affine(f"roi_head.mask_head.convs.{layer}.conv", (256, 256, 3, 3))
    shapes |= _affine("roi_head.mask_head.upsample", (256, 256, 2, 2))
    return shapes | _affine("roi_head.mask_head.conv_logits", (classes, 256, 1, 1))


def group_norm_shapes(classes: int = 80) -> Shapes:
    """Name -> shape of the weights of mask-rcnn_r50_fpn_gn-all: group norm in all parts."""
    shapes = {
        re.sub(r"(\.|backbone\.)bn(\d)\.", r"\1gn\2.", name): shape
        for name, shape in published_shapes(classes=classes).items()
        if "running_" not in name and "shared_fcs.1" not in name
    }
    for layer in range(4):
        shapes[f"roi_head.bbox_head.shared_convs.{layer}.conv.weight"] = (256, 256, 3, 3)
    for name in [name for name in shapes if name.endswith(".conv.weight")]:
        layer = name.removesuffix(".conv.weight")
        shapes.pop(f"{layer}.conv.bias", None)
        shapes |= _affine(f"{layer}.gn", (256,))
    return shapes


def _affine(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm_and_conv(conv: str, norm: str, shape: tuple[int, ...]) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{conv}.weight": shape, **{f"{norm}.{part}": shape[:1] for part in parts}}
