"""`maskrcnn-lit replay`: the file of a training step that was not finite -> the same step again,
term by term.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.stored import checked
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.checkpoint import load_plain
from maskrcnn_lit.training.nonfinite import replay


def run(config: DictConfig, overrides: list[str]) -> None:
    """Compute the step of `config.file` again and print its losses and the norm of its gradient."""
    file = Path(config.file)
    saved = load_plain(file) if file.is_file() else {}
    if not {"config", "image_ids", "batches"} <= saved.keys():
        raise UserError(
            f"{file} is not the file of a stopped step: give a nonfinite_step<n>.pt of a run folder"
        )
    stored = checked(saved["config"], where=str(file), trust=config.trust)
    model = build(stored.model).to(memory_format=torch.channels_last)  # as in training
    again = replay(file, model)
    for image_ids, losses in zip(saved["image_ids"], again.losses, strict=True):
        print(f"images {', '.join(map(str, image_ids))}")
        for name, value in losses.items():
            print(f"  {name:15} {value:.6g}")
    print(f"gradient norm {again.gradient_norm:.6g}")
