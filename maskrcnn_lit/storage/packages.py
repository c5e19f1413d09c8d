"""Imports packages of an extra only where they are needed."""

from importlib import import_module
from typing import Any

from maskrcnn_lit.errors import UserError


def import_package(name: str, extra: str, wanted_for: str) -> Any:
    """The module `name`, which `pip install 'maskrcnn_lit[extra]'` brings.

    Raises: UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise UserError(
            f"{wanted_for} needs the package {top}, which is not installed: "
            f"pip install 'maskrcnn_lit[{extra}]'"
        ) from error
