"""Mask R-CNN, trained with Lightning, configured and swept with Hydra, seen in TensorBoard."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn_lit.predictor import load_model as load_model

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """`load_model` brings torch with it, so it is imported when it is asked for: `maskrcnn-lit
    --help` is quick.
    """
    if name == "load_model":
        from maskrcnn_lit.predictor import load_model

        return load_model
    raise AttributeError(f"module 'maskrcnn_lit' has no attribute '{name}'")
