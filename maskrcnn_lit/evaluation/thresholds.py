"""thresholds.json of a run folder: the best score threshold of each class from an evaluation.

{"boxes_or_masks": "mask" | "box", "iou": 0.5, "thresholds": {class name: score}, "weights"}: the
score with the highest F1 at that IoU on the run's own validation images, with the run's best
weights, of which "weights" is the SHA-256; thresholds of the last weights are not stored. A class
without objects or true positives there is missing and gets DEFAULT.

Another suppression than the run's own gives other scores, so its thresholds have a file of their
own: thresholds_matrix_exclusive.json. `changed` is such a suppression: {"nms", "agnostic_nms",
"exclusive"}; None: the run's own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import check_weights, weights_digest
from maskrcnn_lit.storage.sealed import read_sealed_json, write_sealed_json

FILE = "thresholds.json"

DEFAULT = 0.5


def write_thresholds(
    run_folder: str | Path,
    analysis: Mapping[str, Any],
    changed: Mapping[str, Any] | None = None,
) -> Path:
    """Write the thresholds of an analysis by `analyze` atomically; return the file."""
    best = {
        row["name"]: row["threshold"]
        for row in analysis["per_class"]
        if row["threshold"] is not None
    }
    path = thresholds_file(run_folder, changed)
    write_sealed_json(
        path,
        {
            "boxes_or_masks": analysis["kind"],
            "iou": analysis["confusion"]["iou"],
            "thresholds": best,
            "weights": weights_digest(run_folder),
        },
    )
    return path


def thresholds_file(run: str | Path, changed: Mapping[str, Any] | None = None) -> Path:
    """Where the thresholds of a suppression are stored."""
    if changed is None:
        return Path(run) / FILE
    words = [changed["nms"], *(name for name in ("agnostic_nms", "exclusive") if changed[name])]
    return Path(run) / f"thresholds_{'_'.join(words)}.json"


def has_thresholds(
    run: str | Path, checkpoint: str = "best", changed: Mapping[str, Any] | None = None
) -> bool:
    """Whether `run` is a run folder with stored thresholds of these weights."""
    return checkpoint == "best" and thresholds_file(run, changed).is_file()


def read_thresholds(
    run: str | Path,
    names: Sequence[str],
    checkpoint: str = "best",
    changed: Mapping[str, Any] | None = None,
) -> list[float]:
    """The thresholds of the classes `names`; DEFAULT for a class without one.

    Raises: UserError: `run` has no thresholds, they cannot be read, or they belong to other
    weights.
    """
    if checkpoint != "best":
        raise UserError(
            "score_threshold=best is only available for the best weights, not for "
            f"checkpoint={checkpoint}: leave that out, or give a number from 0 to 1"
        )
    path = thresholds_file(run, changed)
    command = f"maskrcnn-lit evaluate run={run}{_options(changed)}"
    try:
        content = read_sealed_json(path)
        check_weights(content.get("weights"), run)
        stored = content["thresholds"]
        return [float(stored.get(name, DEFAULT)) for name in names]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"score_threshold=best needs {path}, which does not exist: run `{command}` first (on "
            "the run's own validation images), or give a number from 0 to 1"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} has no thresholds for this run ({error}): write it again with `{command}`"
        ) from None


def _options(changed: Mapping[str, Any] | None) -> str:
    """As they are typed."""
    values = {name: str(value).lower() for name, value in (changed or {}).items()}
    return "".join(f" model.{name}={value}" for name, value in values.items())
