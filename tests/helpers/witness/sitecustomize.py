"""Put first on PYTHONPATH: every process that trains leaves behind what it ran and what it ended
with.

In the folder that the environment variable WITNESS names: a file a process, with its config's hash,
its run folder and the hash of its weights.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType

WATCHED = "maskrcnn_lit.training.module"


class Witness(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the module as ever, then adds to its class."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != WATCHED:
            return None
        self.spec = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.spec.origin)

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.spec.origin
        self.spec.loader.exec_module(module)
        module.DetectionModule.on_fit_end = on_fit_end  # type: ignore[attr-defined]


def on_fit_end(module) -> None:  # type: ignore[no-untyped-def]
    import hashlib
    import json

    from maskrcnn_lit.storage.files import config_digest

    weights = hashlib.sha256()
    for value in module.model.state_dict().values():
        weights.update(value.numpy().tobytes())
    told = {
        "rank": module.global_rank,
        "config": config_digest(module.config),
        "run_dir": module.config["run_dir"],
        "seed": module.config["seed"],
        "weights": weights.hexdigest(),
    }
    with open(os.path.join(os.environ["WITNESS"], f"{os.getpid()}.json"), "w") as file:
        json.dump(told, file)


if "WITNESS" in os.environ:
    sys.meta_path.insert(0, Witness())
