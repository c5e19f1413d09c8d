"""A callback for `maskrcnn-lit train`: it records the images of each step and kills a process. A
test copies this file into the folder where the command runs.

Environment:
PROBE: a folder; each process appends a line for each of its batches to a file there.
PROBE_KILL=STEP:RANK: SIGKILL to this rank before its first batch of optimizer step STEP, from 0.
PROBE_DOUBLE: the model computes in float64, so that two orders of the same sum stay close.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer


class Probe(Callback):
    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if os.environ.get("PROBE_DOUBLE"):
            pl_module.model.double()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        step, _, rank = os.environ.get("PROBE_KILL", "-1:0").partition(":")
        self.step = trainer.global_step
        if (trainer.global_step, trainer.global_rank) == (int(step), int(rank)):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ids = batch["image_ids"][batch["readable"]].tolist()
        line = {"epoch": trainer.current_epoch, "step": self.step, "images": ids}
        with open(Path(os.environ["PROBE"], f"{os.getpid()}.jsonl"), "a") as file:
            file.write(json.dumps(line) + "\n")
