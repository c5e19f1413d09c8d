"""A trained model as a folder to share, on the disk or on the Hugging Face hub: weights as
safetensors, config, classes, scores and a model card. Nothing in it is executed on reading.
"""

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from maskrcnn_lit.config.stored import read_run_config
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import check_finite, read_file
from maskrcnn_lit.storage.checkpoints import SHARED
from maskrcnn_lit.storage.packages import import_package

WEIGHTS, FACTS, CARD, CONFIG = SHARED, "maskrcnn_lit.json", "README.md", "config.yaml"
# What is fetched of a repository on the hub: the other two are of `evaluate`.
FETCHED = (WEIGHTS, FACTS, CONFIG, "thresholds.json", "suppression.json")
HUB = "hf:"  # begins the name of a model on the hub
VERSION = 1
MAX_BYTES = 64 * 2**20  # of the facts


def is_shared(folder: Path) -> bool:
    """Whether `folder` was written by `maskrcnn-lit publish`."""
    return (folder / WEIGHTS).is_file() and (folder / FACTS).is_file()


def hub_name(text: str) -> str | None:
    """USER/NAME of hf:USER/NAME; None: `text` is not on the hub.

    Raises: UserError: it begins with hf: and has no such name.
    """
    if not text.startswith(HUB):
        return None
    name = text.removeprefix(HUB)
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name):
        raise UserError(f"to={text} must be hf:USER/NAME, as in hf:mylab/nuclei")
    return name


def local(source: str | Path) -> str | Path:
    """The folder of a model on the hub, fetched once into the hub's cache; any other source as it
    is.

    Raises: UserError: a wrong name, huggingface_hub is missing, or the model cannot be fetched.
    """
    name = hub_name(str(source))
    if name is None:
        return source
    try:
        return hub(str(source)).snapshot_download(name, allow_patterns=list(FETCHED))
    except UserError:
        raise
    except Exception as error:  # of the hub's client, http, and the disk
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source} cannot be fetched from the Hugging Face hub ({reason}): check the name, the "
            "network, and for a private model `hf auth login`"
        ) from error


def hub(wanted: str) -> Any:
    """The package huggingface_hub. UserError: it is missing; `wanted` needs it."""
    return import_package("huggingface_hub", "hub", wanted)


def read_shared(
    folder: Path,
) -> tuple[dict[str, Any], tuple[Category, ...], dict[str, Tensor]]:
    """The config (unchecked plain data), the classes and the state dict of a shared folder.

    Raises: UserError: a file is missing or damaged, or of another version.
    """
    path = folder / FACTS
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has over {MAX_BYTES} bytes")
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["version"]
        if version != VERSION:
            raise UserError(
                f"{path} is of version {str(version)[:20]}, and this maskrcnn_lit reads version "
                f"{VERSION}: update maskrcnn_lit, or publish the run again"
            )
        categories = tuple(Category(int(number), str(name)) for number, name in facts["categories"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({reason}): publish the run again") from error
    config = read_run_config(folder)
    state = read_file(folder / WEIGHTS)
    check_finite(state, folder / WEIGHTS)
    return config, categories, state
