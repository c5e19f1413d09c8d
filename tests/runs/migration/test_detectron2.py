"""Detectron2's settings as options of ours."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2_names import write_yaml_config

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.detectron2 import (
    DEFAULTS,
    conv1_pixels,
    from_detectron2,
    read_yaml_config,
)
from maskrcnn_lit.runs.migration.their_config import Setting, TheirConfig


def converted(folder: Path, changes: str = "") -> TheirConfig:
    config = TheirConfig(read_yaml_config(write_yaml_config(folder, changes)))
    from_detectron2(config)
    return config


EXPECTED = {
    **{"model": "detectron2", "backbone": "resnet50_caffe", "optimizer": "sgd"},
    **{"backbone.norm": "frozen", "backbone.freeze_at": 2, "model.num_classes": 80},
    **{"model.mean": [0.485, 0.456, 0.406], "model.fpn.norm": None},
    **{"model.anchors.sizes": [32, 64, 128, 256, 512], "model.anchors.ratios": [0.5, 1.0, 2.0]},
    **{"model.rpn.pre_nms.train": 2000, "model.rpn.background_iou": 0.3},
    **{"model.roi_align.points": 0, "model.roi_align.aligned": True, "model.box_head.fcs": 2},
    **{"model.box_head.pool": 7, "model.mask_head.pool": 14, "model.mask_head.depth": 4},
    **{"model.box_head.score_threshold": 0.05, "model.box_head.max_detections": 100},
    **{"data.image_size": [800, 1333], "augment.scale": [0.8, 1.0], "augment.flip": 0.5},
    **{"optimizer.lr": 0.02, "optimizer.reference_batch": 16, "optimizer.warmup_steps": 1000},
    **{"optimizer.milestones": [0.666667, 0.888889], "trainer.steps": 90000},
    **{"trainer.epochs": None, "trainer.clip_norm": None},
}


def test_the_published_config(tmp_path: Path):
    config = converted(tmp_path)
    assert {name: config.options[name] for name in EXPECTED} == EXPECTED
    assert conv1_pixels(config) == ([1.0, 1.0, 1.0], True)
    differences = [(row.theirs, row.difference) for row in config.table if row.difference]
    assert differences == [
        ("MODEL.PIXEL_STD, by default", "the first convolution is scaled instead"),
        ("INPUT.FORMAT, by default", "R G B: the first convolution is turned"),
        ("MODEL.RPN.SMOOTH_L1_BETA, by default", "1/9"),
        ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA, by default", "1/9"),
        ("INPUT.MIN_SIZE_TRAIN=[640, 672, 704, 736, 768, 800]", "uniform between the two"),
        ("SOLVER.WEIGHT_DECAY, by default", "not on norms and biases"),
    ]


def test_a_threshold_of_a_ninth_is_ours(tmp_path: Path):
    config = converted(tmp_path, "MODEL: {RPN: {SMOOTH_L1_BETA: 0.1111}}")
    assert not [row.theirs for row in config.table if "RPN.SMOOTH_L1_BETA" in row.theirs]


OTHERS: list[tuple[str, dict[str, Any]]] = [
    (
        "MODEL: {PIXEL_STD: [57.375, 57.120, 58.395], RESNETS: {STRIDE_IN_1X1: False, DEPTH: 101, "
        "NUM_GROUPS: 32, WIDTH_PER_GROUP: 8}}",
        {"backbone": "resnext101", "model.std": [0.229, 0.224, 0.225]},
    ),
    (
        "MODEL: {ROI_HEADS: {NAME: CascadeROIHeads}, ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}}",
        {"model.box_head.cascade": [0.5, 0.6, 0.7]},
    ),
    (
        "MODEL: {RESNETS: {NORM: GN, STRIDE_IN_1X1: False}, ROI_BOX_HEAD: {NORM: GN, NUM_CONV: 4, "
        "NUM_FC: 1}, BACKBONE: {FREEZE_AT: 0}}",
        {
            **{"backbone": "resnet50", "backbone.norm": "group", "backbone.freeze_at": 0},
            **{"model.box_head.norm": "group", "model.box_head.convs": 4},
        },
    ),
    (
        "MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign, POOLER_SAMPLING_RATIO: 2}, ROI_MASK_HEAD: "
        "{POOLER_TYPE: ROIAlign, POOLER_SAMPLING_RATIO: 2}}",
        {"model.roi_align.aligned": False, "model.roi_align.points": 2},
    ),
    (
        "INPUT: {RANDOM_FLIP: none, MIN_SIZE_TRAIN: 512}\nSOLVER: {CLIP_GRADIENTS: "
        "{ENABLED: True, CLIP_TYPE: norm, CLIP_VALUE: 3.0}}",
        {"augment.flip": 0.0, "augment.scale": [0.64, 0.64], "trainer.clip_norm": 3.0},
    ),
    ("MODEL: {MASK_ON: False}", {"model.mask_head": None}),
    (
        "MODEL: {ROI_BOX_HEAD: {BBOX_REG_LOSS_TYPE: giou}, ROI_MASK_HEAD: "
        "{CLS_AGNOSTIC_MASK: True}}",
        {"model.box_head.box_loss": "giou", "model.mask_head.class_agnostic": True},
    ),
    (
        "MODEL: {RPN: {BBOX_REG_LOSS_TYPE: giou, BBOX_REG_LOSS_WEIGHT: 2.0}}",
        {"model.rpn.box_loss": "giou"},
    ),
    (
        "MODEL: {RESNETS: {DEFORM_ON_PER_STAGE: [False, True, True, True]}}",
        {"backbone.deformable": [3, 4, 5], "backbone.modulated": False},
    ),
    (
        "MODEL: {RESNETS: {DEFORM_ON_PER_STAGE: [False, False, False, True], "
        "DEFORM_MODULATED: True}}",
        {"backbone.deformable": [5], "backbone.modulated": True},
    ),
    ("MODEL: {ROI_HEADS: {NUM_CLASSES: 8}}", {"model.num_classes": 8}),
    (
        "INPUT: {MIN_SIZE_TRAIN: '(400,)', MIN_SIZE_TEST: 1200, MAX_SIZE_TEST: 2000}",
        {"data.image_size": [1200, 2000], "augment.scale": [0.333333, 0.333333]},
    ),
    (
        "INPUT: {MIN_SIZE_TRAIN: '(640, 1000)', MIN_SIZE_TEST: 800}",
        {"data.image_size": [800, 1333], "augment.scale": [0.8, 1.25]},
    ),
    ("INPUT: {MIN_SIZE_TEST: 2000}", {"data.image_size": [1333, 1333]}),
    (
        "SOLVER: {LR_SCHEDULER_NAME: WarmupCosineLR}",
        {"optimizer.schedule": "cosine", "trainer.steps": 90000},
    ),
    ("SOLVER: {MAX_ITER: 300}", {"optimizer.milestones": [], "trainer.steps": 300}),
    ("SOLVER: {MAX_ITER: 80000}", {"optimizer.milestones": [0.75]}),
    ("SOLVER: {STEPS: 45000}", {"optimizer.milestones": [0.5]}),
    ("SOLVER: {CLIP_GRADIENTS: {ENABLED: True}}", {"trainer.clip_norm": None}),
]


@pytest.mark.parametrize(("changes", "expected"), OTHERS)
def test_other_settings(changes: str, expected: dict[str, Any], tmp_path: Path):
    options = converted(tmp_path, changes).options
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ("RPN: {BBOX_REG_LOSS_TYPE: giou, BBOX_REG_LOSS_WEIGHT: 2.0}", {}),
        ("ROI_BOX_HEAD: {BBOX_REG_LOSS_TYPE: giou, BBOX_REG_LOSS_WEIGHT: 10.0}", {}),
        (
            "RPN: {BBOX_REG_LOSS_TYPE: giou}",
            {"MODEL.RPN.BBOX_REG_LOSS_WEIGHT, by default": "2: the losses have no weights"},
        ),
        (
            "ROI_BOX_HEAD: {BBOX_REG_LOSS_WEIGHT: 2.5}",
            {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT=2.5": "1: the losses have no weights"},
        ),
    ],
)
def test_weights_of_losses_are_differences(
    changes: str, differences: dict[str, str], tmp_path: Path
):
    table = converted(tmp_path, f"MODEL: {{{changes}}}").table
    found = {row.theirs: row.difference for row in table if "LOSS_WEIGHT" in row.theirs}
    assert found == differences


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ("MODEL: {META_ARCHITECTURE: RetinaNet}", "META_ARCHITECTURE=RetinaNet"),
        ("MODEL: {KEYPOINT_ON: True}", "MODEL.KEYPOINT_ON=true"),
        ("MODEL: {BACKBONE: {NAME: build_resnet_backbone}}", "NAME=build_resnet_backbone"),
        ("MODEL: {RESNETS: {DEPTH: 77}}", "depth 77"),
        ("MODEL: {RESNETS: {DEPTH: 152}}", "DEPTH=152"),
        (
            "MODEL: {RESNETS: {DEFORM_ON_PER_STAGE: [False, True, True, True], "
            "DEFORM_NUM_GROUPS: 2}}",
            "DEFORM_NUM_GROUPS=2",
        ),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[32, 64]]}}", "SIZES=[[32, 64]]"),
        ("MODEL: {ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}}", "CLS_AGNOSTIC_BBOX_REG=true"),
        ("MODEL: {ROI_MASK_HEAD: {POOLER_SAMPLING_RATIO: 2}}", "POOLER_SAMPLING_RATIO differ"),
        ("MODEL: {PROPOSAL_GENERATOR: {NAME: RRPN}}", "PROPOSAL_GENERATOR.NAME=RRPN"),
        ("MODEL: {ROI_MASK_HEAD: {NAME: PointRendMaskHead}}", "NAME=PointRendMaskHead"),
        ("INPUT: {FORMAT: L}", "INPUT.FORMAT=L"),
        ("INPUT: {MIN_SIZE_TEST: 0}", "INPUT.MIN_SIZE_TEST=0 cannot be imported"),
        ("INPUT: {MIN_SIZE_TRAIN: [0]}", "INPUT.MIN_SIZE_TRAIN.0=0 cannot be imported"),
        ("INPUT: {MIN_SIZE_TRAIN: 0}", "INPUT.MIN_SIZE_TRAIN=0 cannot be imported"),
        ("SOLVER: {MAX_ITER: 0}", "SOLVER.MAX_ITER=0"),
    ],
)
def test_another_model_is_refused_by_name(changes: str, named: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        converted(tmp_path, changes)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        (
            "SOLVER: {AMP: {ENABLED: True}, NESTEROV: False, BASE_LR_END: 0.001}",
            {"SOLVER.AMP.ENABLED=true": "not imported", "SOLVER.BASE_LR_END=0.001": "not imported"},
        ),
        (
            "TEST: {AUG: {ENABLED: True, FLIP: True}, EVAL_PERIOD: 5000}",
            {"TEST.AUG.ENABLED=true": "not imported", "TEST.EVAL_PERIOD=5000": "not imported"},
        ),
        (
            "DATALOADER: {NUM_WORKERS: 4, SAMPLER_TRAIN: RepeatFactorTrainingSampler}\nSEED: 3",
            {
                "DATALOADER.SAMPLER_TRAIN=RepeatFactorTrainingSampler": "not imported",
                "SEED=3": "not imported",
            },
        ),
        (
            "SOLVER: {LR_SCHEDULER_NAME: WarmupCosineLR}",
            {"SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR": "the cosine begins after the warm-up"},
        ),
        (
            "SOLVER: {LR_SCHEDULER_NAME: MyLR}",
            {"SOLVER.LR_SCHEDULER_NAME=MyLR": "multi-step, at SOLVER.STEPS"},
        ),
        (
            "SOLVER: {MAX_ITER: 300}",
            {"SOLVER.STEPS=[60000, 80000]": "steps from MAX_ITER on have no effect there"},
        ),
        (
            "SOLVER: {CLIP_GRADIENTS: {ENABLED: True}}",
            {"SOLVER.CLIP_GRADIENTS.CLIP_TYPE, by default": "not imported: see trainer.clip_norm"},
        ),
        (
            "INPUT: {MIN_SIZE_TRAIN: [640, 1000], MAX_SIZE_TRAIN: 1600, CROP: {ENABLED: True}}",
            {
                "INPUT.MIN_SIZE_TRAIN=[640, 1000]": "uniform between the two; parts beyond "
                "data.image_size are cropped at random",
                "INPUT.MAX_SIZE_TRAIN=1600": "that of data.image_size times augment.scale",
                "INPUT.CROP.ENABLED=true": "not imported: see augment.crop",
            },
        ),
        (
            "INPUT: {MIN_SIZE_TRAIN: [640, 800], MIN_SIZE_TRAIN_SAMPLING: range}",
            {},
        ),
    ],
)
def test_what_is_different_here(changes: str, rows: dict[str, str], tmp_path: Path):
    usual = {row.theirs for row in converted(tmp_path).table if row.difference}
    table = converted(tmp_path, changes).table
    new = {row.theirs: row.difference for row in table if row.difference}
    assert {theirs: new[theirs] for theirs in new.keys() - usual} == rows


def test_defaults_that_nobody_reads_are_not_in_the_table(tmp_path: Path):
    nested: dict[str, Any] = {}
    for path, value in DEFAULTS.items():
        *parents, name = path.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    table = converted(tmp_path, yaml.safe_dump(nested)).table
    assert [row.theirs for row in table if row.difference == "not imported"] == []


def test_several_bases_are_merged_in_order(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("A: {X: 1, Y: 1}\nB: 1")
    (tmp_path / "b.yaml").write_text("A: {X: 2}\nC: '(1, 2)'")
    (tmp_path / "new.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nB: 3")
    assert read_yaml_config(tmp_path / "new.yaml") == {"A": {"X": 2, "Y": 1}, "B": 3, "C": (1, 2)}


def test_what_nobody_reads_is_in_the_table(tmp_path: Path):
    config = converted(tmp_path, "MODEL: {MY_HEAD: {WIDTH: 3}}")
    assert Setting("MODEL.MY_HEAD.WIDTH=3", "", "not imported") in config.table


def test_objects_of_python_are_not_made(tmp_path: Path):
    mark = tmp_path / "mark"
    tag = f'a: !!python/object/apply:os.system ["touch {mark}"]'
    with pytest.raises(UserError, match="not a yaml config of Detectron2"):
        converted(tmp_path, tag)
    assert not mark.exists()
    (tmp_path / "tuple.yaml").write_text("a: !!python/tuple [1, 2]\nb: __import__('os')")
    assert read_yaml_config(tmp_path / "tuple.yaml") == {"a": [1, 2], "b": "__import__('os')"}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        read_yaml_config(tmp_path / "none.yaml")
    (tmp_path / "own.yaml").write_text("_BASE_: own.yaml")
    with pytest.raises(UserError, match="inherits from itself"):
        read_yaml_config(tmp_path / "own.yaml")
    (tmp_path / "text.yaml").write_text("just a text")
    with pytest.raises(UserError, match="has no settings"):
        read_yaml_config(tmp_path / "text.yaml")
