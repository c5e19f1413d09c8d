"""A guard over operators whose output's shape, or the program's way, hangs on values: on a GPU the
host would wait.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

BY_DATA = (
    "nonzero",
    "masked_select",
    "unique",
    "nms",
    "_local_scalar_dense",
    "bincount",
    "repeat_interleave.Tensor",
)


class ShapesFromData(TorchDispatchMode):
    """Counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.calls = 0  # of any operator

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        self.calls += 1
        by_mask = name in (
            "index",
            "index_put",
            "index_put_",
            "_index_put_impl_",
            "_unsafe_index",
        ) and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if (
            by_mask
            or name == "equal"
            or any(word in f"{name}.{function._overloadname}" for word in BY_DATA)
        ):
            self.count[name] = self.count.get(name, 0) + 1
        return function(*args, **(kwargs or {}))
