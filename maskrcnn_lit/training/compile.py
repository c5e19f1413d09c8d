"""`trainer.compile`: the model's regions through torch.compile, each as one graph of fixed shapes.

A region is compiled anew for each padded size, number of object slots and mode. What was compiled
is kept on disk, so that another run begins with it.
"""

import logging
import os
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.files import default_cache

REGIONS = ("trunk", "targets", "losses", "proposals", "detect", "classify")  # methods of MaskRCNN

CHOICES = ("auto", "always", "off")

# graphs of one region; a run with a dozen padded sizes, four numbers of slots and two modes has 96
LIMIT = 256

_log = logging.getLogger(__name__)


class CompileRegions(Callback):
    """Compiles the model before the first step.

    Args: how: of trainer.compile. "auto": on a GPU. "always": on the CPU as well, where compiling
        takes minutes, which is more than it saves in a short run. "off".
    """

    def __init__(self, how: str) -> None:
        if how not in CHOICES:
            raise UserError(f"trainer.compile is {how!r}; expected {', '.join(CHOICES)}")
        self.how = how

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        model, device = pl_module.model, trainer.strategy.root_device
        wanted = self.how == "always" or (self.how == "auto" and device.type == "cuda")
        if not wanted or not isinstance(model, MaskRCNN):
            return
        reason = obstacle(model, device)
        if reason is None:
            compile_regions(model)
        else:
            tell(f"trainer.compile={self.how}: not compiled, since {reason}")


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
    as it is.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.optimize_ddp = (
        False  # the regions are the pieces between which gradients are reduced
    )
    for name in REGIONS:
        # A method and no function: of a copy of the model it is the copy's.
        setattr(model, name, MethodType(_compiled(name, **options), model))


def _compiled(name: str, **options: Any) -> Any:
    plain = getattr(MaskRCNN, name)
    compiled = torch.compile(plain, fullgraph=True, dynamic=False, **options)

    def run(model: nn.Module, *args: Any) -> Any:
        try:
            return compiled(model, *args)
        except (
            torch._dynamo.exc.TorchDynamoException
        ) as error:  # while compiling: nothing has been computed yet
            tell(
                f"trainer.compile: {name} is not compiled, since {type(error).__name__}: {str(error).splitlines()[0]}"
            )
        setattr(model, name, MethodType(plain, model))
        return plain(model, *args)

    return run


@rank_zero_only
def tell(text: str) -> None:
    _log.info(text)
