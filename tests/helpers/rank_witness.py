"""One rank of `maskrcnn-lit ARGUMENTS` that leaves behind what it ran and what it ended with: a
program for torchrun.

torchrun --nproc-per-node 2 rank_witness.py FOLDER train ... python rank_witness.py FOLDER train ...
(the only one) WITNESS_DOUBLE=1: the model computes in float64, so that two ways of adding the same
numbers stay close.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.storage.files import config_digest
from maskrcnn_lit.training.module import DetectionModule


def on_fit_end(module: DetectionModule) -> None:
    weights = hashlib.sha256()
    for value in module.model.state_dict().values():
        weights.update(value.numpy().tobytes())
    told: dict[str, Any] = {
        "config": config_digest(module.config),
        "run_dir": module.config["run_dir"],
        "weights": weights.hexdigest(),
    }
    Path(sys.argv[1], f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(told))


def in_double(module: DetectionModule, stage: str) -> None:
    module.model.double()
    setup(module, stage)


if __name__ == "__main__":
    if os.environ.get("WITNESS_DOUBLE"):
        setup, DetectionModule.setup = DetectionModule.setup, in_double
    DetectionModule.on_fit_end = on_fit_end
    sys.exit(cli.main(sys.argv[2:]))
