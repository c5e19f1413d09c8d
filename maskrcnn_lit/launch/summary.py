"""Messages of a training: at the start its device and weights; at the end, if AP is near zero, the
likeliest causes.
"""

import shlex
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.optim import AdamW

from maskrcnn_lit.callbacks.train_meter import TrainMeter
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.inspection.summary import read_objects
from maskrcnn_lit.evaluation.coco.scores import NEAR_ZERO
from maskrcnn_lit.measure.cost import count_parameters
from maskrcnn_lit.runs.folder import watch_command
from maskrcnn_lit.training.checkpoint import RunCheckpoints
from maskrcnn_lit.training.module import DetectionModule

# Training images with which random weights match ImageNet weights, in about three times the epochs:
# He et al., 2019, "Rethinking ImageNet pre-training", section 5 (with 1,000 they do not).
ENOUGH_IMAGES = 10_000

# AdamW changes a weight by about the learning rate per step, and heads start with weights of about
# 0.01.
SHORT_WAY = 0.02

HIGHEST_RATE = 3e-3  # for AdamW

SMALL_SIDE = 8.0  # pixels: two cells of p2, the smallest anchor

MOST_CAUSES = 3


class Facts(NamedTuple):
    """Facts of a run that may explain a low AP. Lengths are in pixels after the resize, shares are
    0 to 1; NaN if unknown.
    """

    images: int  # in training
    random: bool  # whether the initial weights were random
    optimizer: str  # AdamW or SGD
    rate: float  # the maximum learning rate of the heads
    steps: int
    first_loss: float
    last_loss: float
    val_loss: float
    side: float  # median of the square roots of the training objects' box areas
    image_size: Any
    left_out: int  # number of faulty training annotations and images
    annotations: int  # number of training annotations used
    crowd: int  # crowd regions among these


def beginning(
    data: CocoDataModule, module: DetectionModule, trainer: Trainer, *, resumed: bool
) -> str:
    """Device, precision, parameters, weights and run folder, one line each."""
    folder = str(trainer.default_root_dir)
    run_dir = shlex.quote(folder)
    counts = count_parameters(module.model)
    count, learn = counts["parameters"], counts["trainable_parameters"]
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    start = describe_weights(module.config, len(data.train_index or ()))
    weights = "the run's last checkpoint" if resumed else start
    return (
        f"device: {describe_device(trainer.strategy.root_device)}{processes}; "
        f"precision {trainer.precision}\n"
        f"parameters: {count / 1e6:.1f} million, {learn / 1e6:.1f} million of them trainable\n"
        f"weights: {weights}\n"
        f"run folder: {run_dir}; to monitor it: {watch_command(folder)}"
    )


def ending(
    data: CocoDataModule, module: DetectionModule, trainer: Trainer, metrics: dict[str, float]
) -> list[str]:
    """Lines on why AP is near zero, and on best.ckpt being better than the last weights, if they
    apply.
    """
    message: list[str] = []
    if is_near_zero(metrics):
        causes = likely_causes(read_facts(data, module, trainer, metrics))
        kind = "mask" if "val/mask_ap50" in metrics else "box"
        title = f"AP is near zero ({kind} AP50 {metrics[f'val/{kind}_ap50']:.3f})."
        if causes:
            message += [f"{title} Likely causes:", *(f"  - {cause}" for cause in causes)]
        else:
            message += [
                f"{title} Check the training data: maskrcnn-lit data show, maskrcnn-lit data check"
            ]
    best = next((c.best for c in _callbacks(trainer) if isinstance(c, RunCheckpoints)), None)
    if len(data.validation_subset) == len(
        data.val_dataset
    ):  # else the two scores are on different images
        message += describe_best(best, metrics)
    return message


def is_near_zero(metrics: dict[str, float]) -> bool:
    """Whether box AP50, and mask AP50 if there is one, are near zero; False without objects."""
    values = [metrics.get("val/box_ap50", np.nan)]
    values += [metrics[name] for name in ("val/mask_ap50",) if name in metrics]
    return all(value < NEAR_ZERO for value in values)


def describe_best(best: float | None, metrics: dict[str, float]) -> list[str]:
    """A line if `best`, the highest mask AP (box AP without masks) of all validations, is higher
    than the last.
    """
    kind = "mask" if "val/mask_ap" in metrics else "box"
    last = metrics.get(f"val/{kind}_ap", np.nan)
    if best is None or not best >= last + 0.005:
        return []
    return [
        f"An earlier validation had {kind} AP {best:.3f}, the last weights have {last:.3f}; "
        "evaluate and predict use the earlier weights, best.ckpt"
    ]


def describe_device(device: torch.device) -> str:
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )


def describe_weights(config: dict[str, Any], images: int) -> str:
    """The origin of the initial weights, and a hint on random ones for this number of training
    images.

    config: of a run, with references resolved.
    """
    model, backbone = trained_weights(config)
    if model:
        return f"the full model from {model}"
    if backbone:
        return f"the backbone from {backbone}, the heads random"
    if images >= ENOUGH_IMAGES:
        return "random; they need about three times the epochs of pretrained ones"
    return (
        f"random; {images} training images are few for that: on photos, pretrained weights "
        "(experiment=finetune or backbone.weights=imagenet) score much higher"
    )


def trained_weights(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """The names of the weights of the full model and of the backbone, None if random."""
    model = config.get("model", {})
    parts = (model, model.get("backbone") or {})
    given = [None if part.get("weights") == "none" else part.get("weights") for part in parts]
    return given[0], given[1]


def read_facts(
    data: CocoDataModule, module: DetectionModule, trainer: Trainer, metrics: dict[str, float]
) -> Facts:
    """The facts of a run that has just ended."""
    if data.train_index is None:
        raise RuntimeError("call it after the training")
    (optimizer,) = trainer.optimizers
    meter = next((c for c in _callbacks(trainer) if isinstance(c, TrainMeter)), None)
    losses = (None, None) if meter is None else (meter.first, meter.last)
    first, last = (np.nan if loss is None else loss for loss in losses)
    return Facts(
        images=len(data.train_index),
        random=trained_weights(module.config) == (None, None),
        optimizer="AdamW" if isinstance(optimizer, AdamW) else type(optimizer).__name__,
        rate=max(group["initial_lr"] for group in optimizer.param_groups),
        steps=trainer.global_step,
        first_loss=first,
        last_loss=last,
        val_loss=metrics.get("val/loss", np.nan),
        image_size=data.image_size,
        left_out=len(data.train_index.faults),
        **_objects(data.train_index, data.image_size),
    )


def likely_causes(facts: Facts) -> list[str]:
    """At most three likely causes, the most certain first, each a sentence with numbers and
    advice.
    """
    causes = [_rate(facts), *_labels(facts), _size(facts), _start(facts), _other_images(facts)]
    return [cause for cause in causes if cause is not None][:MOST_CAUSES]


def _rate(facts: Facts) -> str | None:
    distance = facts.rate * facts.steps / 2  # the mean of a cosine schedule is half of its maximum
    losses = f"train/loss went from {facts.first_loss:.3g} to {facts.last_loss:.3g}"
    if facts.last_loss > facts.first_loss:
        return f"the learning rate {facts.rate:.3g} is too high ({losses}): lower optimizer.lr"
    if facts.optimizer == "AdamW" and facts.rate > HIGHEST_RATE:
        return f"the learning rate {facts.rate:.3g} is high for AdamW: lower optimizer.lr to 1e-3"
    short = facts.optimizer == "AdamW" and distance < SHORT_WAY
    if short or facts.last_loss > 0.8 * facts.first_loss:
        return (
            f"{facts.steps} step{'s' if facts.steps != 1 else ''} are few at a learning rate "
            f"of at most {facts.rate:.3g} ({losses}): raise optimizer.lr or trainer.epochs"
        )
    return None


def _labels(facts: Facts) -> list[str | None]:
    check = "maskrcnn-lit data check lists them"
    dropped = crowd = None
    if facts.left_out > 0.1 * (facts.left_out + facts.annotations):
        dropped = (
            f"{facts.left_out} faulty annotations or images were left out of training, "
            f"{facts.annotations} annotations were used: {check}"
        )
    if facts.crowd > 0.5 * facts.annotations:
        crowd = (
            f"{facts.crowd} of {facts.annotations} training annotations are crowd regions "
            "(iscrowd), which count neither as objects nor as background: set iscrowd to 0 for "
            "objects"
        )
    if facts.annotations == 0:
        dropped = f"the training images have no annotations: {check}"
    return [dropped, crowd]


def _size(facts: Facts) -> str | None:
    if not facts.side < SMALL_SIDE:
        return None
    return (
        f"half of the training objects are smaller than {facts.side:.1f} pixels after the resize "
        f"to data.image_size={facts.image_size}: raise data.image_size"
    )


def _start(facts: Facts) -> str | None:
    if not facts.random or facts.images >= ENOUGH_IMAGES:
        return None
    return (
        f"the initial weights were random, and {facts.images} images are few for that: "
        "use experiment=finetune or backbone.weights=imagenet, or raise trainer.epochs"
    )


def _other_images(facts: Facts) -> str | None:
    if not facts.val_loss > 2 * facts.last_loss:
        return None
    return (
        f"val/loss is {facts.val_loss:.3g} and train/loss {facts.last_loss:.3g}: the validation "
        "images or their labels differ from those of training, or the model has memorized these"
    )


def _objects(index: AnnotationIndex, image_size: ImageSize) -> dict[str, Any]:
    """The facts of the training objects."""
    objects = read_objects(index, image_size)
    sides = objects.without_crowd().sides()
    return {
        "side": float(np.median(sides)) if len(sides) else np.nan,
        "annotations": len(objects.labels),
        "crowd": int(objects.crowd.sum()),
    }


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    return callbacks
