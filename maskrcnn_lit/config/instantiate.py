"""Builds the object that a config node describes: Hydra's `instantiate`, with errors that name the
wrong argument.

Any `_target_` is imported and called here: the user's command line and config folders are trusted.
A config from a run folder or a checkpoint is checked first (stored.py).
"""

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from maskrcnn_lit.config.overrides import suggest
from maskrcnn_lit.errors import UserError


def build(node: Any, **kwargs: Any) -> Any:
    """Build the object that `node`, a config node or plain data, describes by `_target_`; nested
    objects are built first.

    `kwargs` are passed to the outer target unchanged (with `_partial_: true`, when it is called);
    all other arguments are plain dicts and lists. Without `_target_` the result is a dict or list
    of the node's items; None gives None.

    Raises UserError for a target that cannot be imported or called, and for an argument that it
    does not accept. Exceptions of the target itself are not caught.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for where, values in _targets(plain, ""):
        _check_target(where, values)
    if not isinstance(plain, dict) or "_target_" not in plain:
        return _instantiate(plain)
    call = _instantiate({**plain, "_partial_": True})  # instantiate would copy and convert kwargs
    return partial(call, **kwargs) if plain.get("_partial_") else call(**kwargs)


def import_target(name: str, where: str) -> Any:
    """Import the dotted `name` from an installed package or from the working directory.

    A console script does not have the working directory on its path. It is searched last, so a file
    of the user cannot shadow a standard module.

    Raises:
        UserError: it cannot be imported; `where` names the config node.
    """
    try:
        return pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        package = str(name).partition(".")[0]
        beside = [Path(here, package), Path(here, f"{package}.py")]
        if error.name != package or here in sys.path or not any(map(Path.exists, beside)):
            raise UserError(_unimportable(name, where, error)) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(_unimportable(name, where, error)) from error
    sys.path.append(here)
    importlib.invalidate_caches()
    return import_target(name, where)


def _unimportable(name: str, where: str, error: Exception) -> str:
    return (
        f"_target_ '{name}' in {where} cannot be imported ({error}): install its package, or "
        "run the command in the folder of the module"
    )


def _targets(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict with a `_target_` in nested dicts and lists, with its dotted path."""
    if isinstance(node, dict) and "_target_" in node:
        yield where or "the config", node
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield from _targets(value, f"{where}.{key}" if where else str(key))


def _check_target(where: str, values: dict[str, Any]) -> None:
    name = values["_target_"]
    if not isinstance(name, str) or "." not in name:
        raise UserError(
            f"_target_ {name!r} in {where} must be the dotted name of a class or function"
        )
    target = import_target(name, where)
    if not callable(target):
        raise UserError(f"_target_ '{name}' in {where} is {target!r}, which cannot be called")
    try:
        takes = inspect.signature(target).parameters
    except ValueError:  # a builtin without a signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return
    for key in values:
        if not key.startswith("_") and key not in takes:
            raise UserError(
                f"{name} in {where} has no argument '{key}'{suggest(key, takes)}; its arguments "
                f"are {', '.join(takes)}"
            )


def _instantiate(plain: Any) -> Any:
    try:
        return hydra.utils.instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, InstantiationException):  # Hydra refuses os.system and the like
            raise UserError(" ".join(str(cause).split())) from error
        raise cause from None  # the target's own exception, such as a UserError
