"""MMDetection's pipelines and schedules as options of ours."""

from pathlib import Path
from typing import Any

import pytest
from mmdetection_files import converted

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.imported import _composed
from maskrcnn_lit.runs.migration.their_config import Setting, TheirConfig


def differences(config: TheirConfig) -> dict[str, tuple[str, str]]:
    """Theirs -> difference and ours."""
    return {row.theirs: (row.difference, row.ours) for row in config.table if row.difference}


def train(*steps: str) -> str:
    return f"train_dataloader = dict(dataset=dict(pipeline=[{', '.join(steps)}]))\n"


def infer(*steps: str) -> str:
    return f"test_dataloader = dict(dataset=dict(pipeline=[{', '.join(steps)}]))\n"


RESIZE = "dict(type='Resize', scale=({}, {}), keep_ratio=True)"
OF_TEST = infer(RESIZE.format(1333, 800))

IMAGES = [
    (train(RESIZE.format(1333, 400)), {"data.image_size": [400, 1333], "augment.scale": [1, 1]}),
    (
        train(RESIZE.format(1333, 400)) + infer(RESIZE.format(2000, 1200)),
        {"data.image_size": [1200, 2000], "augment.scale": [0.333333, 0.333333]},
    ),
    (
        train(
            "dict(type='RandomChoiceResize', keep_ratio=True, "
            "scales=[(1333, s) for s in range(640, 801, 32)])"
        )
        + OF_TEST,
        {"data.image_size": [800, 1333], "augment.scale": [0.8, 1.0]},
    ),
    (
        train(
            "dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True)"
        ),
        {"data.image_size": [1024, 1024], "augment.scale": [0.1, 2.0]},
    ),
    (
        train(
            "dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True)"
        )
        + OF_TEST,
        {"data.image_size": [800, 1333], "augment.scale": [0.096, 1.92]},
    ),
    (
        "test_pipeline = ["
        + RESIZE.format(2000, 1200)
        + "]\n"
        + "val_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
        + "test_dataloader = val_dataloader\ntest_pipeline = []",
        {"data.image_size": [1200, 2000]},
    ),
    (
        infer("dict(type='mmdet.Resize', scale=512, keep_ratio=True)"),
        {"data.image_size": [512, 512]},
    ),
    (
        train("dict(type='RandomChoice', transforms=[[" + RESIZE.format(1333, 400) + "]])")
        + OF_TEST,
        {"data.image_size": [800, 1333], "augment.scale": [0.5, 0.5]},
    ),
    (train(RESIZE.format(1333, 800)), {"augment.flip": 0.0, "augment.vertical_flip": 0.0}),
    (
        train("dict(type='RandomFlip', prob=0.4, direction='vertical')"),
        {"augment.flip": 0.0, "augment.vertical_flip": 0.4},
    ),
    (
        train("dict(type='RandomFlip', prob=[0.3, 0.2], direction=['horizontal', 'vertical'])"),
        {"augment.flip": 0.3, "augment.vertical_flip": 0.2},
    ),
    (
        train(
            "dict(type='RandomFlip', prob=0.6, direction=['horizontal', 'vertical', 'diagonal'])"
        ),
        {"augment.flip": 0.2, "augment.vertical_flip": 0.2},
    ),
]


@pytest.mark.parametrize(("changes", "expected"), IMAGES)
def test_images(changes: str, expected: dict[str, Any], tmp_path: Path):
    options = converted(tmp_path, changes).options
    assert {name: options[name] for name in expected} == expected
    _composed(options)


FLIP_AUG = (
    "data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), dict("
    "type='MultiScaleFlipAug', img_scale={}, flip={}, transforms=[dict(type='Resize', "
    "keep_ratio=True), dict(type='RandomFlip'), dict(type='ImageToTensor', keys=['img'])])]))"
)


def test_the_image_size_of_inference_in_version_2(tmp_path: Path):
    config = converted(tmp_path, FLIP_AUG.format("(1600, 1000)", False), "caffe.py")
    assert config.options["data.image_size"] == [1000, 1600]
    assert config.options["augment.scale"] == [0.64, 0.8]
    several = FLIP_AUG.format("[(1333, 800), (1600, 1000)]", True)
    config = converted(tmp_path, several, "caffe.py")
    assert config.options["data.image_size"] == [1000, 1600]
    sentences = [difference for difference, _ in differences(config).values()]
    assert "the largest one; predict has tta=scales" in sentences
    assert "no flip; predict has tta=flip" in sentences


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (train("dict(type='Resize', scale=(512, 512), keep_ratio=False)"), "keep_ratio=false"),
        (infer("dict(type='Resize', scale=(512, 512))"), r"keep_ratio=false cannot"),
        (infer("dict(type='PackDetInputs')"), "has no Resize to a scale"),
        (infer("dict(type='Resize', scale_factor=2.0, keep_ratio=True)"), "has no Resize"),
        (
            infer(RESIZE.format(1333, 800), "dict(type='CLAHE')"),
            r"test_dataloader\.dataset\.pipeline\.1\.type=CLAHE cannot be imported",
        ),
        (train("dict(type='Resize', scale='big', keep_ratio=True)"), r"scale=big must be one size"),
        (
            train("dict(type='Resize', scale=f(), keep_ratio=True)"),
            r"pipeline\.0\.scale at .*line 2",
        ),
        ("train_dataloader = dict(dataset=dict(pipeline=f()))", r"dataset\.pipeline at .*line 2"),
    ],
)
def test_images_that_ours_cannot_have_are_refused(changes: str, named: str, tmp_path: Path):
    with pytest.raises(UserError, match=named):
        converted(tmp_path, changes)


def test_steps_of_the_pipeline_are_in_the_table(tmp_path: Path):
    steps = (
        "dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=False)",
        "dict(type='RandomCrop', crop_size=(1024, 1024))",
        "dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'diagonal'])",
        "dict(type='PackDetInputs', meta_keys=())",
    )
    config = converted(tmp_path, train(*steps) + OF_TEST)
    path = "train_dataloader.dataset.pipeline"
    crop = "uniform between the two, and parts beyond data.image_size are cropped"
    expected = {
        f"{path}.0.ratio_range=[0.1, 2]": (crop, "augment.scale=[0.096, 1.92]"),
        f"{path}.0.keep_ratio=false": ("true", ""),
        f"{path}.1.type=RandomCrop": ("not imported", ""),
        f"{path}.1.crop_size=[1024, 1024]": ("not imported", ""),
        f"{path}.2.direction=[horizontal, diagonal]": ("no diagonal flip", ""),
        f"{path}.2.prob=0.5": ("one does not exclude the other", "augment.flip=0.25"),
    }
    rows = {name: row for name, row in differences(config).items() if path in name}
    assert rows == expected


REPEATED = (
    "data = dict(train=dict(_delete_=True, type='RepeatDataset', times=3, "
    "dataset=dict(type='CocoDataset', pipeline={{_base_.train_pipeline}})))\n"
    "lr_config = dict(step=[9, 11])\nrunner = dict(max_epochs=12)"
)


def test_a_repeated_data_set_lengthens_its_epochs(tmp_path: Path):
    expected = {"trainer.epochs": 36, "optimizer.milestones": [0.75, 0.916667]}
    options = converted(tmp_path, REPEATED, "caffe.py").options
    assert {name: options[name] for name in expected} == expected
    assert options["augment.scale"] == [0.8, 1.0], "of the pipeline inside"
    options = converted(
        tmp_path,
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, "
        "dataset=dict(pipeline={{_base_.train_pipeline}})))\n"
        "param_scheduler = [dict(type='MultiStepLR', end=12, milestones=[9, 11])]",
    ).options
    assert {name: options[name] for name in expected} == expected
    assert options["evaluation.every_n_epochs"] == 3


LINEAR = "dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500), "
SCHEDULES = [
    (
        f"param_scheduler = [{LINEAR}dict(type='CosineAnnealingLR', T_max=12, by_epoch=True)]",
        {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 500},
    ),
    (
        "param_scheduler = [dict(type='PolyLR', power=0.9, begin=0, end=12)]",
        {"optimizer.schedule": "poly", "optimizer.warmup_steps": 0},
    ),
    (
        "param_scheduler = dict(type='MultiStepLR', milestones=[6, 9], gamma=0.2)",
        {
            **{"optimizer.schedule": "multi_step", "optimizer.milestones": [0.5, 0.75]},
            **{"optimizer.gamma": 0.2, "optimizer.warmup_steps": 0},
        },
    ),
    ("param_scheduler = None", {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0}),
    (
        "max_epochs = 24\ntrain_cfg = dict(max_epochs=max_epochs)\n"
        "param_scheduler = [dict(type='MultiStepLR', end=max_epochs, "
        "milestones=[int(max_epochs * 0.7), int(max_epochs * 0.9)])]",
        {"trainer.epochs": 24, "optimizer.milestones": [0.666667, 0.875]},
    ),
    (
        "train_cfg = dict(max_epochs=24)",
        {"trainer.epochs": 24, "optimizer.milestones": [0.333333, 0.458333]},
    ),
    (
        "param_scheduler = [dict(type='StepLR', step_size=5, begin=0, end=12)]",
        {"optimizer.milestones": [0.416667, 0.833333]},
    ),
    (
        "param_scheduler = [dict(type='MultiStepLR', begin=2, end=12, milestones=[4, 7])]",
        {"optimizer.milestones": [0.5, 0.75]},
    ),
    (
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=90000)\n"
        f"param_scheduler = [{LINEAR}dict(type='MultiStepLR', by_epoch=False, end=90000, "
        "milestones=[60000, 80000])]",
        {
            **{"trainer.epochs": None, "trainer.steps": 90000, "optimizer.warmup_steps": 500},
            "optimizer.milestones": [0.666667, 0.888889],
        },
    ),
    (
        "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, "
        "betas=(0.9, 0.98)))\n"
        "param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=12)]",
        {
            **{"optimizer.schedule": "cosine", "optimizer.end_factor": 0.01},
            **{"optimizer.betas": [0.9, 0.98], "optimizer.warmup_steps": 0},
        },
    ),
]


@pytest.mark.parametrize(("changes", "expected"), SCHEDULES)
def test_schedules(changes: str, expected: dict[str, Any], tmp_path: Path):
    options = converted(tmp_path, changes).options
    assert {name: options[name] for name in expected} == expected
    _composed(options)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            "lr_config = dict(_delete_=True, policy='CosineAnnealing', warmup='linear', "
            "warmup_iters=300, warmup_ratio=0.001, min_lr=0)",
            {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 300},
        ),
        (
            "lr_config = dict(_delete_=True, policy='step', step=12)",
            {"optimizer.milestones": [0.333333, 0.666667], "optimizer.warmup_steps": 0},
        ),
        ("lr_config = dict(_delete_=True, policy='fixed')", {"optimizer.schedule": "constant"}),
        (
            "lr_config = dict(step=[6000, 8000], by_epoch=False)\n"
            "runner = dict(_delete_=True, type='IterBasedRunner', max_iters=10000)",
            {"trainer.steps": 10000, "trainer.epochs": None, "optimizer.milestones": [0.6, 0.8]},
        ),
    ],
)
def test_schedules_of_version_2(changes: str, expected: dict[str, Any], tmp_path: Path):
    options = converted(tmp_path, changes, "caffe.py").options
    assert {name: options[name] for name in expected} == expected
    _composed(options)


@pytest.mark.parametrize(
    ("changes", "base", "theirs"),
    [
        ("", "base.py", "optim_wrapper.type=OptimWrapper"),
        ("optim_wrapper = dict(type='AmpOptimWrapper')", "base.py", "optim_wrapper.type=AmpOptim"),
        ("fp16 = dict(loss_scale=512.)", "caffe.py", "fp16={'loss_scale': 512.0}"),
    ],
)
def test_the_precision_is_that_of_the_device(changes: str, base: str, theirs: str, tmp_path: Path):
    rows = [row for row in converted(tmp_path, changes, base).table if "precision" in row.ours]
    [(name, ours, difference)] = rows
    assert name.startswith(theirs)
    assert (ours, difference) == ("trainer.precision=auto", "by the device")


NOT_OURS = [
    (
        "param_scheduler = [dict(type='CosineAnnealingLR', T_max=6, begin=6, eta_min=1e-5)]",
        {
            "param_scheduler.0.T_max=6": ("the whole run", ""),
            "param_scheduler.0.begin=6": ("the end of the warm-up", ""),
            "param_scheduler.0.eta_min=1e-05": ("0", ""),
        },
    ),
    (
        "param_scheduler = [dict(type='OneCycleLR', eta_max=0.1)]",
        {
            "param_scheduler.0.type=OneCycleLR": (
                "multi_step, the default of sgd",
                "optimizer.schedule=multi_step",
            ),
            "param_scheduler.0.eta_max=0.1": ("not imported", ""),
        },
    ),
    (
        "param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=1, "
        "convert_to_iter_based=True), dict(type='PolyLR')]",
        {
            "param_scheduler.0.end=1": (
                "not imported: it is in epochs, set optimizer.warmup_steps to its steps",
                "optimizer.warmup_steps, by default",
            ),
            "param_scheduler.0.start_factor=0.1": ("0.001", ""),
            "param_scheduler.1.power, by default": ("0.9", ""),
        },
    ),
    (
        "param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[9])]",
        {
            "param_scheduler.0.milestones=[9]": (
                "not imported: they are in steps, and the training is not",
                "optimizer.milestones, by default",
            )
        },
    ),
    (
        "param_scheduler = [dict(type='MultiStepLR', milestones=[8, 16], verbose=True)]",
        {
            "param_scheduler.0.milestones=[8, 16]": (
                "the others are after the end",
                "optimizer.milestones=[0.666667]",
            ),
            "param_scheduler.0.verbose=true": ("not imported", ""),
        },
    ),
    (
        "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4))",
        {
            "param_scheduler.1.type=MultiStepLR": (
                "cosine, the default of adamw",
                "optimizer.schedule=cosine",
            ),
            "param_scheduler.1.milestones=[8, 11]": ("not imported", ""),
        },
    ),
    (
        "optim_wrapper = dict(optimizer=dict(type='Adam'), accumulative_counts=2, "
        "clip_grad=dict(max_norm=1, norm_type=1))\ntrain_cfg = dict(dynamic_intervals=[(1, 2)])",
        {
            "optim_wrapper.optimizer.type=Adam": ("not imported, nor is the schedule", ""),
            "optim_wrapper.accumulative_counts=2": ("not imported", ""),
            "train_cfg.dynamic_intervals=[[1, 2]]": ("not imported", ""),
            "param_scheduler.1.gamma=0.1": ("not imported", ""),
        },
    ),
]


@pytest.mark.parametrize(("changes", "expected"), NOT_OURS)
def test_what_ours_has_not_is_in_the_table(
    changes: str, expected: dict[str, tuple[str, str]], tmp_path: Path
):
    config = converted(tmp_path, changes)
    rows = differences(config)
    assert {name: rows.get(name) for name in expected} == expected
    _composed(config.options)


def test_warm_up_of_version_2_that_ours_has_not(tmp_path: Path):
    changes = "lr_config = dict(warmup='constant', warmup_ratio=0.1, warmup_by_epoch=True)"
    config = converted(tmp_path, changes, "caffe.py")
    assert Setting("lr_config.warmup=constant", "", "linear") in config.table
    assert Setting("lr_config.warmup_ratio=0.1", "", "0.001") in config.table
    assert "optimizer.warmup_steps" not in config.options
