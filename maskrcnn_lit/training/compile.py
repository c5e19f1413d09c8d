"""`trainer.compile`: runs the model's regions through torch.compile, each as one graph with static
shapes.

A region is compiled for each padded size, number of object slots and mode. Compiled code is cached
on disk for later runs.
"""

import logging
import os
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.files import default_cache

# Methods of MaskRCNN. `infer` calls others, which are compiled into it.
REGIONS = (
    "trunk",
    "after_backbone",
    "targets",
    "losses",
    "proposals",
    "detect",
    "classify",
    "infer",
)

CHOICES = ("auto", "always", "off")

# graphs of one region; a run with a dozen padded sizes, four numbers of slots and two modes has 96
LIMIT = 256

# Estimates, not yet measured on a GPU: the time to compile a padded size without cache, and the
# number of steps that recovers it (by launches that the host saves).
COMPILE_SECONDS, SAVED_SECONDS = 100, 0.05
STEPS_A_SIZE = round(COMPILE_SECONDS / SAVED_SECONDS)

_log = logging.getLogger(__name__)


class CompileRegions(Callback):
    """Compiles the model before the first step.

    Args: how: trainer.compile. "auto": on a GPU, if the run is long enough (`too_short`). "always":
    on the CPU, too, where compiling takes minutes, more than it saves in a short run. "off". steps:
    trainer -> number of optimizer steps.
    """

    def __init__(self, how: str, steps: Callable[[Trainer], int]) -> None:
        if how not in CHOICES:
            raise UserError(f"trainer.compile={how} is unknown: use {', '.join(CHOICES)}")
        self.how, self.steps = how, steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, device = pl_module.model, trainer.strategy.root_device
        if not should_compile(self.how, device) or not isinstance(model, MaskRCNN):
            return
        reason = obstacle(model, device)
        if reason is None and self.how == "auto":
            sizes = getattr(trainer.datamodule, "padded_sizes", 1)  # type: ignore[attr-defined]
            reason = too_short(self.steps(trainer), sizes)
        if reason is None:
            compile_regions(model)
        else:
            announce(f"trainer.compile={self.how}: not compiled, because {reason}")


def should_compile(how: str, device: torch.device) -> bool:
    """Whether trainer.compile=`how` compiles on this device at all."""
    return how == "always" or (how == "auto" and device.type == "cuda")


def too_short(steps: int, sizes: int) -> str | None:
    """Why compiling does not pay off for `steps` optimizer steps on batches of `sizes` padded
    sizes, or None: each size should occur `STEPS_A_SIZE` times.
    """
    if steps >= STEPS_A_SIZE * sizes:
        return None
    return (
        f"{steps} steps of {sizes} padded sizes are too few: compiling (about "
        f"{COMPILE_SECONDS} s per size) pays off from {STEPS_A_SIZE * sizes} steps. "
        "Use trainer.compile=always to compile anyway, or trainer.compile=off to pad images less"
    )


def obstacle(model: MaskRCNN, device: torch.device) -> str | None:
    """Why `model` cannot be compiled, or None."""
    if not torch._dynamo.is_dynamo_supported():
        return f"torch {torch.__version__} does not compile here"
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "torch finds no Triton for this GPU"
    if model.points == 0:
        return (
            "model.roi_align.points=0 uses as many points as a bin has cells, which depends on "
            "the data"
        )
    if model.kind == "pool":
        return "model.roi_align.kind=pool runs level by level, on as many regions as each has"
    if getattr(model.mask_head, "needs_positives", False):
        return (
            "a batch norm in the mask head must see only the positives, and their number "
            "depends on the data"
        )
    return None


def compile_regions(model: MaskRCNN, **options: Any) -> None:
    """Replace the regions' methods by compiled ones. Parameters, their names and the state dict are
    unchanged.

    options: of torch.compile. If a region fails to compile, a line is logged and it runs
    uncompiled.
    """
    if is_compiled(model):
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.optimize_ddp = False  # gradients are reduced between the regions
    for name in REGIONS:
        run = _compiled(name, **options)
        if name == "infer":
            run = _graphed(run, **options)
        # A method, not a function, so that it belongs to a copy of the model, too.
        setattr(model, name, MethodType(run, model))


def is_compiled(model: MaskRCNN) -> bool:
    return any(name in vars(model) for name in REGIONS)


def _graphed(plain: Any, **options: Any) -> Any:
    """`infer` of one image on a GPU as one CUDA graph, since launches dominate its time. Results
    are copied, because the next call overwrites them.
    """
    graphed = _compiled("infer", **options | {"mode": "reduce-overhead"})

    def run(model: nn.Module, images: Tensor, *args: Any) -> Any:
        if images.device.type != "cuda" or len(images) > 1 or "backend" in options:
            return plain(model, images, *args)
        torch.compiler.cudagraph_mark_step_begin()
        return {key: value.clone() for key, value in graphed(model, images, *args).items()}

    return run


def _reason(error: Exception) -> str:
    """The class and the first line of the fault that dynamo met."""
    cause = getattr(error, "inner_exception", error)  # its own text names the backend alone
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"


def _compiled(name: str, **options: Any) -> Any:
    plain = getattr(MaskRCNN, name)
    compiled = torch.compile(plain, fullgraph=True, dynamic=False, **options)

    def run(model: nn.Module, *args: Any) -> Any:
        try:
            return compiled(model, *args)
        except (
            torch._dynamo.exc.TorchDynamoException
        ) as error:  # during compilation, before any computation
            announce(f"trainer.compile: {name} is not compiled, because of {_reason(error)}")
        setattr(model, name, MethodType(plain, model))
        return plain(model, *args)

    return run


@rank_zero_only
def announce(text: str) -> None:
    _log.info(text)
