"""`maskrcnn-lit replay`: recompute a training step whose loss or gradient was not finite."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.stored import checked
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.checkpoint_files import load_plain
from maskrcnn_lit.training.nonfinite import replay


def run(config: DictConfig, overrides: list[str]) -> None:
    """Recompute the step in `config.file` and print its losses and gradient norm."""
    file = Path(config.file)
    saved = load_plain(file) if file.is_file() else {}
    if not {"config", "image_ids", "batches"} <= saved.keys():
        raise UserError(
            f"{file} is not a saved step: give a nonfinite_step<n>.pt from a run folder"
        )
    stored = checked(saved["config"], where=str(file), trust=config.trust)
    model = build(stored.model).to(memory_format=torch.channels_last)  # as in training
    again = replay(file, model)
    for image_ids, losses in zip(saved["image_ids"], again.losses, strict=True):
        print(f"images {', '.join(map(str, image_ids))}")
        for name, value in losses.items():
            print(f"  {name:15} {value:.6g}")
    print(f"gradient norm {again.gradient_norm:.6g}")
