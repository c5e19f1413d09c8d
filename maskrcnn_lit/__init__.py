"""Mask R-CNN, trained with Lightning, configured and swept with Hydra, seen in TensorBoard."""

__version__ = "0.1.0"
