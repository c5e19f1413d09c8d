"""Where the checkpoints of a run lie."""

from pathlib import Path

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import file_digest

SHARED = "model.safetensors"  # the weights of a model that was published


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


def weights_digest(folder: str | Path) -> str | None:
    """The SHA-256 of the weights that are evaluated, of a run or a shared model; None: there are
    none.
    """
    checkpoints = Path(folder) / "checkpoints"
    files = (checkpoints / "best.ckpt", checkpoints / "last.ckpt", Path(folder) / SHARED)
    file = next((path for path in files if path.is_file()), None)
    return None if file is None else file_digest(file, "sha256")


def check_weights(stored: object, folder: str | Path) -> None:
    """Raise ValueError if a result was stored with the digest of other weights than those that
    `folder` has now. stored: None, as of an earlier version, is not checked.
    """
    digest = None if stored is None else weights_digest(folder)
    if digest is not None and digest != stored:
        raise ValueError("it belongs to other weights than the run has now")
