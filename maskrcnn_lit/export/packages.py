"""The packages that an export needs, each with the extra that brings it."""

from importlib import import_module
from typing import Any

from maskrcnn_lit.errors import UserError

EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


def package(name: str, wanted_for: str) -> Any:
    """The module `name`, one of EXTRAS or a module inside of one.

    Raises: UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise UserError(
            f"{wanted_for} needs the package {top}, which is not installed: "
            f"pip install 'maskrcnn_lit[{EXTRAS[top]}]'"
        ) from error
