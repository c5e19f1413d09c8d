"""The one record between a run and a report: result.json of the run folder.

`status` is "running" from the start of the run, so that a killed run is seen for what it is, and
then "finished", "failed" or "interrupted".
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import write_json

STATUSES = ("running", "finished", "failed", "interrupted")


@dataclass
class RunResult:
    """What is known of a run.

    error: why it failed; config_sha256: of its config, see `training.module.config_digest`.
    metrics: by logged name (val/box_ap, val/mask_ap, val/roi_accuracy, ...); NaN is null in the
        file.
    intervals: of val/box_ap and val/mask_ap, 95 % (bootstrap over images); None where the images
        hold no object.
    run_dir: the folder, where Python asks for it; it is not in the file.
    overrides: what the user typed after the verb; command: the whole command line.
    versions: see `package_versions`; commit: see `package_commit`, with changes; machine: see
        `describe_machine`;
    data: see `describe_data`.
    cost: see `run_cost` and, of a run that has finished, `inference_cost` in
        `maskrcnn_lit.measure.cost`.
    """

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    commit: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    error: str | None = None
    config_sha256: str | None = None
    run_dir: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; expected one of {', '.join(STATUSES)}")


def write_result(path: Path, result: RunResult) -> None:
    """Write result.json: the file is complete or as it was before."""
    content = asdict(result)
    del content["run_dir"]  # the folder may move
    write_json(path, content)


def read_result(path: Path) -> RunResult:
    """Read result.json; a metric that is null comes back as NaN. UserError if there is none or it
    is no result.
    """
    try:
        values = json.loads(path.read_text())
        known = {f.name: values[f.name] for f in fields(RunResult) if f.name in values}
        known["metrics"] = {
            k: math.nan if v is None else v for k, v in known.get("metrics", {}).items()
        }
        return RunResult(**known)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; give the folder of a run") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the result of a run ({error}); give the folder of a run"
        ) from None
