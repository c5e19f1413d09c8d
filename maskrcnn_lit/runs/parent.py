"""A finished run as the start of a new one that trains longer, in a folder of its own."""

import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import file_digest
from maskrcnn_lit.training.checkpoint import last_checkpoint, load_sound, save_plain
from maskrcnn_lit.training.loggers import EVENTS
from maskrcnn_lit.training.trainer import StopWithoutProgress

# What may be given with resume=RUN of a finished run, so that a new run goes on from it.
LENGTH = ("trainer.epochs", "trainer.steps", "trainer.patience")


def read_parent(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `parent` that result.json records of a run that goes on from `run_dir` (its folder, the
    SHA-256 of its last checkpoint, optimizer steps and whole epochs until there), and that
    checkpoint.

    Raises:
        UserError: it has no last checkpoint, or it is damaged, or its weights are not finite.
    """
    last = last_checkpoint(run_dir)
    if last is None:
        raise UserError(
            f"{run_dir} has no checkpoints/last.ckpt, so no run can go on from it: copy the file "
            "back, or start a new run"
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
    """Make `run_dir` begin where `parent` ended: last.ckpt, best.ckpt, metrics.csv and TensorBoard's
    curves are copied. Validations without progress are counted from 0 again.

    Args:
        checkpoint: of the parent, as `read_parent` gives it.
    """
    states = checkpoint.get("callbacks", {})
    if StopWithoutProgress.__name__ in states:
        states[StopWithoutProgress.__name__]["validations"] = 0
    save_plain(run_dir / "checkpoints" / "last.ckpt", checkpoint)
    events = [*sorted(parent.glob(EVENTS)), *sorted((parent / "tensorboard").glob(EVENTS))]
    for file in (parent / "checkpoints" / "best.ckpt", parent / "metrics.csv", *events):
        if file.is_file() and not file.is_symlink():
            _copy(file, run_dir / file.relative_to(parent))


def check_longer(config: DictConfig, parent: dict[str, Any], run: str) -> None:
    """Raise UserError where the new length of `config` leaves nothing to train after `parent`."""
    trainer = config.trainer
    done = {"epochs": parent["epoch"], "steps": parent["step"]}
    for name, reached in done.items():
        limit = trainer[name]
        if limit is not None and limit <= reached:
            raise UserError(
                f"{run} is finished after {reached} {name}, and trainer.{name}={limit} is not more: "
                f"give a larger one, for example trainer.{name}={2 * reached}"
            )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
