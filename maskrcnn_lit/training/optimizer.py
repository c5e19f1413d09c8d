"""Optimizers (AdamW and SGD), parameter groups and learning rate schedules.

The learning rate is given for a reference batch and scaled to the effective one, so that a config
has the same effect on one device and on eight: SGD's linearly (Goyal et al., 2017, section 2.1),
AdamW's with the square root (Malladi et al., 2022, "On the SDEs and scaling rules for adaptive
gradient algorithms", section 5; Krizhevsky, 2014, section 5). Adam normalizes gradients, so a
smaller batch makes its steps noisier, but not longer. A schedule depends only on the step: a
resumed run only needs its step number. `plateau` (see plateau.py) has a state, which is in the
checkpoints.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from maskrcnn_lit.errors import UserError, check_whole, check_within
from maskrcnn_lit.training.plateau import Plateau

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

POLY_POWER = 0.9

STUDY_EPOCHS = 10  # T_max of the reference study

# factor of the learning rate at the first step, as in Detectron2 and torchvision's references
WARMUP_START = 0.001


class Length(NamedTuple):
    """The length of a run, in optimizer steps."""

    total: int
    epoch: int  # of one epoch


class OptimizerAndSchedule(NamedTuple):
    """An optimizer, its schedule (step it after every optimizer step), and a sentence on both."""

    optimizer: Optimizer
    schedule: LambdaLR
    text: str


def adamw(
    model: nn.Module,
    *,
    batch_size: int,
    steps: Length,
    fused: bool,
    lr: float,
    reference_batch: int,
    scaling: str,
    backbone_factor: float,
    weight_decay: float,
    betas: Sequence[float],
    warmup_steps: int,
    end_factor: float,
    schedule: str = "cosine",
    plateau: Mapping[str, Any] | None = None,
    layer_decay: float = 1.0,
) -> OptimizerAndSchedule:
    """AdamW with a linear warm-up and a cosine down to `end_factor` of the learning rate.

    batch_size: images per optimizer step, over all devices and accumulated batches.
    fused: one kernel for all parameters.
    schedule: after the warm-up "cosine", "poly" (see `warmup_poly`) or "constant"; or
        "study_cosine", see `study_cosine`; or "plateau", see `Plateau`, with settings `plateau`.
    backbone_factor, weight_decay, layer_decay: see `parameter_groups`.
    """
    if len(betas) != 2:
        raise UserError(
            f"optimizer.betas={list(betas)} must be two numbers, for example [0.9,0.999]"
        )
    check_within(0, 0.999999, optimizer__betas=betas[0])
    check_within(0, 0.999999, optimizer__betas=betas[1])
    check_within(0, 1, optimizer__end_factor=end_factor)
    _check_schedule(schedule, "cosine", "study_cosine", "poly", "constant", "plateau")
    scaled, text = scale_lr(lr, reference_batch, batch_size, scaling)
    warmup = _warmup(warmup_steps, steps.total)
    groups = parameter_groups(
        model,
        lr=scaled,
        backbone_factor=backbone_factor,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
    )
    optimizer = AdamW(groups, lr=scaled, betas=(betas[0], betas[1]), fused=fused)
    text += f"; AdamW, warm-up to step {warmup}, "
    if schedule != "study_cosine":
        factor, message = _decay(schedule, steps.total, warmup, end_factor, scaled, plateau)
        text += message
    else:
        factor = partial(study_cosine, epoch=steps.epoch, warmup=warmup, end_factor=end_factor)
        text += (
            f"cosine down to {scaled * end_factor:.3g} and up again every {2 * STUDY_EPOCHS} epochs"
        )
    return OptimizerAndSchedule(optimizer, LambdaLR(optimizer, factor), text)


def sgd(
    model: nn.Module,
    *,
    batch_size: int,
    steps: Length,
    fused: bool,
    lr: float,
    reference_batch: int,
    scaling: str,
    backbone_factor: float,
    weight_decay: float,
    momentum: float,
    warmup_steps: int,
    milestones: Sequence[float],
    gamma: float,
    schedule: str = "multi_step",
    plateau: Mapping[str, Any] | None = None,
    layer_decay: float = 1.0,
) -> OptimizerAndSchedule:
    """SGD with momentum, a linear warm-up, then the learning rate times `gamma` at each of
    `milestones` (schedule "multi_step"), or "cosine" or "poly" to 0, or "constant", or "plateau"
    (see `Plateau`).

    milestones: ascending shares of the run, 0 to 1. The other arguments are those of `adamw`.
    """
    if list(milestones) != sorted(milestones) or not all(0 < share < 1 for share in milestones):
        raise UserError(
            f"optimizer.milestones={list(milestones)} must be ascending shares of the run between "
            "0 and 1: use [0.667,0.889] for the published 1x schedule"
        )
    check_within(0, 1, optimizer__momentum=momentum)
    _check_schedule(schedule, "multi_step", "cosine", "poly", "constant", "plateau")
    scaled, text = scale_lr(lr, reference_batch, batch_size, scaling)
    warmup = _warmup(warmup_steps, steps.total)
    groups = parameter_groups(
        model,
        lr=scaled,
        backbone_factor=backbone_factor,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
    )
    optimizer = SGD(groups, lr=scaled, momentum=momentum, fused=fused)
    text += f"; SGD, warm-up to step {warmup}, "
    if schedule != "multi_step":
        factor, message = _decay(schedule, steps.total, warmup, 0.0, scaled, plateau)
        return OptimizerAndSchedule(optimizer, LambdaLR(optimizer, factor), text + message)
    downs = [round(share * steps.total) for share in milestones]
    factor = partial(warmup_multi_step, warmup=warmup, milestones=downs, gamma=gamma)
    text += f"times {gamma:g} at the steps {', '.join(map(str, downs)) or '(none)'}"
    return OptimizerAndSchedule(optimizer, LambdaLR(optimizer, factor), text + f" of {steps.total}")


def _check_schedule(schedule: str, *known: str) -> None:
    if schedule not in known:
        raise UserError(
            f"optimizer.schedule={schedule} is not supported by this optimizer: use "
            f"{', '.join(known)}"
        )


def _decay(
    schedule: str,
    total: int,
    warmup: int,
    end_factor: float,
    lr: float,
    plateau: Mapping[str, Any] | None,
) -> tuple[Callable[[int], float], str]:
    """The factor as a function of the step, and a description; lr: after the warm-up."""
    if schedule == "constant":
        return partial(warmup_multi_step, warmup=warmup, milestones=(), gamma=1.0), "then constant"
    if schedule == "plateau":
        watching = Plateau(warmup=warmup, start=WARMUP_START, settings=plateau or {})
        return watching, watching.text
    curve = {"cosine": warmup_cosine, "poly": warmup_poly}[schedule]
    factor = partial(curve, total=total, warmup=warmup, end_factor=end_factor)
    return factor, f"{schedule} to {lr * end_factor:.3g} at step {total}"


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_factor: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by part (the submodule `backbone`, and "heads": all others)
    and by weight decay.

    Norms, biases and other one-dimensional parameters have no weight decay, nor have those of the
    backbone's method `undecayed`. The backbone uses `backbone_factor` times the learning rate, and
    of its n layers (method `parameters_by_layer`) layer k, from 0, that times layer_decay^(n - k)
    (Bao et al. 2022, "BEiT"; Li et al. 2022). A group's key "part" names its learning rate in the
    logs.

    Raises:
        UserError: a value out of range, nothing learns, or the backbone has no layers.
    """
    check_within(
        0,
        math.inf,
        optimizer__backbone_factor=backbone_factor,
        optimizer__weight_decay=weight_decay,
    )
    backbone = getattr(model, "backbone", None)
    layers = _layers(backbone, layer_decay)
    undecayed = set(getattr(backbone, "undecayed", list)())
    members: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        part = "backbone" if path.split(".")[0] == "backbone" else "heads"
        for parameter in module.parameters(recurse=False):
            if (
                not parameter.requires_grad or id(parameter) in seen
            ):  # frozen, or shared with another module
                continue
            seen.add(id(parameter))
            decays = parameter.ndim > 1 and not isinstance(module, NORMS)
            named, factor = layers.get(parameter, (part, 1.0))
            factor *= backbone_factor if part == "backbone" else 1.0
            key = named, factor, decays and parameter not in undecayed
            members.setdefault(key, []).append(parameter)
    if not members:
        raise UserError(
            "the model has no trainable parameter: lower the number of frozen stages, "
            "backbone.freeze_at"
        )
    return [
        {
            "params": parameters,
            "part": part,
            "lr": lr * factor,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, factor, decays), parameters in members.items()
    ]


def _layers(backbone: Any, decay: float) -> dict[nn.Parameter, tuple[str, float]]:
    """The name in the logs and the factor of the learning rate of parameters of the backbone."""
    check_within(0, 1, optimizer__layer_decay=decay)
    if decay == 1:
        return {}
    if decay == 0 or not hasattr(backbone, "parameters_by_layer"):
        raise UserError(
            f"optimizer.layer_decay={decay} must be above 0, and needs a backbone with a method "
            "parameters_by_layer (docs/extend/backbone.md): use optimizer.layer_decay=1"
        )
    layers = backbone.parameters_by_layer()
    return {
        parameter: (f"backbone_layer_{number}", decay ** (len(layers) - number))
        for number, layer in enumerate(layers)
        for parameter in layer
    }


def scale_lr(lr: float, reference_batch: int, batch_size: int, scaling: str) -> tuple[float, str]:
    """The learning rate for `batch_size` images per step, and a description of the scaling.

    scaling: "linear", `lr` times batch_size / reference_batch; "sqrt", times the root of that; or
        "none".
    """
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(
            f"optimizer.lr={lr} must be a number above 0, for example optimizer.lr=1e-4"
        )
    if scaling == "none":
        return lr, f"learning rate {lr:.3g} for a batch of {batch_size}, not scaled"
    if scaling not in ("linear", "sqrt"):
        raise UserError(f"optimizer.scaling={scaling} is unknown: use linear, sqrt or none")
    check_whole(1, optimizer__reference_batch=reference_batch)
    ratio, text = batch_size / reference_batch, f"{batch_size} / {reference_batch}"
    if scaling == "sqrt":
        ratio, text = math.sqrt(ratio), f"sqrt({text})"
    scaled = lr * ratio
    return scaled, f"learning rate {lr:.3g} x {text} (batch / reference) = {scaled:.3g}"


def follow(schedule: LambdaLR) -> None:
    """Set the learning rates to those of `schedule` at its step. A checkpoint contains those of its
    own schedule, which may have another length.
    """
    groups = schedule.optimizer.param_groups
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)


def warmup_cosine(step: int, *, total: int, warmup: int, end_factor: float) -> float:
    """Factor of the learning rate at `step` (0 is the first): linear warm-up for `warmup` steps,
    then half a cosine (Loshchilov and Hutter, 2017, eq. 5) down to `end_factor` at `total`.
    """
    if step < warmup:
        return _line(step, warmup)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * done)) / 2


def warmup_poly(step: int, *, total: int, warmup: int, end_factor: float) -> float:
    """As `warmup_cosine`, but with the remaining share to the power of 0.9 (Chen et al., 2018,
    "DeepLab", section 4.1).
    """
    if step < warmup:
        return _line(step, warmup)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return end_factor + (1 - end_factor) * (1 - done) ** POLY_POWER


def study_cosine(step: int, *, epoch: int, warmup: int, end_factor: float) -> float:
    """Factor of the learning rate at `step` in the reference study: half a cosine down in
    STUDY_EPOCHS epochs of `epoch` steps each, then up again without a restart, and so on (torch's
    CosineAnnealingLR beyond its T_max). It changes from epoch to epoch.
    """
    if step < warmup:
        return _line(step, warmup)
    return (
        end_factor + (1 - end_factor) * (1 + math.cos(math.pi * (step // epoch) / STUDY_EPOCHS)) / 2
    )


def warmup_multi_step(step: int, *, warmup: int, milestones: Sequence[int], gamma: float) -> float:
    """Factor of the learning rate at `step`: linear warm-up for `warmup` steps, times `gamma` from
    each milestone on.
    """
    factor: float = gamma ** sum(step >= milestone for milestone in milestones)
    return factor * (_line(step, warmup) if step < warmup else 1.0)


def _line(step: int, warmup: int) -> float:
    return WARMUP_START + (1 - WARMUP_START) * step / warmup


def _warmup(steps: int, total: int) -> int:
    """The number of warm-up steps, at most a tenth of a short run."""
    if steps < 0:
        raise UserError(f"optimizer.warmup_steps={steps} must be 0 or more")
    return min(steps, total // 10)
