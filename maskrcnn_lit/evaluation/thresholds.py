"""thresholds.json of a run folder: the best score threshold of each class from an evaluation.

{"boxes_or_masks": "mask" | "box", "iou": 0.5, "thresholds": {class name: score}}: the score with
the highest F1 at that IoU on the run's own validation images, with the run's best weights;
thresholds of the last weights are not stored. A class without objects or true positives there is
missing and gets DEFAULT.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sealed import read_sealed_json, write_sealed_json

FILE = "thresholds.json"

DEFAULT = 0.5


def write_thresholds(run_folder: str | Path, analysis: Mapping[str, Any]) -> Path:
    """Write the thresholds of an analysis by `analyze` atomically; return the file."""
    best = {
        row["name"]: row["threshold"]
        for row in analysis["per_class"]
        if row["threshold"] is not None
    }
    path = Path(run_folder) / FILE
    write_sealed_json(
        path,
        {
            "boxes_or_masks": analysis["kind"],
            "iou": analysis["confusion"]["iou"],
            "thresholds": best,
        },
    )
    return path


def has_thresholds(run: str | Path, checkpoint: str = "best") -> bool:
    """Whether `run` is a run folder with stored thresholds of these weights."""
    return checkpoint == "best" and (Path(run) / FILE).is_file()


def read_thresholds(run: str | Path, names: Sequence[str], checkpoint: str = "best") -> list[float]:
    """The thresholds of the classes `names`; DEFAULT for a class without one.

    Raises: UserError: `run` has no thresholds, they cannot be read, or they belong to other
    weights.
    """
    if checkpoint != "best":
        raise UserError(
            "score_threshold=best is only available for the best weights, not for "
            f"checkpoint={checkpoint}: leave that out, or give a number from 0 to 1"
        )
    path = Path(run) / FILE
    try:
        stored = read_sealed_json(path)["thresholds"]
        return [float(stored.get(name, DEFAULT)) for name in names]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"score_threshold=best needs {path}, which does not exist: run `maskrcnn-lit evaluate "
            f"run={run}` first (on the run's own validation images), or give a number from 0 to 1"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} has no thresholds ({error!r}): write it again with `maskrcnn-lit evaluate "
            f"run={run}`"
        ) from None
