"""Files of weights, as anybody saves them: read without running anything that is in them."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.pickles import load_arrays


def read_file(path: Path) -> dict[str, Any]:
    """What a file of weights holds, on the CPU. Nothing in it is run: arrays, tensors and plain data are all it may
    hold (and the Namespace of arguments that torchvision's training script saves).

    Raises:
        UserError: there is no such file, it is damaged, or it holds anything else.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a file of weights")
    if path.suffix == ".pkl":
        content = load_arrays(path)
    else:
        load = _safetensors(path) if path.suffix == ".safetensors" else _torch_load
        try:
            content = load(path)
        except Exception as error:  # of torch, of zip, of safetensors: damaged bytes can raise anything
            raise UserError(
                f"{path} is not loaded, it is damaged or holds more than tensors and plain data "
                f"({type(error).__name__}): give weights as they were published, or what `maskrcnn-lit train` wrote"
            ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and no weights: give a file with a state dict")
    return content


def _torch_load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> Callable[[Path], Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} needs safetensors: pip install 'maskrcnn_lit[timm]'") from None
    return load_file


def state_of(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in what a file holds: the whole of it, or what it calls "model" or "state_dict"."""
    inner = next((saved[key] for key in ("model", "state_dict") if isinstance(saved.get(key), Mapping)), saved)
    numbers = (Tensor, np.ndarray, int, float)
    return {n: torch.as_tensor(v) for n, v in inner.items() if isinstance(n, str) and isinstance(v, numbers)}
