"""suppression.json of a run folder: the suppression with the highest AP of `evaluate nms=all`.

{"metric": "val/mask_ap" | "val/box_ap", "value": AP, "nms", "agnostic_nms", "exclusive",
"weights"}: on the run's own validation images, with its best weights, of which "weights" is the
SHA-256. `model.nms=best` reads it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import check_weights, weights_digest
from maskrcnn_lit.storage.sealed import read_sealed_json, write_sealed_json

FILE = "suppression.json"

OPTIONS = ("nms", "agnostic_nms", "exclusive")


def write_suppression(
    run_folder: str | Path, choice: Mapping[str, Any], metric: str, value: float
) -> Path:
    """Write the choice (OPTIONS -> value) and its score atomically; return the file."""
    path = Path(run_folder) / FILE
    stored = {"metric": metric, "value": value, "weights": weights_digest(run_folder)}
    stored |= {name: choice[name] for name in OPTIONS}
    write_sealed_json(path, stored)
    return path


def read_suppression(run: str | Path, checkpoint: str = "best") -> dict[str, Any]:
    """OPTIONS -> the stored value.

    Raises: UserError: `run` has no such file, it cannot be read, or it belongs to other weights.
    """
    if checkpoint != "best":
        raise UserError(
            "model.nms=best is only available for the best weights, not for "
            f"checkpoint={checkpoint}: leave that out, or name a kind, as in model.nms=mask"
        )
    path = Path(run) / FILE
    try:
        stored = read_sealed_json(path)
        check_weights(stored.get("weights"), run)
        return {name: stored[name] for name in OPTIONS}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"model.nms=best needs {path}, which does not exist: run `maskrcnn-lit evaluate "
            f"run={run} nms=all` first (on the run's own validation images), or name a kind, as in "
            "model.nms=soft (a model without masks has box and soft)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no choice of suppression for this run ({error}): write it again with "
            f"`maskrcnn-lit evaluate run={run} nms=all`"
        ) from None
