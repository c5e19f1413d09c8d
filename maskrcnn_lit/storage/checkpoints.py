"""Where the checkpoints of a run lie."""

from pathlib import Path

from maskrcnn_lit.errors import UserError


def last_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint from which a run resumes; None if it was killed before its first one, so that
    it starts from scratch.
    """
    path = Path(run_dir) / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None


def best_checkpoint(run_dir: str | Path) -> Path:
    """The checkpoint to evaluate: best.ckpt, or last.ckpt if no validation has written one.
    UserError without either.
    """
    best = Path(run_dir) / "checkpoints" / "best.ckpt"
    path = best if best.is_file() else last_checkpoint(run_dir)
    if path is None:
        raise UserError(
            f"{best.parent} has no checkpoint: continue the run first, maskrcnn-lit train "
            f"resume={run_dir}"
        )
    return path
