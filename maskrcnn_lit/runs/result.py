"""result.json of the run folder: the record of a run, and the input of reports.

`status` is "running" from the start of the run, so that a killed run is recognizable, then
"finished", "failed", "interrupted", or "pruned": ended early by its search.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import config_digest, file_digest
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json, write_sealed_json

STATUSES = ("running", "finished", "failed", "interrupted", "pruned")

LOCK = ".lock"  # in the run folder; locked by the training process

DONE = ("finished", "pruned")  # a run with one of these does not go on

# The values of result.json.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "metrics": dict,
    "intervals": dict,
    "overrides": list,
    "command": list,
    "versions": dict,
    "commit": (dict, NoneType),
    "machine": dict,
    "data": dict,
    "cost": dict,
    "seed": (int, NoneType),
    "error": (str, NoneType),
    "config_sha256": (str, NoneType),
    "files": dict,
    "parent": (dict, NoneType),
}

FILES = (
    "metrics.csv",
    "detections.json",
    "subset_ids.json",
)  # files whose digests are in result.json


@dataclass
class RunResult:
    """The record of a run.

    error: the reason of a failure; config_sha256: of its config, see
    `storage.files.config_digest`.
    files: SHA-256 of FILES in its folder, after it has ended in any way.
    metrics: by logged name (val/box_ap, val/mask_ap, val/roi_accuracy, ...); NaN is null in the
        file.
    intervals: of val/box_ap and val/mask_ap, 95 % (bootstrap over images); None if the images have
    no objects.
    run_dir: the folder, for Python; not in the file.
    overrides: the options that the user typed; command: the full command line.
    versions: see `package_versions`; commit: see `package_commit`, with changes; machine: see
        `describe_machine`;
    data: see `describe_data`.
    parent: for a run that continues a finished one, that run: see `runs.parent.read_parent`. Its
    cost is included in this one's.
    cost: see `run_cost` and, for a finished run, `inference_cost` in `maskrcnn_lit.measure.cost`;
        "feature_cache" of a run that read features: `training.feature_cache.Cached.record`.
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
    files: dict[str, str] = field(default_factory=dict)
    parent: dict[str, Any] | None = None
    run_dir: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; expected one of {', '.join(STATUSES)}")


def write_result(path: Path, result: RunResult) -> None:
    """Write result.json atomically, with its own digest."""
    content = asdict(result)
    del content["run_dir"]  # the folder may move
    write_sealed_json(path, content)


def read_result(path: Path) -> RunResult:
    """Read result.json; null metrics become NaN. UserError if the file is missing, not a result, or
    damaged.
    """
    try:
        values = read_sealed_json(path)
        known = {f.name: values[f.name] for f in fields(RunResult) if f.name in values}
        for name, kind in _KINDS.items():
            if name in known and not isinstance(known[name], kind):
                raise ValueError(f"{name} is a {type(known[name]).__name__}")
        known["metrics"] = {
            k: math.nan if v is None else v for k, v in known.get("metrics", {}).items()
        }
        return RunResult(**known)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of a run") from None
    except DamagedFileError as error:
        raise UserError(
            f"{path} is not the result of a run, or is damaged ({error}): give the folder of a "
            "run, or restore the file from a copy"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not the result of a run ({error}): give the folder of a run"
        ) from None


def config_fault(config: dict[str, Any], result: RunResult) -> str | None:
    """A message if `config`, read from the config.yaml of a run, does not match its digest in
    result.json: it was damaged or edited. None: it matches, or the run had not started.
    """
    if result.config_sha256 in (None, config_digest(config)):
        return None
    return (
        "config.yaml does not match its checksum in result.json: it was damaged or edited "
        "after the run"
    )


def file_digests(run_dir: Path) -> dict[str, str]:
    """The digests of the existing FILES."""
    there = [name for name in FILES if (run_dir / name).is_file()]
    return {name: file_digest(run_dir / name, "sha256") for name in there}


def file_fault(file: Path, result: RunResult) -> str | None:
    """A message if a file of an ended run does not match its digest in result.json. None: it
    matches, is missing, or the run was killed.
    """
    expected = result.files.get(file.name)
    if expected is None or not file.is_file() or file_digest(file, "sha256") == expected:
        return None
    return (
        f"{file} does not match its checksum in result.json: it was damaged or edited after the run"
    )
