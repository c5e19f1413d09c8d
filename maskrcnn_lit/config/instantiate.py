"""From a config node to the object that it describes: Hydra's `instantiate` for the targets that we
allow.
"""

import inspect
import pkgutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from maskrcnn_lit.config.overrides import suggest
from maskrcnn_lit.errors import UserError

# A config may come with someone else's run folder, so it can name only parts of a network and of
# its training: all of torch would include torch.hub.load, which runs what it downloads.
ALLOWED_TARGETS = (
    "maskrcnn_lit.",
    "torch.nn.",
    "torch.optim.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.",
    "lightning.pytorch.",
)


def build(node: Any, **kwargs: Any) -> Any:
    """The object that `node`, a config node or plain data, describes by `_target_`; its parts come
    first.

    `kwargs` reach the outer target as they are (where the node is `_partial_: true`, when it is
    called), all else reaches it as plain dicts and lists. Without `_target_` the result is a dict
    or list of what the node holds; None gives None.

    Raises UserError for a target outside of ALLOWED_TARGETS (before anything is imported), for one
    that does not exist or was defined elsewhere, and for an argument that it does not take. What a
    target raises passes through.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    targets = list(_targets(plain, ""))
    for where, values in targets:
        _check_name(where, values["_target_"])
    for where, values in targets:
        _check_target(where, values)
    if not isinstance(plain, dict) or "_target_" not in plain:
        return _instantiate(plain)
    call = _instantiate({**plain, "_partial_": True})  # instantiate would copy and convert kwargs
    return partial(call, **kwargs) if plain.get("_partial_") else call(**kwargs)


def _targets(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict with a `_target_` in nested dicts and lists, and where it is."""
    if isinstance(node, dict) and "_target_" in node:
        yield where or "the config", node
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        yield from _targets(value, f"{where}.{key}" if where else str(key))


def _check_name(where: str, name: Any) -> None:
    if not isinstance(name, str) or not name.startswith(ALLOWED_TARGETS):
        allowed = ", ".join(ALLOWED_TARGETS)
        raise UserError(
            f"_target_ {name!r} in {where} is not allowed: a target begins with one of {allowed}"
        )


def _check_target(where: str, values: dict[str, Any]) -> None:
    name = values["_target_"]
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ '{name}' in {where} cannot be imported: {error}") from error
    # torch.nn.modules.module.torch.load is torch.load: what counts is where a thing was defined
    home = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', None)}"
    if not callable(target) or not home.startswith(ALLOWED_TARGETS):
        raise UserError(f"_target_ '{name}' in {where} is not allowed: it is {target!r}")
    takes = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return
    for key in values:
        if not key.startswith("_") and key not in takes:
            raise UserError(
                f"{name} in {where} takes no '{key}'{suggest(key, takes)}; it takes {', '.join(takes)}"
            )


def _instantiate(plain: Any) -> Any:
    try:
        return hydra.utils.instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None  # what the target raised, so that a UserError of its own stays one
