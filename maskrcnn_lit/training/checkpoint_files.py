"""The files of checkpoints: written and read as plain data, without Lightning."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import check_finite
from maskrcnn_lit.storage.files import move_into_place, temporary_file
from maskrcnn_lit.storage.sealed import zip_fault


def save_plain(path: Path, value: Any) -> None:
    """torch.save to a temporary file in the same folder, flushed to the disk, then renamed over
    `path`.

    The temporary name is fixed, so the next write replaces the remains of a killed run. Raises
    OSError if the file cannot be written.
    """
    with temporary_file(path, unique=False) as partial:
        try:
            with open(partial, "wb") as file:
                torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None  # torch.save hides that the disk is full
            raise
        move_into_place(partial, path)


def load_plain(path: Path) -> dict[str, Any]:
    """Read a file of `save_plain` on the CPU. No code in the file is executed: it may contain only
    tensors and plain data.

    Raises UserError if the file is missing, damaged, or contains anything else. torch does not
    verify its checksums, and would return wrong weights for a flipped bit.
    """
    try:
        fault = zip_fault(path)
        if fault is not None:
            raise ValueError(fault)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"the checkpoint {path} does not exist: give the folder of a run that has trained"
        ) from None
    except Exception as error:  # from the unpickler, torch or zip: damaged bytes can raise anything
        raise UserError(
            f"{path} cannot be loaded, since it is damaged or contains more than tensors and plain "
            f"data ({type(error).__name__}): give a checkpoint that `maskrcnn-lit train` wrote"
        ) from error


def load_sound(path: Path) -> dict[str, Any]:
    """`load_plain` of a checkpoint to train on; UserError too if its weights are not finite."""
    checkpoint = load_plain(path)
    for name in ("state_dict", "current_model_state"):  # the second with trainer.ema
        check_finite(checkpoint.get(name, {}), path)
    return checkpoint


def model_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of the model from a loaded checkpoint of its module."""
    return {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
