"""The images and the training of a config of MMDetection, versions 2 and 3, as options of ours:
pipelines, batches, optimizer, schedule.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.their_config import TheirConfig, text
from maskrcnn_lit.training.optimizer import POLY_POWER, WARMUP_START

# Where the data set of a phase is, best first.
DATA_SETS = {
    "train": ("train_dataloader.dataset", "data.train"),
    "test": ("test_dataloader.dataset", "val_dataloader.dataset", "data.test", "data.val"),
}

WRAPPERS = ("MultiScaleFlipAug", "TestTimeAug", "RandomChoice", "RandomApply", "Compose")
RESIZES = ("Resize", "RandomResize", "RandomChoiceResize")

# Steps that load or pack, and those that are read elsewhere.
IMPLIED_STEPS = (
    *("LoadImageFromFile", "LoadAnnotations", "PackDetInputs", "DefaultFormatBundle", "Collect"),
    *("ImageToTensor", "Pad", "Normalize"),
)
READ_STEPS = (*RESIZES, *WRAPPERS, "RandomFlip")

USUAL_IMAGE = (480, 640)  # short and long side of most images of COCO

FLIPS = {"horizontal": "augment.flip", "vertical": "augment.vertical_flip"}

OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw"}

# Their schedules of version 3, and 2 -> ours
CURVES = {
    **{"MultiStepLR": "multi_step", "StepLR": "multi_step", "step": "multi_step"},
    **{"CosineAnnealingLR": "cosine", "CosineAnnealing": "cosine"},
    **{"PolyLR": "poly", "poly": "poly", "fixed": "constant"},
}
# of each optimizer of ours; the first one is its default
OURS = {
    "sgd": ("multi_step", "cosine", "poly", "constant"),
    "adamw": ("cosine", "poly", "constant"),
}

SECTIONS = ("optimizer", "optimizer_config", "optim_wrapper", "lr_config", "param_scheduler")


class Run(NamedTuple):
    """The length of a training, in epochs or in steps, and the optimizer here."""

    length: int
    by_epoch: bool
    optimizer: str


def read_training(config: TheirConfig) -> None:
    """Fill `options` and `table` with the settings of images and training.

    Raises:
        UserError: the images of inference cannot be resized as theirs are.
    """
    _image_size(config)
    _flips(config)
    _other_steps(config)
    path = "data.samples_per_gpu" if config.has("data") else "train_dataloader.batch_size"
    if config.has(path):
        config.same(path, "data.batch_size")
    _schedule(config)
    parts = [*SECTIONS, "train_cfg", "runner", *pipelines(config, "train")]
    config.table += config.left(*parts, *pipelines(config, "test"))


def pipelines(config: TheirConfig, phase: str) -> list[str]:
    """The paths of the pipelines of a phase, train or test, in their order."""
    for start in DATA_SETS[phase]:
        paths = list(_of_data_set(config, start))
        if paths:
            return paths
    path = f"{phase}_pipeline"
    return [path] if isinstance(config.part(path), (list, tuple)) else []


def _of_data_set(config: TheirConfig, path: str) -> Iterator[str]:
    """The pipelines of the data set that one repeats or mixes, then its own."""
    for name in ("dataset", "datasets.0", "0"):
        if config.part(f"{path}.{name}") is not None:
            yield from _of_data_set(config, f"{path}.{name}")
    if isinstance(config.part(f"{path}.pipeline"), (list, tuple)):
        yield f"{path}.pipeline"


def steps(config: TheirConfig, phase: str, *kinds: str) -> Iterator[str]:
    """The paths of the steps of these types, nested ones too; of all types if none is given."""
    for path in pipelines(config, phase):
        yield from _of_kind(config, path, kinds)


def _of_kind(config: TheirConfig, path: str, kinds: tuple[str, ...]) -> Iterator[str]:
    step = config.part(path)
    if isinstance(step, (list, tuple)):
        for number in range(len(step)):
            yield from _of_kind(config, f"{path}.{number}", kinds)
    elif isinstance(step, Mapping):
        if not kinds or step.get("type") in kinds:
            yield path
        if step.get("type") in WRAPPERS:
            yield from _of_kind(config, f"{path}.transforms", kinds)


def _image_size(config: TheirConfig) -> None:
    """data.image_size is that of inference; training images are relative to it."""
    test, train = (_scale(config, phase) for phase in ("test", "train"))
    if test is None and pipelines(config, "test"):
        raise UserError(
            f"{pipelines(config, 'test')[0]} has no Resize to a scale, so images keep their size, "
            "which cannot be imported: give the config a Resize with keep_ratio=True"
        )
    _check_ratio(config, "test" if test else "train")
    config.options["augment.scale"] = [1.0, 1.0]
    path = test or train
    if path is None:
        return
    sizes = _sizes(config, path)
    several = "the largest one; predict has tta=scales" if test and len(sizes) > 1 else ""
    largest = max(short for short, _ in sizes), max(long for _, long in sizes)
    config.as_option(path, "data.image_size", [int(side) for side in largest], several)
    if train is not None:
        _training_size(config, train, largest)


def _scale(config: TheirConfig, phase: str) -> str | None:
    for step in steps(config, phase, *RESIZES, "MultiScaleFlipAug"):
        for name in ("scale", "img_scale", "scales"):
            if config.part(f"{step}.{name}") is not None:
                return f"{step}.{name}"
    return None


def _check_ratio(config: TheirConfig, inference: str) -> None:
    """Images keep the ratio of their sides. inference: the phase whose images have that size."""
    for phase in ("test", "train"):
        for step in steps(config, phase, *RESIZES):
            path = f"{step}.keep_ratio"
            default = config.has("data") or config.has(f"{step}.img_scale")  # of version 2
            if phase == inference:
                config.only(path, (True,), default, "give the config a Resize with keep_ratio=True")
            elif not config.take(path, default):
                config.differs(path, "true")


def _sizes(config: TheirConfig, path: str) -> list[tuple[float, float]]:
    """The (short, long) sides at `path`: one size, a list of sizes, or the side of a square."""
    value = config.take(path)
    one = value if isinstance(value, list) else [value, value]
    sizes = one if one and isinstance(one[0], list) else [one]
    if not all(_is_size(size) for size in sizes):
        raise UserError(f"{path}={text(value)} must be one size or several, such as [1333, 800]")
    return [(min(size), max(size)) for size in sizes]


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, (int, float)) and side > 0 for side in value)
    )


def _training_size(config: TheirConfig, path: str, image_size: tuple[float, float]) -> None:
    """The factors on data.image_size, as those of a usual image."""
    range_path = f"{path.rpartition('.')[0]}.ratio_range"
    low, high = config.take(range_path) or (1.0, 1.0)
    sizes = [_fit(size) / _fit(image_size) for size in _sizes(config, path)]
    scale = [round(min(sizes) * low, 6), round(max(sizes) * high, 6)]
    if scale == [1.0, 1.0]:
        return
    config.options["augment.scale"] = scale
    difference = "uniform between the two" if scale[0] < scale[1] else ""
    if scale[1] > 1:
        difference += ", and parts beyond data.image_size are cropped" if difference else ""
    shown = path if (low, high) == (1.0, 1.0) else range_path
    config.differs(shown, difference, f"augment.scale={text(scale)}")


def _fit(size: tuple[float, float]) -> float:
    return min(size[0] / USUAL_IMAGE[0], size[1] / USUAL_IMAGE[1])


def _flips(config: TheirConfig) -> None:
    if not pipelines(config, "train"):
        return
    config.options |= dict.fromkeys(FLIPS.values(), 0.0)
    for step in steps(config, "train", "RandomFlip"):
        name = "flip_ratio" if config.has(f"{step}.flip_ratio") else "prob"
        share = config.take(f"{step}.{name}", 0.0) or 0.0
        directions = config.take(f"{step}.direction", "horizontal")
        directions = directions if isinstance(directions, list) else [directions]
        each = share if isinstance(share, list) else [share / len(directions)] * len(directions)
        difference = "one does not exclude the other" if len(directions) > 1 else ""
        for direction, probability in zip(directions, each, strict=False):
            if direction in FLIPS:
                option, probability = FLIPS[direction], round(probability, 6)
                config.as_option(f"{step}.{name}", option, probability, difference)
            else:
                config.differs(f"{step}.direction", f"no {direction} flip")


def _other_steps(config: TheirConfig) -> None:
    """Refuse what changes the images of inference; what is left of training is in the table."""
    for phase in ("test", "train"):
        for step in steps(config, phase):
            kind = config.take(f"{step}.type")
            if kind in IMPLIED_STEPS or (phase == "test" and kind == "RandomFlip"):
                config.ignore(step)
            elif phase == "test" and kind not in READ_STEPS:
                raise UserError(
                    f"{step}.type={text(kind)} cannot be imported, since it changes the images of "
                    "inference: leave it out of the config's test pipeline"
                )
            elif kind not in READ_STEPS:
                config.differs(f"{step}.type", "not imported")
            config.ignore(f"{step}.multiscale_mode", f"{step}.flip_direction")
            if phase == "test" and config.take(f"{step}.flip", False):
                config.differs(f"{step}.flip", "no flip; predict has tta=flip")


def _schedule(config: TheirConfig) -> None:
    section = "optim_wrapper.optimizer" if config.has("optim_wrapper") else "optimizer"
    kind = config.take(f"{section}.type")
    optimizer = OPTIMIZERS.get(str(kind))
    if optimizer is None:
        if kind is not None:
            config.differs(f"{section}.type", "not imported, nor is the schedule")
        return
    config.as_option(f"{section}.type", "optimizer", optimizer)
    config.same(f"{section}.lr", "optimizer.lr")
    batch = config.take("auto_scale_lr.base_batch_size", 16)
    config.options["optimizer.reference_batch"] = batch
    config.options["optimizer.scaling"] = "linear"
    config.same(f"{section}.weight_decay", "optimizer.weight_decay", 0.0)
    if optimizer == "sgd":
        config.same(f"{section}.momentum", "optimizer.momentum", 0.0)
        config.differs(f"{section}.weight_decay", "not on norms and biases")
    else:
        config.same(f"{section}.betas", "optimizer.betas", [0.9, 0.999])
    _clip(config)
    _precision(config)
    length, by_epoch = _length(config)
    if length:
        _curves(config, Run(length, by_epoch, optimizer))


def _clip(config: TheirConfig) -> None:
    section = (
        "optim_wrapper.clip_grad" if config.has("optim_wrapper") else "optimizer_config.grad_clip"
    )
    config.options["trainer.clip_norm"] = config.take(f"{section}.max_norm")
    if config.part(section) is None:
        config.ignore(section)
    elif config.take(f"{section}.norm_type", 2) != 2:
        config.differs(f"{section}.norm_type", "2")


def _precision(config: TheirConfig) -> None:
    for path in ("optim_wrapper.type", "fp16"):
        if config.has(path):
            config.differs(path, "by the device", "trainer.precision=auto")


def _length(config: TheirConfig) -> tuple[int, bool]:
    """How long the training is, and whether that is in epochs; 0: the config does not say."""
    for section in ("train_cfg", "runner"):
        kind = str(config.take(f"{section}.type", ""))
        if kind.startswith("Iter") and config.has(f"{section}.max_iters"):
            config.options["trainer.epochs"] = None
            return config.same(f"{section}.max_iters", "trainer.steps"), False
    for path in ("train_cfg.max_epochs", "runner.max_epochs", "total_epochs"):
        epochs = config.take(path)
        if isinstance(epochs, int):
            times = _times(config)
            repeated = f"a data set that is repeated {times} times" if times > 1 else ""
            config.as_option(path, "trainer.epochs", epochs * times, repeated)
            if config.has("train_cfg.val_interval"):
                every = config.take("train_cfg.val_interval") * times
                config.as_option("train_cfg.val_interval", "evaluation.every_n_epochs", every)
            return epochs, True
    return 0, True


def _times(config: TheirConfig) -> int:
    """How often an epoch of theirs goes through the images."""
    times = 1
    for section in ("train_dataloader.dataset", "data.train"):
        if config.take(f"{section}.type") == "RepeatDataset":
            times *= config.take(f"{section}.times", 1)
    return times


def _curves(config: TheirConfig, run: Run) -> None:
    """Warm-up and schedule; theirs have none where they say nothing."""
    config.options["optimizer.warmup_steps"] = 0
    if config.part("lr_config") is not None:
        _warm_up_2(config)
        _curve(config, "lr_config", "policy", run)
        return
    entries = config.part("param_scheduler")
    paths = ["param_scheduler"] if isinstance(entries, Mapping) else []
    if isinstance(entries, (list, tuple)):
        paths = [f"param_scheduler.{number}" for number in range(len(entries))]
    warm_ups = [path for path in paths if _is_warm_up(config, path)]
    others = [path for path in paths if path not in warm_ups]
    for path in warm_ups[:1]:
        _warm_up(config, path)
    named = [path for path in others if config.take(f"{path}.type") in CURVES]
    for path in (named or others)[:1]:
        _curve(config, path, "type", run)
    if not others:
        config.as_option("param_scheduler", "optimizer.schedule", "constant")


def _is_warm_up(config: TheirConfig, path: str) -> bool:
    kind, begin = config.take(f"{path}.type"), config.take(f"{path}.begin", 0)
    first, last = config.take(f"{path}.start_factor", 1 / 3), config.take(f"{path}.end_factor", 1.0)
    return kind == "LinearLR" and begin == 0 and first < last


def _warm_up(config: TheirConfig, path: str) -> None:
    config.ignore(f"{path}.convert_to_iter_based")
    if config.take(f"{path}.by_epoch", True):
        _warm_up_of_epochs(config, f"{path}.end")
    else:
        config.same(f"{path}.end", "optimizer.warmup_steps", 10**9)
    _same_or_differs(config, f"{path}.start_factor", 1 / 3, WARMUP_START)
    _same_or_differs(config, f"{path}.end_factor", 1.0, 1.0)


def _warm_up_2(config: TheirConfig) -> None:
    section = "lr_config"
    kind = config.take(f"{section}.warmup")
    if kind is None:
        config.ignore(f"{section}.warmup_iters", f"{section}.warmup_ratio")
        return
    if kind != "linear":
        config.differs(f"{section}.warmup", "linear")
    if config.take(f"{section}.warmup_by_epoch", False):
        _warm_up_of_epochs(config, f"{section}.warmup_iters")
    else:
        config.same(f"{section}.warmup_iters", "optimizer.warmup_steps", 0)
    _same_or_differs(config, f"{section}.warmup_ratio", 0.1, WARMUP_START)


def _warm_up_of_epochs(config: TheirConfig, path: str) -> None:
    """How many steps an epoch has is not known before there is data."""
    del config.options["optimizer.warmup_steps"]
    difference = "not imported: it is in epochs, set optimizer.warmup_steps to its steps"
    config.differs(path, difference, "optimizer.warmup_steps, by default")


def _same_or_differs(config: TheirConfig, path: str, default: float, ours: float) -> None:
    if config.take(path, default) != ours:
        config.differs(path, f"{ours:g}")


def _curve(config: TheirConfig, path: str, name: str, run: Run) -> None:
    kind = CURVES.get(str(config.take(f"{path}.{name}")), "")
    if kind not in OURS[run.optimizer]:
        default = OURS[run.optimizer][0]
        config.options["optimizer.schedule"] = default
        ours = f"optimizer.schedule={default}"
        config.differs(f"{path}.{name}", f"{default}, the default of {run.optimizer}", ours)
        return
    config.as_option(f"{path}.{name}", "optimizer.schedule", kind)
    if kind == "multi_step":
        _milestones(config, path, run)
    elif kind != "constant":
        _whole_run(config, path, run, kind)


def _milestones(config: TheirConfig, path: str, run: Run) -> None:
    config.same(f"{path}.gamma", "optimizer.gamma", 0.1)
    config.ignore(f"{path}.convert_to_iter_based")
    names = ("milestones", "step", "step_size")
    where = next((f"{path}.{n}" for n in names if config.has(f"{path}.{n}")), f"{path}.milestones")
    downs = config.take(where)
    if config.take(f"{path}.by_epoch", True) != run.by_epoch:
        unit = "steps" if run.by_epoch else "epochs"
        difference = f"not imported: they are in {unit}, and the training is not"
        config.differs(where, difference, "optimizer.milestones, by default")
        return
    if isinstance(downs, int):
        downs = list(range(downs, run.length, downs))
    if not isinstance(downs, list):
        config.differs(where, "not imported", "optimizer.milestones, by default")
        return
    begin = config.take(f"{path}.begin", 0)
    end = min(run.length, config.take(f"{path}.end", run.length))
    reached = [begin + down for down in downs if begin + down < end]
    difference = "" if len(reached) == len(downs) else "the others are after the end"
    shares = [round(down / run.length, 6) for down in reached]
    config.as_option(where, "optimizer.milestones", shares, difference)


def _whole_run(config: TheirConfig, path: str, run: Run, kind: str) -> None:
    """cosine or poly, from the end of the warm-up to that of the run."""
    by_epoch = config.take(f"{path}.by_epoch", True)
    config.ignore(f"{path}.convert_to_iter_based")
    for name in ("T_max", "end"):
        last = config.take(f"{path}.{name}")
        if last is not None and (last, by_epoch) != (run.length, run.by_epoch):
            config.differs(f"{path}.{name}", "the whole run")
    warm_up = 0 if by_epoch else config.options.get("optimizer.warmup_steps", 0)
    if config.take(f"{path}.begin", 0) > warm_up:
        config.differs(f"{path}.begin", "the end of the warm-up")
    if kind == "poly":
        _same_or_differs(config, f"{path}.power", 1.0, POLY_POWER)
    _last_rate(config, path, run)


def _last_rate(config: TheirConfig, path: str, run: Run) -> None:
    """The learning rate at the end: a share of the first one in adamw, 0 in sgd."""
    share, shown = 0.0, f"{path}.eta_min"
    for name in ("eta_min_ratio", "min_lr_ratio", "eta_min", "min_lr"):
        value = config.take(f"{path}.{name}")
        if value is not None:
            share, shown = value, f"{path}.{name}"
            share = share if name.endswith("ratio") else share / config.options["optimizer.lr"]
    if run.optimizer == "adamw":
        config.as_option(shown, "optimizer.end_factor", round(share, 9))
    elif share:
        config.differs(shown, "0")
