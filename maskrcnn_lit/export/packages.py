"""The packages that an export needs, each with the extra that brings it."""

from functools import cache
from typing import Any

from maskrcnn_lit.storage.packages import import_package

EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


def package(name: str, wanted_for: str) -> Any:
    """The module `name`, one of EXTRAS or a module inside of one.

    Raises: UserError: it is not installed.
    """
    return import_package(name, EXTRAS[name.partition(".")[0]], wanted_for)


@cache
def openvino_core() -> Any:
    """OpenVINO's Core, one for the whole process.

    On a processor with AMX each Core gives the main thread a stack for signals. Where two of them
    end, the thread is left with one that was freed (OpenVINO 2026.4), and the next signal with a
    handler in Python, the end of a child or Ctrl-C, is a segmentation fault. So none may end.

    Raises: UserError: it is not installed.
    """
    return package("openvino", "format=openvino").Core()
