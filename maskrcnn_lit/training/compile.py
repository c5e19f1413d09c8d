"""`trainer.compile`: the model's regions through torch.compile, each as one graph of fixed shapes.

A region is compiled anew for each padded size, number of object slots and mode. What was compiled
is kept on disk, so that another run begins with it.
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

# Methods of MaskRCNN. `infer` holds others, which are compiled into it.
REGIONS = ("trunk", "targets", "losses", "proposals", "detect", "classify", "infer")

CHOICES = ("auto", "always", "off")

# graphs of one region; a run with a dozen padded sizes, four numbers of slots and two modes has 96
LIMIT = 256

# What a padded size costs to compile cold, and what a step saves at least (launches that the host
# does not make), so how many steps of it pay: estimates, until a GPU has measured them.
COMPILE_SECONDS, SAVED_SECONDS = 100, 0.05
STEPS_A_SIZE = round(COMPILE_SECONDS / SAVED_SECONDS)

_log = logging.getLogger(__name__)


class CompileRegions(Callback):
    """Compiles the model before the first step.

    Args: how: of trainer.compile. "auto": on a GPU, where the run is long enough (`too_short`).
        "always": on the CPU as well, where compiling takes minutes, which is more than it saves in
        a short run. "off". steps: how many optimizer steps a trainer will make.
    """

    def __init__(self, how: str, steps: Callable[[Trainer], int]) -> None:
        if how not in CHOICES:
            raise UserError(f"trainer.compile is {how!r}; expected {', '.join(CHOICES)}")
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
            announce(f"trainer.compile={self.how}: not compiled, since {reason}")


def should_compile(how: str, device: torch.device) -> bool:
    """Whether trainer.compile=`how` compiles on this device at all."""
    return how == "always" or (how == "auto" and device.type == "cuda")


def too_short(steps: int, sizes: int) -> str | None:
    """Why compiling does not pay for so many optimizer steps on batches of so many padded sizes, or
    None: each size should come `STEPS_A_SIZE` times.
    """
    if steps >= STEPS_A_SIZE * sizes:
        return None
    return (
        f"{steps} steps of {sizes} padded sizes are fewer than {STEPS_A_SIZE * sizes}, which pay for "
        f"compiling (about {COMPILE_SECONDS} s a size): trainer.compile=always does it all the same, "
        "and trainer.compile=off pads the images less"
    )


def obstacle(model: MaskRCNN, device: torch.device) -> str | None:
    """Why `model` cannot be compiled, or None."""
    if not torch._dynamo.is_dynamo_supported():
        return f"torch {torch.__version__} does not compile here"
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "torch finds no Triton for this GPU"
    if model.points == 0:
        return "model.roi_align.points=0 takes as many points as a bin has cells, which depends on the data"
    if getattr(model.mask_head, "needs_positives", False):
        return "a batch norm in the mask head must see the positives alone, whose number depends on the data"
    return None


def compile_regions(model: MaskRCNN, **options: Any) -> None:
    """Replace the regions' methods by compiled ones. Parameters, their names and the state dict
    stay as they are.

    options: of torch.compile. If a region cannot be compiled after all, a line says so and it runs
    as it is. A model that is compiled stays so.
    """
    if is_compiled(model):
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.optimize_ddp = (
        False  # the regions are the pieces between which gradients are reduced
    )
    for name in REGIONS:
        run = _compiled(name, **options)
        if name == "infer":
            run = _graphed(run, **options)
        # A method and no function: of a copy of the model it is the copy's.
        setattr(model, name, MethodType(run, model))


def is_compiled(model: MaskRCNN) -> bool:
    return any(name in vars(model) for name in REGIONS)


def _graphed(plain: Any, **options: Any) -> Any:
    """`infer` of one image on a GPU as one CUDA graph: there the host's launches are most of the
    time. Its results are copied, since the next call writes where they lie.
    """
    graphed = _compiled("infer", **options | {"mode": "reduce-overhead"})

    def run(model: nn.Module, images: Tensor, *args: Any) -> Any:
        if images.device.type != "cuda" or len(images) > 1 or "backend" in options:
            return plain(model, images, *args)
        torch.compiler.cudagraph_mark_step_begin()
        return {key: value.clone() for key, value in graphed(model, images, *args).items()}

    return run


def _compiled(name: str, **options: Any) -> Any:
    plain = getattr(MaskRCNN, name)
    compiled = torch.compile(plain, fullgraph=True, dynamic=False, **options)

    def run(model: nn.Module, *args: Any) -> Any:
        try:
            return compiled(model, *args)
        except (
            torch._dynamo.exc.TorchDynamoException
        ) as error:  # while compiling: nothing has been computed yet
            announce(
                f"trainer.compile: {name} is not compiled, since {type(error).__name__}: {str(error).splitlines()[0]}"
            )
        setattr(model, name, MethodType(plain, model))
        return plain(model, *args)

    return run


@rank_zero_only
def announce(text: str) -> None:
    _log.info(text)
