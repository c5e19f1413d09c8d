"""Mask R-CNN, trained with Lightning, configured and swept with Hydra, seen in TensorBoard.

from maskrcnn_lit import load_model
model = load_model("torchvision_v2")  # or a run folder
(detections,) = model.predict("photo.jpg")
detections.save("found.png")

The library logs to the logger "maskrcnn_lit" and does not print.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn_lit.data.datamodule import CocoDataModule as CocoDataModule
    from maskrcnn_lit.errors import UserError as UserError
    from maskrcnn_lit.launch.api import build_model as build_model
    from maskrcnn_lit.launch.api import evaluate as evaluate
    from maskrcnn_lit.launch.api import train as train
    from maskrcnn_lit.model.mask_rcnn import MaskRCNN as MaskRCNN
    from maskrcnn_lit.predictor import Detections as Detections
    from maskrcnn_lit.predictor import Predictor as Predictor
    from maskrcnn_lit.predictor import load_model as load_model
    from maskrcnn_lit.runs.result import RunResult as RunResult

__version__ = "0.1.0"

# name -> the module that defines it. Most of these modules import torch, which takes seconds, so
# each is imported on first use: `maskrcnn-lit --help` stays fast.
_MODULES = {
    "CocoDataModule": "maskrcnn_lit.data.datamodule",
    "Detections": "maskrcnn_lit.predictor",
    "MaskRCNN": "maskrcnn_lit.model.mask_rcnn",
    "Predictor": "maskrcnn_lit.predictor",
    "RunResult": "maskrcnn_lit.runs.result",
    "UserError": "maskrcnn_lit.errors",
    "build_model": "maskrcnn_lit.launch.api",
    "evaluate": "maskrcnn_lit.launch.api",
    "load_model": "maskrcnn_lit.predictor",
    "train": "maskrcnn_lit.launch.api",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'maskrcnn_lit' has no attribute '{name}'")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
