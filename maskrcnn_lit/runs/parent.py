"""Continues a finished run in a new, longer run with its own folder."""

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.storage.files import file_digest, move_into_place, temporary_file
from maskrcnn_lit.training.checkpoint_files import load_sound, save_plain
from maskrcnn_lit.training.loggers import EVENTS
from maskrcnn_lit.training.trainer import StopWithoutProgress


def read_parent(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `parent` entry in result.json for a run that continues `run_dir` (its folder, the SHA-256
    of its last checkpoint, its optimizer steps and full epochs), and the checkpoint.

    Raises:
        UserError: its last checkpoint is missing or damaged, or its weights are not finite.
    """
    last = last_checkpoint(run_dir)
    if last is None:
        raise UserError(
            f"{run_dir} has no checkpoints/last.ckpt, so it cannot be continued: restore the file, "
            "or start a new run"
        )
    checkpoint = load_sound(last)
    described = {
        "run": str(run_dir.resolve()),
        "checkpoint_sha256": file_digest(last, "sha256"),
        "step": int(checkpoint["global_step"]),
        "epoch": int((checkpoint.get("position") or {}).get("epoch", checkpoint["epoch"])),
    }
    return described, checkpoint


def start_from(parent: Path, run_dir: Path, checkpoint: dict[str, Any]) -> None:
    """Initialize `run_dir` from `parent`: copy last.ckpt, best.ckpt, those of `trainer.keep_best`,
    metrics.csv and TensorBoard's curves. The count of validations without progress restarts at 0.

    Args:
        checkpoint: of the parent, from `read_parent`.
    """
    states = checkpoint.get("callbacks", {})
    if StopWithoutProgress.__name__ in states:
        states[StopWithoutProgress.__name__]["validations"] = 0
    save_plain(run_dir / "checkpoints" / "last.ckpt", checkpoint)
    events = [*sorted(parent.glob(EVENTS)), *sorted((parent / "tensorboard").glob(EVENTS))]
    saved = parent / "checkpoints"
    best = [saved / "best.ckpt", *sorted(saved.glob("epoch_*.ckpt"))]
    for file in (*best, parent / "metrics.csv", *events):
        if file.is_file() and not file.is_symlink():
            _copy(file, run_dir / file.relative_to(parent))


def check_longer(config: DictConfig, parent: dict[str, Any], run: str) -> None:
    """Raise UserError if the length in `config` does not exceed that of `parent`."""
    trainer = config.trainer
    done = {"epochs": parent["epoch"], "steps": parent["step"]}
    for name, reached in done.items():
        limit = trainer[name]
        if limit is not None and limit <= reached:
            raise UserError(
                f"{run} has finished {reached} {name}, but trainer.{name}={limit} is not more: "
                f"give a larger one, for example trainer.{name}={2 * reached}"
            )


def _copy(source: Path, target: Path) -> None:
    with temporary_file(target, unique=False) as partial:
        shutil.copyfile(source, partial)
        move_into_place(partial, target)
